// An MLP on the samples of a block, with a tangent each.
//
// Eight samples are a group.  Its activations are a matrix of 16 lines: line g (0 .. 7) is sample g, line
// g + 8 its tangent.  In the tensor cores' layout lane (g, q) = (lane / 4, lane % 4) holds both lines of a
// feature, so that an activation function and its derivative need no exchange, and what a lane has formed of
// one product is, rounded, what the same lane of any warp reads for the next.  So activations lie in shared
// memory by lane; weights come from global memory (they stay in the caches), each used for two groups.
//
// Without tangents their lines hold the slopes of the activation functions, from which the trace follows in closed
// form.
#pragma once

#include "chain_product.h"

namespace fastlik::cuda {

// One copy for all places that use it: the compiler's time is short.
FASTLIK_SHARED_CODE FunctionDual other_function(int32_t function, float p, float x) {
  return apply(function, p, x);
}

template <int kPrecision>
class ChainNetwork {
 public:
  FASTLIK_DEVICE_MEMBER ChainNetwork(const MlpChain& n, int groups, unsigned char* shared)
      : n_(n), groups_(groups), lane_(thread() % 32), g_(lane_ / 4), q_(lane_ % 4), warp_(thread() / 32),
        outputs_(reinterpret_cast<float4*>(shared)),
        points_(reinterpret_cast<ChainPoint*>(outputs_ + groups * n.outputs / 8 * 32)),
        traces_(reinterpret_cast<float*>(points_ + groups * kSamples)),
        lines_(n.tiles, traces_ + groups * kSamples * n.trace_chunks) {
    const int64_t words = chain_shared_bytes(n, groups) / 4;  // padding must hold numbers
    for (int64_t i = thread(); i < words; i += threads()) reinterpret_cast<uint32_t*>(shared)[i] = 0;
    block_barrier();
  }

  // Whether this warp has a group of its own: the first ones do.
  FASTLIK_DEVICE_MEMBER bool owns() const { return warp_ < groups_; }

  // The warp's own group: where its samples are, and 16 features of each with their tangents, of which a lane
  // has those at 2 q, 2 q + 1, 2 q + 8 and 2 q + 9.  The same of the output.
  FASTLIK_DEVICE_MEMBER void place(const ChainPoint& point) {
    if (owns() && q_ == 0) points_[warp_ * kSamples + g_] = point;
  }

