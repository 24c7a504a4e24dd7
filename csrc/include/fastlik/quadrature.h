// Integrals of polynomials through unevenly spaced nodes.
// Specification, in plain PyTorch: fastlik/solvers/quadrature.py.
#pragma once

#include <cmath>
#include <cstdint>

#include "fastlik/rk_step.h"

namespace fastlik {

constexpr int kMostNodes = 6;

// Weights of the integral from start to end of the polynomial through `count` <= 6 nodes: Gauss-Legendre
// with three points.  Loops have fixed ends and few divisions: on a GPU what is inside stays in registers.
FASTLIK_CALLED void lagrange_weights(const double* nodes, int count, double start, double end,
                                   double* weights) {
  const double points[3] = {-0.7745966692414834, 0.0, 0.7745966692414834};
  const double gauss[3] = {5.0 / 9, 8.0 / 9, 5.0 / 9};
  const double half = 0.5 * (end - start), middle = 0.5 * (start + end);
  double t[kMostNodes], sums[kMostNodes];
  for (int i = 0; i < kMostNodes; ++i) {
    t[i] = i < count ? nodes[i] : 0;
    sums[i] = 0;
  }
  for (int p = 0; p < 3; ++p) {
    const double at = middle + half * points[p];
    double before[kMostNodes], product = gauss[p];
    for (int i = 0; i < kMostNodes; ++i) {
      before[i] = product;
      if (i < count) product *= at - t[i];
    }
    double after = 1;
    for (int i = kMostNodes - 1; i >= 0; --i) {
      if (i >= count) continue;
      sums[i] += before[i] * after;
      after *= at - t[i];
    }
  }
  for (int i = 0; i < kMostNodes; ++i) {
    double gap = 1;
    for (int j = 0; j < kMostNodes; ++j)
      if (j != i && j < count) gap *= t[i] - t[j];
    if (i < count) weights[i] = sums[i] * half / gap;
  }
}

// How far value `i` of `count` <= 7 is from the polynomial through the others, in units of independent noise.
FASTLIK_CALLED double residual(const double* nodes, const double* values, int count, int i) {
  constexpr int most = kMostNodes + 1;
  double t[most];
  for (int j = 0; j < most; ++j) t[j] = j < count ? nodes[j] : 0;
  double here = 0, all = 1, sum = 0, squares = 1;
  for (int j = 0; j < most; ++j)
    if (j == i) here = t[j];
  for (int j = 0; j < most; ++j)
    if (j != i && j < count) all *= here - t[j];
  for (int j = 0; j < most; ++j) {
    if (j >= count) continue;
    if (j == i) {
      sum += values[j];
      continue;
    }
    double gap = here - t[j];
    for (int k = 0; k < most; ++k)
      if (k != i && k != j && k < count) gap *= t[j] - t[k];
    const double basis = all / gap;
    sum -= basis * values[j];
    squares += basis * basis;
  }
  return sum / std::sqrt(squares);
}

}  // namespace fastlik
