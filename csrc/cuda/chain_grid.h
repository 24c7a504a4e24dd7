// A grid that all samples of a block share: csrc/cpu/mlp_grid.h on a GPU.
#pragma once

#include "chain_field.h"

namespace fastlik::cuda {

struct GridMemory {
  float *y, *state, *slope, *slots;  // slots: `slots` vectors
  int64_t bytes;

  FASTLIK_METHOD GridMemory(void* memory, const MlpChain& n, const MlpGridArgs& a, int lane) {
    WarpMemory cut(memory, n, lane);
    y = cut.vectors<float>(1);
    state = cut.vectors<float>(1);
    slope = cut.vectors<float>(1);
    slots = cut.vectors<float>(a.slots);
    bytes = cut.bytes();
  }
};

template <int kPrecision>
class ChainGrid {
 public:
  using Args = MlpGridArgs;

  static int64_t bytes(const MlpChain& n, const Args& a) { return GridMemory(nullptr, n, a, 0).bytes; }

  FASTLIK_DEVICE_MEMBER ChainGrid(const MlpChain& n, const Args& a, int groups, unsigned char* shared)
      : a_(a), field_(n, a.in, a.trace, groups, shared),
        m_(field_.memory(GridMemory(nullptr, n, a, 0).bytes), n, a, field_.lane()) {}

  // All threads of the block together: rows until there are none.
  FASTLIK_DEVICE_MEMBER void run() {
    for (;;) {
      row_ = field_.take();
      if (!block_any(row_ >= 0)) return;
      integrate();
    }
  }

 private:
  FASTLIK_DEVICE_MEMBER double* q(int64_t column) const {
    return a_.q + (row_ * a_.trace.columns() + column) * a_.quadratures;
  }

  FASTLIK_DEVICE_MEMBER void integrate() {
    int64_t first_bad = -1;
    finite_ = 0;
    if (row_ >= 0) {
      field_.read(row_, m_.y);
      for (int64_t i = 0; field_.leads() && i < a_.trace.columns() * a_.quadratures; ++i) q(0)[i] = 0;
    }
    for (int64_t e = 0; e < a_.evaluations; ++e) {
      const bool ends = a_.commit[e] || e + 1 == a_.evaluations;
      if (row_ >= 0) add_slopes(m_.y, m_.state, a_.stage + e * a_.slots);
      evaluate(e);
      if (row_ < 0) continue;
      if (a_.slot[e] >= 0)
        for (int i = 0; i < field_.entries(); ++i) slot(a_.slot[e])[i * 32] = m_.slope[i * 32];
      if (a_.commit[e]) add_slopes(m_.y, m_.y, a_.update + e * a_.slots);
      if (ends && first_bad < 0 && bad()) first_bad = e;
    }
    if (row_ < 0) return;
    field_.write(row_, m_.y, a_.latent);
    if (field_.leads()) a_.first_bad[row_] = first_bad;
  }

  FASTLIK_DEVICE_MEMBER float* slot(int64_t s) const { return m_.slots + s * field_.entries() * 32; }

  // to = from + sum_s weights[s] slots[s].
  FASTLIK_DEVICE_MEMBER void add_slopes(const float* from, float* to, const double* weights) const {
    for (int i = 0; i < field_.entries(); ++i) {
      float sum = from[i * 32];
      for (int64_t s = 0; s < a_.slots; ++s)
        if (weights[s] != 0) sum += float(weights[s]) * slot(s)[i * 32];
      to[i * 32] = sum;
    }
  }

  // A divergence is taken where it has a weight.
  FASTLIK_DEVICE_MEMBER void evaluate(int64_t e) {
    const double* weight = a_.weight + e * a_.quadratures;
    bool traced = false;
    for (int64_t i = 0; i < a_.quadratures; ++i) traced |= weight[i] != 0;
    const ChainPoint at{int32_t(row_), int32_t(e), 0};
    const ChainCoefficients c{a_.input_scale[e], a_.of_state[e], a_.of_output[e]};
    field_.evaluate(at, c, a_.node[e], traced, m_.state, m_.slope, nullptr, [&](int64_t k, double divergence) {
      finite_ += divergence - divergence;
      for (int64_t i = 0; field_.leads() && i < a_.quadratures; ++i) q(k)[i] += weight[i] * divergence;
    });
  }

  // Whether the state or a divergence so far is not finite.
  FASTLIK_DEVICE_MEMBER bool bad() const {
    double gap = finite_;
    for (int i = 0; i < field_.entries(); ++i) gap += m_.y[i * 32] - m_.y[i * 32];
    return quad_sum(gap) != 0;
  }

  const MlpGridArgs& a_;
  ChainField<kPrecision> field_;
  GridMemory m_;
  int64_t row_ = -1;
  double finite_ = 0;
};

}  // namespace fastlik::cuda