  FASTLIK_DEVICE_MEMBER void put(int tile, const float (&x)[4], const float (&v)[4]) {
    if (owns()) lines_.store(warp_, tile, {{x[0], x[1], v[0], v[1]}}, {{x[2], x[3], v[2], v[3]}});
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

  // The lane's share of the trace in closed form of its sample in the warp's own group.
  FASTLIK_DEVICE_MEMBER double trace() const {
    double sum = 0;
    for (int chunk = q_; owns() && chunk < n_.trace_chunks; chunk += 4) sum += traces_[trace_index(warp_, chunk)];
    return sum;
  }

  // All threads of the block together: outputs from inputs, with tangents or without, and the trace in closed form
  // if `traced`.
  FASTLIK_DEVICE_MEMBER void run(bool tangents, bool traced) {
    tangents_ = tangents;
    block_barrier();
    for (int64_t i = 0; i < n_.op_count + traced; ++i) {
      const ChainOp& op = n_.ops[i];
      if (op.code == kNormalised) {
        for (int group = warp_; group < groups_; group += threads() / 32) normalise(op, group);
      } else {
        const int pairs = groups_ / kTogether, items = int(op.outputs + 31) / 32 * pairs;
        for (int item = warp_; item < items; item += threads() / 32)
          form(op, item / pairs, item % pairs * kTogether);
      }
      block_barrier();
    }
  }

 private:
  FASTLIK_DEVICE_MEMBER int output_index(int group, int tile) const {
    return (group * int(n_.outputs / 8) + tile) * 32 + lane_;
  }
  FASTLIK_DEVICE_MEMBER int trace_index(int group, int chunk) const {
    return (group * int(n_.trace_chunks) + chunk) * kSamples + g_;
  }

  // Chunk `chunk` of an operation's result for two groups.
  FASTLIK_DEVICE_MEMBER void form(const ChainOp& op, int chunk, int first) {
    Tile8 tiles[kTogether][kChunk];
    if (op.code != kPart) {
      ChainProduct<kPrecision>(lines_).form(op, chunk, first, tangents_, tiles);
    } else {
#pragma unroll
      for (int m = 0; m < kTogether; ++m)
#pragma unroll
        for (int n = 0; n < kChunk; n += 2) {
          tiles[m][n] = tiles[m][n + 1] = Tile8{};
          if (inside(op, chunk, n)) lines_.load(first + m, op.a + chunk * 2 + n / 2, tiles[m][n], tiles[m][n + 1]);
        }
    }
#pragma unroll
    for (int m = 0; m < kTogether; ++m) {
      if (op.code == kClosedTrace) add_up(op, chunk, first + m, tiles[m]);
      else finish(op, chunk, first + m, tiles[m]);
    }
  }

  // Whether tiles n and n + 1 of the chunk belong to the result.
  FASTLIK_DEVICE_MEMBER static bool inside(const ChainOp& op, int chunk, int n) {
    return (chunk * kChunk + n) * 8 < op.outputs;
  }

  // A chunk's share of the trace.
  FASTLIK_DEVICE_MEMBER void add_up(const ChainOp& op, int chunk, int group, const Tile8 (&tiles)[kChunk]) const {
    float sum = 0;
#pragma unroll
    for (int n = 0; n < kChunk; n += 2) {
      Tile8 left{{0, 0, 1, 1}}, right = left;
      if (op.b >= 0) lines_.load(group, op.b + chunk * 2 + n / 2, left, right);
      for (int i = 2; i < 4; ++i) sum += tiles[n].at[i] * left.at[i] + tiles[n + 1].at[i] * right.at[i];
    }
    const double whole = quad_sum(sum);
    if (q_ == 0) traces_[trace_index(group, chunk)] = float(whole);
  }

  // All but the product, on a chunk of a group; then to where it is read.
  FASTLIK_DEVICE_MEMBER void finish(const ChainOp& op, int chunk, int group, Tile8 (&tiles)[kChunk]) {
    const ChainPoint point = points_[group * kSamples + g_];
    const int64_t feature = chunk * kChunk * 8 + 2 * q_;
    LogisticFamily family;
    const bool logistic = logistic_family(int32_t(op.function), family);  // the same for every lane
#pragma unroll
    for (int n = 0; n < kChunk; n += 2) {
      if (!inside(op, chunk, n)) continue;
      if (op.b >= 0) {
        Tile8 left, right;
        lines_.load(group, op.b + chunk * 2 + n / 2, left, right);
        for (int i = 0; i < 4; ++i) {
          tiles[n].at[i] += left.at[i];
          tiles[n + 1].at[i] += right.at[i];
        }
      }
#pragma unroll
      for (int side = n; side < n + 2; ++side) {
        Tile8& tile = tiles[side];
        if (op.shift.any()) {
          const float2 by = term(op.shift, point, feature + side * 8);
          tile.at[0] += by.x;
          tile.at[1] += by.y;
        }
        if (op.factor.any()) {
          const float2 by = term(op.factor, point, feature + side * 8);
          for (int i = 0; i < 4; ++i) tile.at[i] *= i % 2 ? by.y : by.x;
        }
        if (logistic) activate(tile, [&](float x) { return apply(family, x); });
        else if (op.function >= 0)
          activate(tile, [&](float x) { return other_function(int32_t(op.function), float(op.parameter), x); });
        if (op.out < 0) outputs_[output_index(group, chunk * kChunk + side)] = as_float4(tile);
      }
      if (op.out >= 0) lines_.store(group, op.out + chunk * 2 + n / 2, tiles[n], tiles[n + 1]);
    }
  }

  FASTLIK_DEVICE_MEMBER static float4 as_float4(const Tile8& t) { return {t.at[0], t.at[1], t.at[2], t.at[3]}; }

  template <class F>
  FASTLIK_DEVICE_MEMBER void activate(Tile8& tile, F f) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const FunctionDual y = f(tile.at[i]);
      tile.at[i] = y.value;
      tile.at[2 + i] = tangents_ ? y.slope * tile.at[2 + i] : y.slope;
    }
  }

