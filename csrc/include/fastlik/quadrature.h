// Integrals of polynomials through unevenly spaced nodes.
// Specification, in plain PyTorch: fastlik/ops/quadrature.
#pragma once

#include <cmath>
#include <cstdint>

#include "fastlik/rk_step.h"

namespace fastlik {

constexpr int kMostNodes = 6;

// The first of the nearest nodes: not below 0, and not above `last` otherwise.
FASTLIK_MATH int64_t clamped(int64_t first, int64_t last) {
  if (first > last) first = last;
  return first < 0 ? 0 : first;
}

// Weights of the integral from start to end of the polynomial through `count` <= 6 nodes: Gauss-Legendre
// with three points.  V: a number, or a vector of numbers of as many polynomials.  Loops have fixed ends and
// few divisions: on a GPU what is inside stays in registers.
template <class V>
FASTLIK_CALLED void lagrange_weights(const V* nodes, int count, V start, V end, V* weights) {
  const double points[3] = {-0.7745966692414834, 0.0, 0.7745966692414834};
  const double gauss[3] = {5.0 / 9, 8.0 / 9, 5.0 / 9};
  const V half = 0.5 * (end - start), middle = 0.5 * (start + end);
  V t[kMostNodes], sums[kMostNodes];
  for (int i = 0; i < kMostNodes; ++i) {
    t[i] = i < count ? nodes[i] : V{};
    sums[i] = V{};
  }
  for (int p = 0; p < 3; ++p) {
    const V at = middle + half * points[p];
    V before[kMostNodes], product = V{} + gauss[p];
    for (int i = 0; i < kMostNodes; ++i) {
      before[i] = product;
      if (i < count) product *= at - t[i];
    }
    V after = V{} + 1.0;
    for (int i = kMostNodes - 1; i >= 0; --i) {
      if (i >= count) continue;
      sums[i] += before[i] * after;
      after *= at - t[i];
    }
  }
  for (int i = 0; i < kMostNodes; ++i) {
    V gap = V{} + 1.0;
    for (int j = 0; j < kMostNodes; ++j)
      if (j != i && j < count) gap *= t[i] - t[j];
    if (i < count) weights[i] = sums[i] * half / gap;
  }
}

// How far value `i` of `count` <= 7 is from the polynomial through the others, and the square of what the gap
// is for independent noise of unit size.
template <class V>
struct Apart {
  V gap, squares;
};

template <class V>
FASTLIK_MATH Apart<V> apart_from(const V* nodes, const V* values, int count, int i) {
  constexpr int most = kMostNodes + 1;
  V t[most];
  for (int j = 0; j < most; ++j) t[j] = j < count ? nodes[j] : V{};
  V here = V{}, all = V{} + 1.0;
  Apart<V> found{V{}, V{} + 1.0};
  for (int j = 0; j < most; ++j)
    if (j == i) here = t[j];
  for (int j = 0; j < most; ++j)
    if (j != i && j < count) all *= here - t[j];
  for (int j = 0; j < most; ++j) {
    if (j >= count) continue;
    if (j == i) {
      found.gap += values[j];
      continue;
    }
    V gap = here - t[j];
    for (int k = 0; k < most; ++k)
      if (k != i && k != j && k < count) gap *= t[j] - t[k];
    const V basis = all / gap;
    found.gap -= basis * values[j];
    found.squares += basis * basis;
  }
  return found;
}

// The gap in units of independent noise.
FASTLIK_CALLED double residual(const double* nodes, const double* values, int count, int i) {
  const Apart<double> found = apart_from(nodes, values, count, i);
  return found.gap / std::sqrt(found.squares);
}

}  // namespace fastlik
