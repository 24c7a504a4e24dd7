// The right-hand side of the likelihood's ODE for the eight samples of each warp of a block, and the rows
// that they are.
//
// A vector of a sample lies with the four lanes of its quad, `kOwn` of each 16 numbers in a lane: entry i of
// the lane at [i * 32], in memory that belongs to the warp.
#pragma once

#include "chain_network.h"
#include "fastlik/philox.h"

namespace fastlik::cuda {

constexpr int kOwn = 4;

struct ChainCoefficients {
  double input_scale, of_state, of_output;
};

// Cuts a warp's memory into vectors of the lane and numbers of the sample; starting from null, measures.
class WarpMemory {
 public:
  FASTLIK_METHOD WarpMemory(void* memory, const MlpChain& n, int lane)
      : at_(static_cast<unsigned char*>(memory)), entries_(int64_t(n.inputs / 16 * kOwn)), lane_(lane) {}

  template <class T>
  FASTLIK_METHOD T* vectors(int64_t count) {  // vector v's entries follow those of vector v - 1
    return of_lane<T>(count * entries_);
  }
  template <class T>
  FASTLIK_METHOD T* of_lane(int64_t count) {  // number i at [i * 32]
    T* start = reinterpret_cast<T*>(at_) + lane_;
    at_ += count * 32 * int64_t(sizeof(T));
    return start;
  }
  template <class T>
  FASTLIK_METHOD T* of_sample(int64_t count) {
    T* start = reinterpret_cast<T*>(at_) + lane_ / 4 * count;
    at_ += kSamples * count * int64_t(sizeof(T));
    return start;
  }
  FASTLIK_METHOD int64_t bytes() const { return (reinterpret_cast<int64_t>(at_) + 127) / 128 * 128; }

 private:
  unsigned char* at_;
  int64_t entries_;
  int lane_;
};

template <int kPrecision>
class ChainField {
 public:
  FASTLIK_DEVICE_MEMBER ChainField(const MlpChain& n, const MlpRows& in, const MlpTrace& trace, int groups,
                                   unsigned char* shared)
      : n_(n), in_(in), trace_(trace), lane_(thread() % 32), q_(lane_ % 4), network_(n, groups, shared) {}

  FASTLIK_DEVICE_MEMBER int lane() const { return lane_; }
  FASTLIK_DEVICE_MEMBER bool leads() const { return q_ == 0; }
  FASTLIK_DEVICE_MEMBER int entries() const { return int(n_.inputs / 16) * kOwn; }
  // The coordinate that entry i of a lane is; at and beyond the dimension it holds 0.
  FASTLIK_DEVICE_MEMBER int feature(int i) const { return i / kOwn * 16 + 2 * q_ + i % 2 + i % kOwn / 2 * 8; }

  // The bytes of this warp.
  FASTLIK_DEVICE_MEMBER void* memory(int64_t bytes) const {
    return static_cast<unsigned char*>(n_.memory) + (block() * (threads() / 32) + thread() / 32) * bytes;
  }

  // The next row that nobody has taken up, below 0 where there is none.
  FASTLIK_DEVICE_MEMBER int64_t take() {
    if (!network_.owns() || drained_) return -1;
    const int64_t row = from_quad_leader(leads() ? fetch_next(n_.queue) : 0);
    drained_ = row >= in_.rows;
    return drained_ ? -1 : row;
  }

  FASTLIK_DEVICE_MEMBER void read(int64_t row, float* to) const {
    const float* from = static_cast<const float*>(in_.state) + row * n_.dim;
    for (int i = 0; i < entries(); ++i) to[i * 32] = feature(i) < n_.dim ? from[feature(i)] : 0;
  }

  FASTLIK_DEVICE_MEMBER void write(int64_t row, const float* from, void* to) const {
    for (int i = 0; i < entries(); ++i)
      if (feature(i) < n_.dim) static_cast<float*>(to)[row * n_.dim + feature(i)] = from[i * 32];
  }

  FASTLIK_DEVICE_MEMBER ChainPoint point(int64_t row, double u) const {
    const PanelPoint at = locate(n_.breaks, n_.panels, u);
    const double x = at.x < -1 ? -1 : at.x > 1 ? 1 : at.x;
    return {int32_t(row), int32_t(at.panel), float(x)};
  }

  // All threads of the block together: the slope of each sample that has a row, and its divergence if
  // `traced`: after(k, divergence) for each column k.  Of probes v, v_i (Jv)_i goes to `parts` before that,
  // unless it is null.
  template <class After>
  FASTLIK_DEVICE_MEMBER void evaluate(const ChainPoint& at, const ChainCoefficients& c, int64_t node, bool traced,
                                      const float* state, float* slope, double* parts, After after) {
    traced &= trace_.mode != kNoTrace;
    const bool exact = trace_.mode == kExact, closed = traced && trace_.mode == kClosedForm, present = at.row >= 0;
    const int64_t tangents = traced ? trace_.tangents(n_.dim) : 0;
    const double of_network = c.of_output * c.input_scale;
    double total = 0;
    network_.place(at);
    for (int64_t t = 0; t == 0 || t < tangents; ++t) {
      for (int k = 0; k < entries() / kOwn; ++k) {
        float x[kOwn] = {}, v[kOwn] = {};
        for (int i = 0; i < kOwn && present; ++i) x[i] = float(c.input_scale) * state[(k * kOwn + i) * 32];
        if (tangents && present) tangent(at.row, node, t, k, v);
        network_.put(k, x, v);
      }
      network_.run(tangents > 0, closed);
      if (!present) continue;
      double square = 0, quadratic = 0;
      for (int k = 0; k < entries() / kOwn; ++k) {
        float output[kOwn], product[kOwn], v[kOwn] = {};
        network_.get(k, output, product);
        if (tangents) tangent(at.row, node, t, k, v);
        for (int i = 0; i < kOwn; ++i) {
          const int entry = (k * kOwn + i) * 32;
          if (t == 0) slope[entry] = float(c.of_state) * state[entry] + float(c.of_output) * output[i];
          square += double(v[i]) * double(v[i]);
          quadratic += double(v[i]) * double(product[i]);
          if (parts) parts[entry] = double(v[i]) * (c.of_state * double(v[i]) + of_network * double(product[i]));
        }
      }
      if (!traced) continue;
      if (closed) {
        square = leads() ? double(n_.dim) : 0;
        quadratic = network_.trace();
      }
      const double divergence = c.of_state * quad_sum(square) + of_network * quad_sum(quadratic);
      total = exact ? total + divergence : divergence;
      if (!exact || t + 1 == tangents) after(exact ? 0 : t, total);
    }
  }

 private:
  FASTLIK_DEVICE_MEMBER void tangent(int64_t row, int64_t node, int64_t t, int tile, float (&v)[kOwn]) const {
    for (int i = 0; i < kOwn; i += 2) {
      const int first = feature(tile * kOwn + i);
      float pair[2] = {first == t ? 1.0f : 0.0f, first + 1 == t ? 1.0f : 0.0f};
      if (trace_.mode == kProbes)
        draw_pair(ProbeKind(trace_.kind), trace_.seed, in_.ids[row], trace_.first_draw + t,
                  trace_.fresh ? node : 0, first, pair);
      for (int j = 0; j < 2; ++j) v[i + j] = first + j < n_.dim ? pair[j] : 0;
    }
  }

  const MlpChain& n_;
  const MlpRows& in_;
  const MlpTrace& trace_;
  const int lane_, q_;
  bool drained_ = false;
  ChainNetwork<kPrecision> network_;
};

}  // namespace fastlik::cuda
