// The likelihood ODE of a plain MLP on a fixed grid, in one kernel: eight samples a warp from the first
// evaluation to the last.
//
// The activations of a warp are a matrix of 16 lines: line g (0 .. 7) is sample g, line g + 8 its tangent.
// In the tensor cores' layout lane (g, q) = (lane / 4, lane % 4) holds both lines of a feature, so that an
// activation function and its derivative need no exchange, and the tile that a product leaves behind is,
// rounded, the tile that the next product starts from.
#pragma once

#include "fastlik/mlp_chain.h"
#include "warp.h"

namespace fastlik::cuda {

constexpr int kSamples = 8;         // of a warp
constexpr int kMostWarps = 8;       // of a block
constexpr int kInputTiles = kChainDim / 16, kOutputTiles = kChainDim / 8;
constexpr int kChunk = 4;           // output tiles whose sums are in registers at a time
constexpr int kLinePadding = 4;     // floats, against bank conflicts

// One copy for all places that use it: the compiler's time is short.
FASTLIK_SHARED_CODE FunctionDual other_function(int32_t function, float p, float x) {
  return apply(function, p, x);
}

// Four numbers of a lane in each 16 x 8 tile: line g at features 2 q and 2 q + 1, then line g + 8.
struct Tile8 {
  float at[4];
};

// 16 lines of `kTiles` x 16 features, as factors of the tensor cores.
template <int kTiles, int kPrecision>
struct Factors {
  uint32_t high[kTiles][4];
  uint32_t low[kPrecision == kSplit ? kTiles : 1][4];

  // Tiles 2 i and 2 i + 1 of a product's result become tile i of factors.
  FASTLIK_DEVICE_MEMBER void put(int tile, const Tile8& left, const Tile8& right) {
    put(high[tile], tile, 0, left.at[0], left.at[1]);
    put(high[tile], tile, 1, left.at[2], left.at[3]);
    put(high[tile], tile, 2, right.at[0], right.at[1]);
    put(high[tile], tile, 3, right.at[2], right.at[3]);
  }

 private:
  FASTLIK_DEVICE_MEMBER void put(uint32_t (&to)[4], int tile, int i, float x, float y) {
    to[i] = to_halves(x, y);
    if constexpr (kPrecision == kSplit) {
      const float2 rounded = from_halves(to[i]);
      low[tile][i] = to_halves(x - rounded.x, y - rounded.y);
    }
  }
};

// What a layer's product needs besides its input: weights in shared memory in the order of the lanes, tile
// (input i, output n) at (n * inputs + i) * 32 + lane; kFull: (inputs, outputs) float32 in global memory.
struct Weights {
  const uint2* high;
  const uint2* low;
  const float* full;
};

FASTLIK_DEVICE int tiles_of_layer(int64_t layer, int64_t hidden, int width) {
  const int inputs = layer == 0 ? kInputTiles : width / 16;
  const int outputs = layer == hidden ? kOutputTiles : width / 8;
  return inputs * outputs;
}

// The weights of all layers, from global to shared memory; bytes of them.
FASTLIK_DEVICE int64_t copy_weights(const MlpChainArgs& a, unsigned char* shared) {
  if (a.precision == kFull) return 0;
  uint4* to = reinterpret_cast<uint4*>(shared);
  for (int64_t l = 0; l <= a.hidden; ++l) {
    const int count = tiles_of_layer(l, a.hidden, int(a.width)) * (a.precision == kSplit ? 2 : 1) * 16;
    const uint4* from = static_cast<const uint4*>(a.weights[l]);
    for (int i = thread(); i < count; i += threads()) to[i] = from[i];
    to += count;
  }
  return reinterpret_cast<unsigned char*>(to) - shared;
}

template <int kWidth, int kPrecision>
class ChainWarp {
  static constexpr int kTiles = kWidth / 16;  // of a hidden layer, as an input
  static constexpr int kLine = kWidth + kLinePadding;

 public:
  FASTLIK_DEVICE_MEMBER ChainWarp(const MlpChainArgs& a, unsigned char* shared)
      : a_(a), lane_(thread() % 32), g_(lane_ / 4), q_(lane_ % 4) {
    weights_ = shared;
    const int64_t weights = copy_weights(a, shared);
    block_barrier();
    const int warp = thread() / 32;
    row_ = (block() * (threads() / 32) + warp) * kSamples + g_;
    present_ = row_ < a.rows;
    if (!present_) row_ = a.rows - 1;  // spare lanes repeat the last row and write nothing
    float* own = reinterpret_cast<float*>(shared + weights);
    slots_ = own + warp * a.slots * 4 * 32 + lane_;
    lines_ = own + (threads() / 32) * a.slots * 4 * 32 + warp * 2 * 16 * kLine;
  }

