// A plain MLP on the samples of a block, with a tangent each.
//
// Eight samples are a group.  Its activations are a matrix of 16 lines: line g (0 .. 7) is sample g, line
// g + 8 its tangent.  In the tensor cores' layout lane (g, q) = (lane / 4, lane % 4) holds both lines of a
// feature, so that an activation function and its derivative need no exchange, and what a lane has formed of
// one product is, rounded, what the same lane of any warp reads for the next.  So activations lie in shared
// memory by lane; weights come from global memory (they stay in the caches), each used for two groups.
#pragma once

#include "fastlik/mlp_chain.h"
#include "warp.h"

namespace fastlik::cuda {

// One copy for all places that use it: the compiler's time is short.
FASTLIK_SHARED_CODE FunctionDual other_function(int32_t function, float p, float x) {
  return apply(function, p, x);
}

// Four numbers of a lane in each 16 x 8 tile: line g at features 2 q and 2 q + 1, then line g + 8.
struct Tile8 {
  float at[4];
};

// A lane's factors of a 16 x 16 tile of activations, and of an 8 x 16 tile of weights.
template <int kPrecision>
struct Factors {
  uint4 high, low;
};
template <>
struct Factors<kHalf> {
  uint4 high;
};
template <int kPrecision>
struct Weight {
  uint4 both;  // high halves, then low ones
};
template <>
struct Weight<kHalf> {
  uint2 both;
};

// What rounding two floats to halves has left of them.
FASTLIK_DEVICE uint32_t rest(uint32_t rounded, float x, float y) {
  const float2 pair = from_halves(rounded);
  return to_halves(x - pair.x, y - pair.y);
}

template <int kPrecision>
class ChainNetwork {
 public:
  FASTLIK_DEVICE_MEMBER ChainNetwork(const MlpChain& n, int groups, unsigned char* shared)
      : n_(n), groups_(groups), lane_(thread() % 32), g_(lane_ / 4), q_(lane_ % 4), warp_(thread() / 32) {
    outputs_ = reinterpret_cast<float4*>(shared);
    points_ = reinterpret_cast<ChainPoint*>(outputs_ + groups * n.outputs / 8 * 32);
    lines_ = reinterpret_cast<unsigned char*>(points_ + groups * kSamples);
    logistic_ = logistic_family(n.function, family_);
  }

  // Whether this warp has a group of its own: the first ones do.
  FASTLIK_DEVICE_MEMBER bool owns() const { return warp_ < groups_; }

  // The warp's own group: where its samples are, and 16 features of each with their tangents, of which a lane
  // has those at 2 q, 2 q + 1, 2 q + 8 and 2 q + 9.  The same of the output.
  FASTLIK_DEVICE_MEMBER void place(const ChainPoint& point) {
    if (owns() && q_ == 0) points_[warp_ * kSamples + g_] = point;
  }

  FASTLIK_DEVICE_MEMBER void put(int tile, const float (&x)[4], const float (&v)[4]) {
    if (owns()) store(0, warp_, tile, {{x[0], x[1], v[0], v[1]}}, {{x[2], x[3], v[2], v[3]}});
  }

  FASTLIK_DEVICE_MEMBER void get(int tile, float (&x)[4], float (&v)[4]) const {
    for (int i = 0; i < 2; ++i) {
      const float4 at = owns() ? outputs_[output_index(warp_, 2 * tile + i)] : float4{};
      x[2 * i] = at.x;
      x[2 * i + 1] = at.y;
      v[2 * i] = at.z;
      v[2 * i + 1] = at.w;
    }
  }

  // All threads of the block together: outputs from inputs.
  FASTLIK_DEVICE_MEMBER void run() {
    block_barrier();
    const int pairs = groups_ / kTogether;
    for (int layer = 0; layer <= n_.hidden; ++layer) {
      const bool last = layer == n_.hidden;
      const int inputs = int(layer == 0 ? n_.inputs : n_.width), outputs = int(last ? n_.outputs : n_.width);
      const int items = outputs / (8 * kChunk) * pairs;
      for (int item = warp_; item < items; item += threads() / 32) {
        const int chunk = item / pairs, first = item % pairs * kTogether;
        Tile8 sums[kTogether][kChunk];
        product(layer, inputs, outputs, chunk, first, sums);
#pragma unroll
        for (int m = 0; m < kTogether; ++m) finish(layer, last, chunk, first + m, sums[m]);
      }
      block_barrier();
    }
  }

