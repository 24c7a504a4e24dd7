// The integral of a row's trace over the nodes of its steps, taken as the nodes come: what lies behind them
// is forgotten, so that a row of any length takes the same memory.
// Specification, in plain PyTorch: fastlik/likelihood/trace.py and fastlik/ops/quadrature.
#pragma once

#include "fastlik/mlp.h"
#include "fastlik/quadrature.h"

namespace fastlik {

// Each interval between nodes takes the polynomial through its six nearest ones, each node's error the
// polynomials through its nearest four and six; the last intervals weigh the last six nodes.  No more than
// ten are looked at.
constexpr int kTraceNodes = 16;

// Of the last nodes: the time, what changes as the divergence does but without noise, the noise of the mean
// over the probes, the products of the features with those of the node before, the weight so far.
struct TraceIntegral {
  double t[kTraceNodes], followed[kTraceNodes], noise[kTraceNodes], link[kTraceNodes], weight[kTraceNodes];
  double squares, variance;
  int64_t count, weighed, settled;  // nodes, intervals in `weight`, nodes in the sums
};

struct TraceAnswer {
  double change, variance, quadrature;
};

// Numbers beside: the divergences of the last nodes (kTraceNodes, columns), then their integrals (columns,).
FASTLIK_MATH int64_t trace_numbers(int64_t columns) { return (kTraceNodes + 1) * columns; }

FASTLIK_MATH void clear(TraceIntegral& r, double* beside, int64_t columns) {
  r.squares = r.variance = 0;
  r.count = r.weighed = r.settled = 0;
  for (int64_t k = 0; k < columns; ++k) beside[kTraceNodes * columns + k] = 0;
}

// Where the divergences of the next node go, before `add`.
FASTLIK_MATH double* next_divergences(const TraceIntegral& r, double* beside, int64_t columns) {
  return beside + r.count % kTraceNodes * columns;
}

FASTLIK_MATH void add(TraceIntegral& r, double t, double followed, double noise, double link) {
  const int64_t slot = r.count++ % kTraceNodes;
  r.t[slot] = t;
  r.followed[slot] = followed;
  r.noise[slot] = noise;
  r.link[slot] = link;
  r.weight[slot] = 0;
}

// The interval behind node i.
FASTLIK_MATH void weigh(TraceIntegral& r, int64_t i) {
  const int64_t first = clamped(i + 1 - kMostNodes / 2, r.count - kMostNodes);
  const int used = int(r.count - first < kMostNodes ? r.count - first : kMostNodes);
  double t[kMostNodes], part[kMostNodes];
  for (int j = 0; j < kMostNodes; ++j) t[j] = r.t[(first + j) % kTraceNodes];
  lagrange_weights(t, used, r.t[i % kTraceNodes], r.t[(i + 1) % kTraceNodes], part);
  for (int j = 0; j < kMostNodes; ++j)
    if (j < used) r.weight[(first + j) % kTraceNodes] += part[j];
}

// How far the node is from its neighbours, by their polynomial of `points` <= 6.
FASTLIK_MATH double distance(const TraceIntegral& r, int64_t node, int points) {
  const int64_t first = clamped(node - points / 2, r.count - points - 1);
  const int used = int(r.count - first < points + 1 ? r.count - first : points + 1);
  double t[kMostNodes + 1], values[kMostNodes + 1];
  for (int j = 0; j <= kMostNodes; ++j) {
    t[j] = r.t[(first + j) % kTraceNodes];
    values[j] = r.followed[(first + j) % kTraceNodes];
  }
  return std::fabs(residual(t, values, used, int(node - first)));
}

// The noise at a node: one probe's links to the neighbours take the diagonal out of it.
FASTLIK_MATH double noise_at(const TraceIntegral& r, const MlpTrace& trace, int64_t node) {
  const double noise = r.noise[node % kTraceNodes];
  if (trace.probes != 1) return noise;
  double links = 0;
  int neighbours = 0;
  if (node > 0) links += r.link[node % kTraceNodes], ++neighbours;
  if (node + 1 < r.count) links += r.link[(node + 1) % kTraceNodes], ++neighbours;
  return std::fmax(noise - 2 * links / (neighbours > 1 ? neighbours : 1), 0.0);
}

// The node's weight is final: it goes into the sums.
FASTLIK_MATH void settle(TraceIntegral& r, double* beside, const MlpTrace& trace, int64_t node) {
  const int64_t slot = node % kTraceNodes, columns = trace.columns();
  const double weight = r.weight[slot];
  const double off = weight * std::fmin(distance(r, node, 4), distance(r, node, 6));
  r.squares += off * off;
  for (int64_t k = 0; k < columns; ++k) beside[kTraceNodes * columns + k] += weight * beside[slot * columns + k];
  if (trace.mode == kProbes) r.variance += weight * weight * noise_at(r, trace, node);
}

// Takes in all that later nodes do not change; everything once the last one is there.
FASTLIK_CALLED void advance(TraceIntegral& r, double* beside, const MlpTrace& trace, bool ended) {
  while (r.weighed + 1 < r.count && (ended || (r.weighed + 3 < r.count && r.count >= kMostNodes)))
    weigh(r, r.weighed++);
  while (r.settled < r.count && (ended || r.settled + kMostNodes < r.count))
    settle(r, beside, trace, r.settled++);
}

FASTLIK_MATH TraceAnswer answer(const TraceIntegral& r, const double* beside, const MlpTrace& trace) {
  const int64_t columns = trace.columns();
  const double *sums = beside + kTraceNodes * columns, n = double(columns);
  double mean = 0, deviations = 0;
  for (int64_t k = 0; k < columns; ++k) mean += sums[k] / n;
  for (int64_t k = 0; k < columns; ++k) deviations += (sums[k] - mean) * (sums[k] - mean);
  const bool probes = trace.mode == kProbes;
  const double variance = !probes ? 0 : trace.fresh ? r.variance : deviations / (n - 1) / n;
  return {mean, variance, std::sqrt(r.squares)};
}

}  // namespace fastlik