  FASTLIK_DEVICE_MEMBER void integrate() {
    for (int i = 0; i < 4; ++i)
      y_[i] = feature(i) < a_.dim ? a_.state[row_ * a_.dim + feature(i)] : 0;
    int64_t first_bad = -1;
    bool finite = true;  // the divergences so far
    for (int64_t e = 0; e < a_.evaluations; ++e) {
      float state[4];
      for (int i = 0; i < 4; ++i) state[i] = y_[i];
      add_slopes(state, a_.stage + e * a_.slots);
      finite &= evaluate(e, state);
      if (a_.commit[e]) add_slopes(y_, a_.update + e * a_.slots);
      if (a_.commit[e] || e + 1 == a_.evaluations) {
        const bool good = all_finite(finite);  // every lane takes part, whatever its sample's fate
        if (!good && first_bad < 0) first_bad = e;
      }
    }
    if (!present_) return;
    for (int i = 0; i < 4; ++i)
      if (feature(i) < a_.dim) a_.latent[row_ * a_.dim + feature(i)] = y_[i];
    if (q_ == 0) a_.first_bad[row_] = first_bad;
  }

 private:
  // The coordinate that entry i of a lane's state is.
  FASTLIK_DEVICE_MEMBER int feature(int i) const { return 2 * q_ + i % 2 + i / 2 * 8; }

  FASTLIK_DEVICE_MEMBER void add_slopes(float (&to)[4], const double* weights) const {
    for (int64_t s = 0; s < a_.slots; ++s) {
      if (weights[s] == 0) continue;
      const float weight = float(weights[s]);
      for (int i = 0; i < 4; ++i) to[i] += weight * slots_[(s * 4 + i) * 32];
    }
  }

  // Sum over the four lanes of a sample.
  FASTLIK_DEVICE_MEMBER float sum(float x) const {
    x += from_lane_xor(x, 1);
    return x + from_lane_xor(x, 2);
  }

  FASTLIK_DEVICE_MEMBER bool all_finite(bool finite) const {
    float total = finite ? 0.0f : 1.0f;
    for (int i = 0; i < 4; ++i) total += y_[i] - y_[i] == 0 ? 0.0f : 1.0f;
    return sum(total) == 0;
  }

  // Evaluation e: its slope, and its divergence where one is wanted.  Whether that was finite.
  FASTLIK_DEVICE_MEMBER bool evaluate(int64_t e, const float (&state)[4]) {
    bool traced = false;
    for (int64_t i = 0; i < a_.quadratures; ++i) traced |= a_.weight[e * a_.quadratures + i] != 0;
    traced &= a_.trace.mode != kNoTrace;
    const int64_t tangents = !traced ? 0 : a_.trace.mode == kExact ? a_.dim : a_.trace.probes;
    const float scale = float(a_.input_scale[e]);
    double divergence = 0;
    bool finite = true;
    for (int64_t t = 0; t == 0 || t < tangents; ++t) {
      float v[4];
      for (int i = 0; i < 4; ++i) v[i] = 0;
      if (traced) tangent(v, e, t);
      Tile8 tiles[kOutputTiles];
      for (int i = 0; i < 4; ++i) {
        tiles[i / 2].at[i % 2] = scale * state[i];
        tiles[i / 2].at[2 + i % 2] = v[i];
      }
      network(tiles, e);
      if (t == 0) keep_slope(e, state, tiles);
      if (!traced) break;
      float square = 0, quadratic = 0;
      for (int i = 0; i < 4; ++i) {
        square += v[i] * v[i];
        quadratic += v[i] * tiles[i / 2].at[2 + i % 2];
      }
      const double estimate = a_.of_state[e] * double(sum(square)) +
                              a_.of_output[e] * a_.input_scale[e] * double(sum(quadratic));
      finite &= estimate - estimate == 0;
      divergence = a_.trace.mode == kExact ? divergence + estimate : estimate;
      if (a_.trace.mode == kProbes) integrate_divergence(e, t, a_.trace.probes, divergence);
    }
    if (a_.trace.mode == kExact && traced) integrate_divergence(e, 0, 1, divergence);
    return finite;
  }