 private:
  FASTLIK_DEVICE_MEMBER int output_index(int group, int tile) const {
    return (group * int(n_.outputs / 8) + tile) * 32 + lane_;
  }

  FASTLIK_DEVICE_MEMBER int tiles() const {  // that a buffer has room for
    return int(n_.width > n_.inputs ? n_.width : n_.inputs) / 16;
  }

  // Half precision: a buffer's factors by group, tile and lane.
  FASTLIK_DEVICE_MEMBER Factors<kPrecision>& factors(int buffer, int group, int tile) const {
    return reinterpret_cast<Factors<kPrecision>*>(
        lines_)[((buffer * groups_ + group) * tiles() + tile) * 32 + lane_];
  }

  // Plain fp32: a buffer's lines, one after another.
  FASTLIK_DEVICE_MEMBER float* line(int buffer, int group, int line) const {
    return reinterpret_cast<float*>(lines_) +
           ((buffer * groups_ + group) * 16 + line) * (tiles() * 16 + kLinePadding);
  }

  // 16 features of a group, formed as two tiles of 8.
  FASTLIK_DEVICE_MEMBER void store(int buffer, int group, int tile, const Tile8& left, const Tile8& right) {
    const float *l = left.at, *r = right.at;
    if constexpr (kPrecision == kFull) {
      for (int i = 0; i < 2; ++i) {
        float *value = line(buffer, group, g_) + tile * 16 + 2 * q_ + i;
        float *tangent = line(buffer, group, g_ + 8) + tile * 16 + 2 * q_ + i;
        value[0] = l[i];
        value[8] = r[i];
        tangent[0] = l[2 + i];
        tangent[8] = r[2 + i];
      }
    } else {
      Factors<kPrecision> f;
      f.high = {to_halves(l[0], l[1]), to_halves(l[2], l[3]), to_halves(r[0], r[1]), to_halves(r[2], r[3])};
      if constexpr (kPrecision == kSplit)
        f.low = {rest(f.high.x, l[0], l[1]), rest(f.high.y, l[2], l[3]), rest(f.high.z, r[0], r[1]),
                 rest(f.high.w, r[2], r[3])};
      factors(buffer, group, tile) = f;
    }
  }

