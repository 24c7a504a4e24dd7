// Weights of integrals over each row's nodes, and distances of their values from their neighbours' polynomials.
// Intervals (nodes) that have all their neighbours go by vectors, those near the ends one by one.
#include <algorithm>
#include <cmath>

#include "fastlik/cpu.h"
#include "fastlik/quadrature.h"
#include "simd.h"

namespace fastlik::FASTLIK_ISA {
namespace {

using V = Vector<double>;
constexpr int kWide = kLanes<double>;
constexpr int64_t kParallelNodes = 4096;

template <int kPoints>
void weigh_interior(const double* t, int64_t first, double* weights) {
  V nodes[kMostNodes], parts[kMostNodes];
  for (int j = 0; j < kPoints; ++j) nodes[j] = load(t + first + j);
  lagrange_weights(nodes, kPoints, load(t + first + kPoints / 2 - 1), load(t + first + kPoints / 2), parts);
  for (int j = 0; j < kPoints; ++j) {
    double* at = weights + first + j;
    store(at, load(at) + parts[j]);
  }
}

void weigh(const double* t, int64_t count, int points, int64_t interval, double* weights) {
  const int64_t first = clamped(interval + 1 - points / 2, count - points);
  const int used = int(std::min<int64_t>(points, count - first));
  double parts[kMostNodes];
  lagrange_weights(t + first, used, t[interval], t[interval + 1], parts);
  for (int j = 0; j < used; ++j) weights[first + j] += parts[j];
}

void weigh_row(const double* t, int64_t count, int points, double* weights) {
  const int before = points / 2 - 1;
  for (int64_t i = 0; i + 1 < count;) {
    const int64_t first = i - before;
    if (points == kMostNodes && first >= 0 && first + kWide - 1 + points <= count) {
      weigh_interior<kMostNodes>(t, first, weights);
      i += kWide;
    } else {
      weigh(t, count, points, i++, weights);
    }
  }
}

template <int kPoints>
void judge_interior(const double* t, const double* values, int64_t first, double* apart) {
  V nodes[kMostNodes + 1], near[kMostNodes + 1];
  for (int j = 0; j <= kPoints; ++j) {
    nodes[j] = load(t + first + j);
    near[j] = load(values + first + j);
  }
  const Apart<V> found = apart_from(nodes, near, kPoints + 1, kPoints / 2);
  double* out = apart + first + kPoints / 2;
  for (int lane = 0; lane < kWide; ++lane) out[lane] = found.gap[lane] / std::sqrt(found.squares[lane]);
}

void judge_row(const double* t, const double* values, int64_t count, int points, double* apart) {
  for (int64_t i = 0; i < count;) {
    const int64_t first = i - points / 2;
    if (first >= 0 && first + kWide + points <= count && (points == 6 || points == 4)) {
      points == 6 ? judge_interior<6>(t, values, first, apart) : judge_interior<4>(t, values, first, apart);
      i += kWide;
    } else {
      const int64_t from = clamped(first, count - points - 1);
      const int used = int(std::min<int64_t>(points + 1, count - from));
      apart[i] = residual(t + from, values + from, used, int(i - from));
      ++i;
    }
  }
}

template <class Row>
void each_row(const NodeQuadratureArgs& a, int threads, Row row) {
  const bool parallel = a.rows * a.nodes > kParallelNodes;
#pragma omp parallel for num_threads(threads) schedule(static) if (parallel)
  for (int64_t r = 0; r < a.rows; ++r) {
    double* out = a.out + r * a.nodes;
    std::fill_n(out, a.nodes, 0.0);
    row(a.t + r * a.nodes, r, std::min(a.count[r], a.nodes), out);
  }
}

}  // namespace

void node_weights(const NodeQuadratureArgs& a, int threads) {
  each_row(a, threads, [&](const double* t, int64_t, int64_t count, double* out) {
    weigh_row(t, count, a.points, out);
  });
}

void node_residuals(const NodeQuadratureArgs& a, int threads) {
  each_row(a, threads, [&](const double* t, int64_t row, int64_t count, double* out) {
    judge_row(t, a.values + row * a.nodes, count, a.points, out);
  });
}

}  // namespace fastlik::FASTLIK_ISA