  FASTLIK_DEVICE_MEMBER void integrate_divergence(int64_t e, int64_t column, int64_t columns,
                                                  double divergence) const {
    if (!present_ || q_ != 0) return;
    double* q = a_.q + (row_ * columns + column) * a_.quadratures;
    for (int64_t i = 0; i < a_.quadratures; ++i)
      q[i] += a_.weight[e * a_.quadratures + i] * divergence;
  }

  FASTLIK_DEVICE_MEMBER void tangent(float (&v)[4], int64_t e, int64_t t) const {
    if (a_.trace.mode == kExact) {
      for (int i = 0; i < 4; ++i) v[i] = feature(i) == t ? 1.0f : 0.0f;
      return;
    }
    const int64_t node = a_.trace.fresh ? a_.node[e] : 0;
    const uint32_t bits =
        probe_words(a_.trace.seed, a_.ids[row_], a_.trace.first_draw + t, node, 0).at[0];
    for (int i = 0; i < 4; ++i)
      if (feature(i) < a_.dim) v[i] = bits >> feature(i) & 1 ? -1.0f : 1.0f;
  }

  FASTLIK_DEVICE_MEMBER void keep_slope(int64_t e, const float (&state)[4],
                                        const Tile8 (&output)[kOutputTiles]) const {
    if (a_.slot[e] < 0) return;
    const float of_state = float(a_.of_state[e]), of_output = float(a_.of_output[e]);
    for (int i = 0; i < 4; ++i)
      slots_[(a_.slot[e] * 4 + i) * 32] = of_state * state[i] + of_output * output[i / 2].at[i % 2];
  }

  // The network on 16 lines: x and v in, F(x) and J v out.
  FASTLIK_DEVICE_MEMBER void network(Tile8 (&x)[kOutputTiles], int64_t e) const {
    const float* out = a_.time_shift + a_.evaluations * a_.hidden * kWidth + e * kChainDim;
    if constexpr (kPrecision == kFull) {
      store_lines(x, 0);
      warp_barrier();
      for (int64_t l = 0; l < a_.hidden; ++l) {
        hidden_in_memory(l, e);
        warp_barrier();
      }
      for (int n = 0; n < kOutputTiles; ++n)
        x[n] = product_in_memory(weights(a_.hidden), kWidth, kChainDim, n, int(a_.hidden % 2));
      warp_barrier();  // before the lines are used again
    } else {
      Factors<kInputTiles, kPrecision> input;
      input.put(0, x[0], x[1]);
      Factors<kTiles, kPrecision> lines;
      hidden_layer<kInputTiles>(input, lines, 0, e);
      for (int64_t l = 1; l < a_.hidden; ++l) {
        Factors<kTiles, kPrecision> next;
        hidden_layer<kTiles>(lines, next, l, e);
        lines = next;
      }
      product<kTiles, kOutputTiles>(lines, weights(a_.hidden), 0, x);
    }
    for (int i = 0; i < 4; ++i) x[i / 2].at[i % 2] += out[feature(i)];
  }

  FASTLIK_DEVICE_MEMBER Weights weights(int64_t layer) const {
    Weights w{nullptr, nullptr, static_cast<const float*>(a_.weights[layer])};
    const uint2* at = reinterpret_cast<const uint2*>(weights_);
    constexpr int copies = kPrecision == kSplit ? 2 : 1;
    for (int64_t l = 0; l < layer; ++l) at += tiles_of_layer(l, a_.hidden, kWidth) * 32 * copies;
    w.high = at;
    w.low = at + tiles_of_layer(layer, a_.hidden, kWidth) * 32;
    return w;
  }

  template <int kInputs>
  FASTLIK_DEVICE_MEMBER void hidden_layer(const Factors<kInputs, kPrecision>& in,
                                          Factors<kTiles, kPrecision>& out, int64_t layer,
                                          int64_t e) const {
    const Weights w = weights(layer);
#pragma unroll
    for (int n = 0; n < kWidth / 8; n += kChunk) {
      Tile8 sums[kChunk];
      product<kInputs, kChunk>(in, w, n, sums);
      activate(sums, layer, e, n);
#pragma unroll
      for (int i = 0; i < kChunk; i += 2) out.put((n + i) / 2, sums[i], sums[i + 1]);
    }
  }

