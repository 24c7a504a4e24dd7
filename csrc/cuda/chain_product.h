// Products of weights and a block's activations.
//
// Without tangents a product needs half of the lines, the values or, of a kClosedTrace, the slopes: those of two
// groups make up one matrix.
#pragma once

#include "chain_lines.h"

namespace fastlik::cuda {

// A lane's factors of an 8 x 16 tile of weights.
template <int kPrecision>
struct Weight {
  uint4 both;  // high halves, then low ones
};
template <>
struct Weight<kHalf> {
  uint2 both;
};

template <int kPrecision>
class ChainProduct {
 public:
  FASTLIK_DEVICE_MEMBER explicit ChainProduct(const ChainLines<kPrecision>& lines)
      : lines_(lines), lane_(thread() % 32), g_(lane_ / 4), q_(lane_ % 4) {}

  // Chunk `chunk` for groups `first` and on, of values and tangents, or of the half of the lines that is needed.
  FASTLIK_DEVICE_MEMBER void form(const ChainOp& op, int chunk, int first, bool tangents,
                                  Tile8 (&sums)[kTogether][kChunk]) const {
#pragma unroll
    for (int m = 0; m < kTogether; ++m)
#pragma unroll
      for (int n = 0; n < kChunk; ++n) sums[m][n] = Tile8{};
    if constexpr (kPrecision == kFull) full_product(op, chunk, first, sums);
    else if (tangents) half_product<true>(op, chunk, first, sums);
    else half_product<false>(op, chunk, first, sums);
    const float scale = float(op.scale);
#pragma unroll
    for (int m = 0; m < kTogether; ++m)
#pragma unroll
      for (int n = 0; n < kChunk; ++n)
        for (float& sum : sums[m][n].at) sum *= scale;
  }

 private:
  // By the tensor cores.
  template <bool kTangents>
  FASTLIK_DEVICE_MEMBER void half_product(const ChainOp& op, int chunk, int first,
                                          Tile8 (&sums)[kTogether][kChunk]) const {
    const bool slopes = op.code == kClosedTrace;
    const int steps = int(op.inputs / 16);
    const auto* weights = static_cast<const Weight<kPrecision>*>(op.weight) + chunk * steps * kChunk * 32 + lane_;
    Weight<kPrecision> now[kChunk], next[kChunk];
    fetch(weights, now);
    for (int k = 0; k < steps; ++k) {
      if (k + 1 < steps) fetch(weights + (k + 1) * kChunk * 32, next);  // on their way while these are used
#pragma unroll
      for (int m = 0; m < (kTangents ? kTogether : 1); ++m) {
        const auto a = kTangents ? lines_.factors(first + m, op.a + k) : lines_.pair(first, op.a + k, slopes);
#pragma unroll
        for (int n = 0; n < kChunk; ++n) multiply(sums[m][n].at, a, now[n]);
      }
#pragma unroll
      for (int n = 0; n < kChunk; ++n) now[n] = next[n];
    }
    if (!kTangents) separate(sums, slopes);
  }

  // Two groups' values (or slopes), which sums[0] has both, to where those of each belong.
  FASTLIK_DEVICE_MEMBER static void separate(Tile8 (&sums)[kTogether][kChunk], bool slopes) {
    static_assert(kTogether == 2);
#pragma unroll
    for (int n = 0; n < kChunk; ++n) {
      const float(&c)[4] = sums[0][n].at;
      sums[1][n] = slopes ? Tile8{{0, 0, c[2], c[3]}} : Tile8{{c[2], c[3], 0, 0}};
      sums[0][n] = slopes ? Tile8{{0, 0, c[0], c[1]}} : Tile8{{c[0], c[1], 0, 0}};
    }
  }

  FASTLIK_DEVICE_MEMBER static void fetch(const Weight<kPrecision>* from, Weight<kPrecision> (&to)[kChunk]) {
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

  FASTLIK_DEVICE_MEMBER void full_product(const ChainOp& op, int chunk, int first,
                                          Tile8 (&sums)[kTogether][kChunk]) const {
    const float* weights = static_cast<const float*>(op.weight) + chunk * kChunk * 8 + 2 * q_;
    for (int k = 0; k < op.inputs; ++k) {
      float2 w[kChunk];
#pragma unroll
      for (int n = 0; n < kChunk; ++n)
        w[n] = read_only(reinterpret_cast<const float2*>(weights + k * op.outputs + n * 8));
#pragma unroll
      for (int m = 0; m < kTogether; ++m) {
        const float value = lines_.line(first + m, g_, op.a)[k], tangent = lines_.line(first + m, g_ + 8, op.a)[k];
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

  const ChainLines<kPrecision>& lines_;
  const int lane_, g_, q_;
};

}  // namespace fastlik::cuda
