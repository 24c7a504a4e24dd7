// Integrals of polynomials through unevenly spaced nodes.
// Specification, in plain PyTorch: fastlik/solvers/quadrature.py.
#pragma once

#include <cmath>
#include <cstdint>

#include "fastlik/rk_step.h"

namespace fastlik {

constexpr int kMostNodes = 6;

// Weights of the integral from start to end of the polynomial through `count` <= 6 nodes: Gauss-Legendre
// with three points, which lie between the nodes.
FASTLIK_MATH void lagrange_weights(const double* nodes, int count, double start, double end,
                                   double* weights) {
  const double points[3] = {-0.7745966692414834, 0.0, 0.7745966692414834};
  const double gauss[3] = {5.0 / 9, 8.0 / 9, 5.0 / 9};
  const double half = 0.5 * (end - start), middle = 0.5 * (start + end);
  for (int i = 0; i < count; ++i) weights[i] = 0;
  for (int p = 0; p < 3; ++p) {
    const double at = middle + half * points[p];
    double product = gauss[p];
    for (int i = 0; i < count; ++i) product *= at - nodes[i];
    for (int i = 0; i < count; ++i) weights[i] += product / (at - nodes[i]);
  }
  for (int i = 0; i < count; ++i) {
    double gap = 1;
    for (int j = 0; j < count; ++j)
      if (j != i) gap *= nodes[i] - nodes[j];
    weights[i] *= half / gap;
  }
}

// Quadrature weights over `count` monotone nodes t, from the first to the last: each interval takes the
// polynomial through its `points` <= 6 nearest nodes.
FASTLIK_MATH void node_weights(const double* t, int64_t count, int points, double* weights) {
  for (int64_t i = 0; i < count; ++i) weights[i] = 0;
  for (int64_t i = 0; i + 1 < count; ++i) {
    int64_t first = i + 1 - points / 2;
    if (first > count - points) first = count - points;
    if (first < 0) first = 0;
    const int used = int(count - first < points ? count - first : points);
    double part[kMostNodes];
    lagrange_weights(t + first, used, t[i], t[i + 1], part);
    for (int j = 0; j < used; ++j) weights[first + j] += part[j];
  }
}

// How far value `i` of `count` is from the polynomial through its `points` <= 6 nearest nodes without it, in
// units of independent noise.
FASTLIK_MATH double residual(const double* t, const double* values, int64_t count, int64_t i, int points) {
  int64_t first = i - points / 2;
  if (first > count - points - 1) first = count - points - 1;
  if (first < 0) first = 0;
  const int64_t last = first + points < count - 1 ? first + points : count - 1;
  double sum = values[i], squares = 1;
  for (int64_t j = first; j <= last; ++j) {
    if (j == i) continue;
    double basis = 1;
    for (int64_t k = first; k <= last; ++k)
      if (k != i && k != j) basis *= (t[i] - t[k]) / (t[j] - t[k]);
    sum -= basis * values[j];
    squares += basis * basis;
  }
  return sum / std::sqrt(squares);
}

}  // namespace fastlik