  // Tiles kChunk * chunk .. of a layer's output for two groups.
  FASTLIK_DEVICE_MEMBER void product(int layer, int inputs, int outputs, int chunk, int first,
                                     Tile8 (&sums)[kTogether][kChunk]) const {
#pragma unroll
    for (int m = 0; m < kTogether; ++m)
#pragma unroll
      for (int n = 0; n < kChunk; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[m][n].at[i] = 0;
    if constexpr (kPrecision == kFull) {
      full_product(layer, inputs, outputs, chunk, first, sums);
    } else {
      const int steps = inputs / 16;
      const auto* weights =
          static_cast<const Weight<kPrecision>*>(n_.weights[layer]) + chunk * steps * kChunk * 32 + lane_;
      Weight<kPrecision> now[kChunk], next[kChunk];
      load(weights, now);
      for (int k = 0; k < steps; ++k) {
        if (k + 1 < steps) load(weights + (k + 1) * kChunk * 32, next);  // on their way while these are used
#pragma unroll
        for (int m = 0; m < kTogether; ++m) {
          const Factors<kPrecision> a = factors(layer % 2, first + m, k);
#pragma unroll
          for (int n = 0; n < kChunk; ++n) multiply(sums[m][n].at, a, now[n]);
        }
#pragma unroll
        for (int n = 0; n < kChunk; ++n) now[n] = next[n];
      }
    }
  }

  FASTLIK_DEVICE_MEMBER static void load(const Weight<kPrecision>* from, Weight<kPrecision> (&to)[kChunk]) {
#pragma unroll
    for (int n = 0; n < kChunk; ++n) to[n].both = read_only(&from[n * 32].both);
  }

  FASTLIK_DEVICE_MEMBER static void multiply(float (&sum)[4], const Factors<kPrecision>& a,
                                             const Weight<kPrecision>& b) {
    if constexpr (kPrecision == kSplit) {
      mma(sum, a.high, b.both.z, b.both.w);
      mma(sum, a.low, b.both.x, b.both.y);
    }
    mma(sum, a.high, b.both.x, b.both.y);
  }

  FASTLIK_DEVICE_MEMBER void full_product(int layer, int inputs, int outputs, int chunk, int first,
                                          Tile8 (&sums)[kTogether][kChunk]) const {
    const float* weights = static_cast<const float*>(n_.weights[layer]) + chunk * kChunk * 8 + 2 * q_;
    for (int k = 0; k < inputs; ++k) {
      float2 w[kChunk];
#pragma unroll
      for (int n = 0; n < kChunk; ++n)
        w[n] = read_only(reinterpret_cast<const float2*>(weights + int64_t(k) * outputs + n * 8));
#pragma unroll
      for (int m = 0; m < kTogether; ++m) {
        const float value = line(layer % 2, first + m, g_)[k];
        const float tangent = line(layer % 2, first + m, g_ + 8)[k];
#pragma unroll
        for (int n = 0; n < kChunk; ++n) {
          sums[m][n].at[0] += value * w[n].x;
          sums[m][n].at[1] += value * w[n].y;
          sums[m][n].at[2] += tangent * w[n].x;
          sums[m][n].at[3] += tangent * w[n].y;
        }
      }
    }
  }

  // Shifts, and the activation function of hidden layers, on a chunk of a group; then to where it is read.
  FASTLIK_DEVICE_MEMBER void finish(int layer, bool last, int chunk, int group, Tile8 (&tiles)[kChunk]) {
    const ChainPoint point = points_[group * kSamples + g_];
    const int64_t feature = layer * n_.width + chunk * kChunk * 8 + 2 * q_;
    const float* shifts = n_.shifts + (point.panel * n_.features() + feature) * n_.coefficients;
    const float* row = n_.row_shifts && !last && point.row >= 0
                           ? n_.row_shifts + point.row * n_.hidden * n_.width + feature
                           : nullptr;
#pragma unroll
    for (int n = 0; n < kChunk; ++n) {
      shift(tiles[n], shifts + n * 8 * n_.coefficients, point.x);
      if (row) {
        tiles[n].at[0] += row[n * 8];
        tiles[n].at[1] += row[n * 8 + 1];
      }
      if (last) outputs_[output_index(group, chunk * kChunk + n)] = as_float4(tiles[n]);
      else activate(tiles[n]);
    }
    if (last) return;
#pragma unroll
    for (int n = 0; n < kChunk; n += 2)
      store((layer + 1) % 2, group, (chunk * kChunk + n) / 2, tiles[n], tiles[n + 1]);
  }

  FASTLIK_DEVICE_MEMBER static float4 as_float4(const Tile8& t) { return {t.at[0], t.at[1], t.at[2], t.at[3]}; }

  FASTLIK_DEVICE_MEMBER void shift(Tile8& tile, const float* shifts, float x) const {
    if (n_.coefficients == 1) {  // the same for every lane
      tile.at[0] += shifts[0];
      tile.at[1] += shifts[1];
      return;
    }
    for (int i = 0; i < 2; ++i) {
      const float4 c = read_only(reinterpret_cast<const float4*>(shifts) + i);
      tile.at[i] += c.x + x * (c.y + x * (c.z + x * c.w));
    }
  }

  FASTLIK_DEVICE_MEMBER void activate(Tile8& tile) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const FunctionDual y = logistic_ ? apply(family_, tile.at[i])  // the same for every lane
                                       : other_function(n_.function, n_.parameter, tile.at[i]);
      tile.at[i] = y.value;
      tile.at[2 + i] *= y.slope;
    }
  }

  const MlpChain& n_;
  const int groups_, lane_, g_, q_, warp_;
  bool logistic_;
  LogisticFamily family_{};
  float4* outputs_;
  ChainPoint* points_;
  unsigned char* lines_;
};

}  // namespace fastlik::cuda