  // Output tiles first .. first + kCount - 1 of a layer.
  template <int kInputs, int kCount>
  FASTLIK_DEVICE_MEMBER void product(const Factors<kInputs, kPrecision>& in, const Weights& w, int first,
                                     Tile8 (&sums)[kCount]) const {
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[n].at[i] = 0;
#pragma unroll
      for (int k = 0; k < kInputs; ++k) {
        const int at = ((first + n) * kInputs + k) * 32 + lane_;
        const uint2 high = w.high[at];
        if constexpr (kPrecision == kSplit) {
          const uint2 low = w.low[at];
          mma(sums[n].at, in.high[k], low.x, low.y);
          mma(sums[n].at, in.low[k], high.x, high.y);
        }
        mma(sums[n].at, in.high[k], high.x, high.y);
      }
    }
  }

  // Shifts and the activation function on `kCount` tiles from tile n on.
  template <int kCount>
  FASTLIK_DEVICE_MEMBER void activate(Tile8 (&tiles)[kCount], int64_t layer, int64_t e, int n) const {
    const float* time = a_.time_shift + (e * a_.hidden + layer) * kWidth + n * 8 + 2 * q_;
    const float* row = a_.row_shift ? a_.row_shift + (row_ * a_.hidden + layer) * kWidth + n * 8 + 2 * q_
                                    : nullptr;
#pragma unroll
    for (int t = 0; t < kCount; ++t)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        tiles[t].at[i] += time[t * 8 + i] + (row ? row[t * 8 + i] : 0);
    LogisticFamily family;
    const bool logistic = logistic_family(a_.function, family);  // the same for every lane
#pragma unroll
    for (int t = 0; t < kCount; ++t)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const FunctionDual y = logistic ? apply(family, tiles[t].at[i])
                                        : other_function(a_.function, a_.parameter, tiles[t].at[i]);
        tiles[t].at[i] = y.value;
        tiles[t].at[2 + i] *= y.slope;
      }
  }

  // Plain fp32: the lines lie in shared memory, two buffers in turn.
  FASTLIK_DEVICE_MEMBER float* line(int buffer, int line) const {
    return lines_ + (buffer * 16 + line) * kLine;
  }

  FASTLIK_DEVICE_MEMBER void store_tile(const Tile8& tile, int buffer, int n) const {
    for (int i = 0; i < 2; ++i) {
      line(buffer, g_)[n * 8 + 2 * q_ + i] = tile.at[i];
      line(buffer, g_ + 8)[n * 8 + 2 * q_ + i] = tile.at[2 + i];
    }
  }

  FASTLIK_DEVICE_MEMBER void store_lines(const Tile8 (&x)[kOutputTiles], int buffer) const {
    for (int n = 0; n < kOutputTiles; ++n) store_tile(x[n], buffer, n);
  }

  FASTLIK_DEVICE_MEMBER Tile8 product_in_memory(const Weights& w, int inputs, int outputs, int n,
                                                int buffer) const {
    Tile8 sums{};
    const float *upper = line(buffer, g_), *lower = line(buffer, g_ + 8);
    const float* column = w.full + n * 8 + 2 * q_;
    for (int k = 0; k < inputs; ++k) {
      const float left = column[k * outputs], right = column[k * outputs + 1];
      sums.at[0] += upper[k] * left;
      sums.at[1] += upper[k] * right;
      sums.at[2] += lower[k] * left;
      sums.at[3] += lower[k] * right;
    }
    return sums;
  }

  FASTLIK_DEVICE_MEMBER void hidden_in_memory(int64_t layer, int64_t e) const {
    const int from = int(layer % 2), inputs = layer == 0 ? kChainDim : kWidth;
    for (int n = 0; n < kWidth / 8; ++n) {
      Tile8 tile[1] = {product_in_memory(weights(layer), inputs, kWidth, n, from)};
      activate(tile, layer, e, n);
      store_tile(tile[0], 1 - from, n);
    }
  }

  const MlpChainArgs& a_;
  const int lane_, g_, q_;
  const unsigned char* weights_;
  float *slots_, *lines_;
  int64_t row_;
  bool present_;
  float y_[4];
};

// Bytes of shared memory of a block.
static inline int64_t chain_shared_bytes(const MlpChainArgs& a, int warps) {
  int64_t bytes = warps * a.slots * 4 * 32 * int64_t(sizeof(float));
  if (a.precision == kFull) return bytes + warps * 2 * 16 * (a.width + kLinePadding) * int64_t(sizeof(float));
  const int64_t inner = (a.width / 16) * (a.width / 8), ends = a.width / 8 + a.width / 16 * kOutputTiles;
  return bytes + (ends + (a.hidden - 1) * inner) * 256 * (a.precision == kSplit ? 2 : 1);
}

}  // namespace fastlik::cuda