  // Features `feature` and the next of what depends on the time and the condition alone.
  FASTLIK_DEVICE_MEMBER float2 term(const ChainTerm& term, const ChainPoint& point, int64_t feature) const {
    float2 sum{};
    if (term.time >= 0) {
      const float* c = n_.times + (point.panel * n_.features + term.time + feature) * n_.coefficients;
      sum = n_.coefficients == 1 ? float2{c[0], c[1]} : float2{cubic(c, point.x), cubic(c + 4, point.x)};
    }
    if (term.row >= 0 && point.row >= 0) {
      const float* row = n_.rows + point.row * n_.row_features + term.row + feature;
      sum.x += row[0];
      sum.y += row[1];
    }
    return sum;
  }

  FASTLIK_DEVICE_MEMBER static float cubic(const float* coefficients, float x) {
    const float4 c = read_only(reinterpret_cast<const float4*>(coefficients));
    return c.x + x * (c.y + x * (c.z + x * c.w));
  }

  // A whole group's lines, by one warp.
  FASTLIK_DEVICE_MEMBER void normalise(const ChainOp& op, int group) {
    const int tiles = int(op.outputs / 16);
    double sum = 0, d_sum = 0, square = 0, product = 0;
    for (int k = 0; k < tiles; ++k)
      visit(op, group, k, [&](float& x, float& v) { sum += x, d_sum += v; });
    const float mean = float(quad_sum(sum) / double(op.width)), d_mean = float(quad_sum(d_sum) / double(op.width));
    for (int k = 0; k < tiles; ++k)
      visit(op, group, k, [&](float& x, float& v) {
        square += double(x - mean) * double(x - mean);
        product += double(x - mean) * double(v - d_mean);
      });
    const double variance = quad_sum(square) / double(op.width) + op.parameter;
    const float factor = float(1 / std::sqrt(variance));
    const float slope = float(quad_sum(product) / double(op.width) / variance);
    for (int k = 0; k < tiles; ++k) {
      Tile8 tile[2];
      lines_.load(group, op.a + k, tile[0], tile[1]);
      each(op, k, tile, [&](float& x, float& v) {
        x -= mean;
        v = factor * (v - d_mean - slope * x);
        x *= factor;
      });
      lines_.store(group, op.out + k, tile[0], tile[1]);
    }
  }

  template <class F>
  FASTLIK_DEVICE_MEMBER void visit(const ChainOp& op, int group, int k, F f) const {
    Tile8 tile[2];
    lines_.load(group, op.a + k, tile[0], tile[1]);
    each(op, k, tile, f);
  }

  // f(value, tangent) of the lane's features in tile k.
  template <class F>
  FASTLIK_DEVICE_MEMBER void each(const ChainOp& op, int k, Tile8 (&tile)[2], F f) const {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (k * 16 + i / 2 * 8 + 2 * q_ + i % 2 < op.width) f(tile[i / 2].at[i % 2], tile[i / 2].at[2 + i % 2]);
  }

  const MlpChain& n_;
  const int groups_, lane_, g_, q_, warp_;
  bool tangents_ = false;  // of the evaluation under way
  float4* outputs_;
  ChainPoint* points_;
  float* traces_;  // (groups, chunks, samples)
  ChainLines<kPrecision> lines_;
};

}  // namespace fastlik::cuda
