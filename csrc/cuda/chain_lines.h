// The activations of a block's samples, in shared memory.
//
// Half precision: by group, tile of 16 features and lane, the four registers that a lane holds of a factor of the
// tensor cores (PTX ISA, mma.m16n8k16); kSplit: the high halves of a tile, then the low ones.  Plain fp32: line
// after line.
#pragma once

#include "fastlik/mlp_chain.h"
#include "warp.h"

namespace fastlik::cuda {

// Four numbers of a lane in each 16 x 8 tile: line g at features 2 q and 2 q + 1, then line g + 8.
struct Tile8 {
  float at[4];
};

template <int kPrecision>
struct Factors {
  uint4 high, low;
};
template <>
struct Factors<kHalf> {
  uint4 high;
};

// What rounding two floats to halves has left of them.
FASTLIK_DEVICE uint32_t rest(uint32_t rounded, float x, float y) {
  const float2 pair = from_halves(rounded);
  return to_halves(x - pair.x, y - pair.y);
}

template <int kPrecision>
class ChainLines {
 public:
  FASTLIK_DEVICE_MEMBER ChainLines(int64_t tiles, void* memory)
      : tiles_(int(tiles)), lane_(thread() % 32), g_(lane_ / 4), q_(lane_ % 4), memory_(memory) {}

  // Half precision, as factors of the tensor cores.
  FASTLIK_DEVICE_MEMBER Factors<kPrecision> factors(int group, int64_t tile) const {
    const uint4* from = at(group, tile);
    if constexpr (kPrecision == kSplit) return {from[0], from[32]};
    else return {from[0]};
  }

  // The same of the values of this group and the next alone, or of their tangents: lines 0 .. 7 and 8 .. 15.
  FASTLIK_DEVICE_MEMBER Factors<kPrecision> pair(int group, int64_t tile, bool tangents) const {
    const Factors<kPrecision> a = factors(group, tile), b = factors(group + 1, tile);
    if constexpr (kPrecision == kSplit) return {side(a.high, b.high, tangents), side(a.low, b.low, tangents)};
    else return {side(a.high, b.high, tangents)};
  }

  // Plain fp32: features 16 tile and on of a line.
  FASTLIK_DEVICE_MEMBER float* line(int group, int line, int64_t tile) const {
    return static_cast<float*>(memory_) + (group * 16 + line) * (tiles_ * 16 + kLinePadding) + tile * 16;
  }

  // 16 features of a group, as two tiles of 8.
  FASTLIK_DEVICE_MEMBER void store(int group, int64_t tile, const Tile8& left, const Tile8& right) const {
    const float *l = left.at, *r = right.at;
    if constexpr (kPrecision == kFull) {
      for (int i = 0; i < 2; ++i) {
        float *value = line(group, g_, tile) + 2 * q_ + i, *tangent = line(group, g_ + 8, tile) + 2 * q_ + i;
        value[0] = l[i];
        value[8] = r[i];
        tangent[0] = l[2 + i];
        tangent[8] = r[2 + i];
      }
    } else {
      uint4* to = at(group, tile);
      const uint4 f{to_halves(l[0], l[1]), to_halves(l[2], l[3]), to_halves(r[0], r[1]), to_halves(r[2], r[3])};
      to[0] = f;
      if constexpr (kPrecision == kSplit)
        to[32] = {rest(f.x, l[0], l[1]), rest(f.y, l[2], l[3]), rest(f.z, r[0], r[1]), rest(f.w, r[2], r[3])};
    }
  }

  FASTLIK_DEVICE_MEMBER void load(int group, int64_t tile, Tile8& left, Tile8& right) const {
    if constexpr (kPrecision == kFull) {
      for (int i = 0; i < 2; ++i) {
        const float *value = line(group, g_, tile) + 2 * q_ + i, *tangent = line(group, g_ + 8, tile) + 2 * q_ + i;
        left.at[i] = value[0];
        right.at[i] = value[8];
        left.at[2 + i] = tangent[0];
        right.at[2 + i] = tangent[8];
      }
    } else {
      const Factors<kPrecision> f = factors(group, tile);
      left = right = Tile8{};
      add_halves(f.high, left, right);
      if constexpr (kPrecision == kSplit) add_halves(f.low, left, right);
    }
  }

 private:
  FASTLIK_DEVICE_MEMBER uint4* at(int group, int64_t tile) const {
    constexpr int halves = kPrecision == kSplit ? 2 : 1;
    return static_cast<uint4*>(memory_) + (group * tiles_ + int(tile)) * halves * 32 + lane_;
  }

  FASTLIK_DEVICE_MEMBER static uint4 side(const uint4& a, const uint4& b, bool tangents) {
    return tangents ? uint4{a.y, b.y, a.w, b.w} : uint4{a.x, b.x, a.z, b.z};
  }

  FASTLIK_DEVICE_MEMBER static void add_halves(const uint4& f, Tile8& left, Tile8& right) {
    const float2 pairs[4] = {from_halves(f.x), from_halves(f.y), from_halves(f.z), from_halves(f.w)};
    for (int i = 0; i < 2; ++i) {
      left.at[2 * i] += pairs[i].x;
      left.at[2 * i + 1] += pairs[i].y;
      right.at[2 * i] += pairs[2 + i].x;
      right.at[2 * i + 1] += pairs[2 + i].y;
    }
  }

  const int tiles_, lane_, g_, q_;
  void* memory_;
};

}  // namespace fastlik::cuda
