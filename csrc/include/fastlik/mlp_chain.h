// An MLP as a chain of operations on lines of features in shared memory: what the CUDA kernels take.
// Specification: fastlik/ops/mlp/reference.py, as for the CPU.
#pragma once

#include <cmath>
#include <cstdint>

#include "fastlik/mlp.h"

namespace fastlik {

constexpr int kChunk = 4;  // tiles of 8 outputs that a warp forms at a time

// fp16 products summed in fp32; the same with both factors split into a high and a low half, which gives
// fp32's accuracy; plain fp32.
enum ChainPrecision : int32_t { kHalf = 0, kSplit = 1, kFull = 2 };

enum ChainCode : int64_t { kProduct, kPart, kNormalised, kClosedTrace };

// What depends on the time and on the condition alone, their sum: features of the tables; below 0: nothing.
struct ChainTerm {
  int64_t time, row;
  FASTLIK_METHOD bool any() const { return time >= 0 || row >= 0; }
};

// out = f(factor * (x + b + shift)), where x is the product of scale * weight and a (kProduct) or a itself;
// kNormalised: out = (a - mean) / sqrt(variance + parameter) over `width` features.  out, a and b are tiles of 16
// features, out < 0 is the network's output, b < 0 is left out, and so is f where function < 0.  kClosedTrace:
// tr J = sum of (scale * weight a') * b', where a' and b' are the tangents' lines, which then hold the slopes f';
// where b < 0, b' = 1.
// A weight is padded with zeros to `inputs` (of 16) and `outputs` (of 32); in 16 x 8 tiles (input, output), by
// chunk of output tiles, input tile, tile of the chunk, lane of a warp.  kSplit: the low halves beside the high
// ones.  kFull: (inputs, outputs) float32.
struct ChainOp {
  int64_t code, function, out, a, b, width, inputs, outputs;
  ChainTerm shift, factor;
  const void* weight;
  double scale, parameter;
};

// Everything lies on the device.
struct MlpChain {
  int64_t dim, inputs, outputs;  // the state padded to a multiple of 16, the network's output to one of 32
  int64_t op_count, tiles;       // tiles of 16 features of each line
  int64_t trace_chunks;          // of the operation after these, a kClosedTrace; 0 where there is none
  int32_t precision;
  const ChainOp* ops;
  // (panels, features, coefficients) of what depends on the time: on each panel of the clock a polynomial in x,
  // -1 .. 1 from end to end; one coefficient: of a grid, panel e is evaluation e.
  int64_t panels, features, coefficients;
  const double* breaks;  // (panels + 1,), increasing; null: a grid
  const float* times;
  int64_t row_features;
  const float* rows;  // (rows, row_features), what depends on the condition, or null
  // Room for the rows under way: `warps` to each of `blocks`, and the queue of rows to come.
  int64_t warps, blocks;
  void* memory;
  int64_t* queue;
};

namespace cuda {

constexpr int kSamples = 8;      // of a group
constexpr int kTogether = 2;     // groups that a warp works on at a time
constexpr int kLinePadding = 4;  // floats, against bank conflicts

// Where a sample is: its row of the batch (below 0: none), its panel of the clock and the place there.
struct ChainPoint {
  int32_t row, panel;
  float x;
};

// Bytes of shared memory of a block of `groups`.
FASTLIK_MATH int64_t chain_shared_bytes(const MlpChain& n, int64_t groups) {
  const int64_t line = n.precision == kHalf    ? 2 * 16 * n.tiles
                       : n.precision == kSplit ? 4 * 16 * n.tiles
                                               : 4 * (16 * n.tiles + kLinePadding);
  const int64_t sample = int64_t(sizeof(ChainPoint)) + n.trace_chunks * int64_t(sizeof(float));
  return groups * (16 * line + n.outputs / 8 * 32 * 16 + kSamples * sample);
}

}  // namespace cuda

struct FunctionDual {
  float value, slope;
};

#ifdef __CUDA_ARCH__
FASTLIK_MATH float fast_exp(float x) { return __expf(x); }
FASTLIK_MATH float fast_log(float x) { return __logf(x); }
#else
FASTLIK_MATH float fast_exp(float x) { return std::exp(x); }
FASTLIK_MATH float fast_log(float x) { return std::log(x); }
#endif

// (offset + factor x) s(linear x + cube x^3) - shift with the logistic function s: four functions in one.
struct LogisticFamily {
  float offset, factor, linear, cube, shift;
};

FASTLIK_MATH bool logistic_family(int32_t function, LogisticFamily& f) {
  if (function == kSilu) f = {0, 1, 1, 0, 0};
  else if (function == kGeluTanh) f = {0, 1, 1.59576912f, 0.0713548163f, 0};
  else if (function == kTanh) f = {2, 0, 2, 0, 1};
  else if (function == kSigmoid) f = {1, 0, 1, 0, 0};
  else return false;
  return true;
}

FASTLIK_MATH FunctionDual apply(const LogisticFamily& f, float x) {
  // beyond, s is 0 or 1 and its slope 0; NaN stays
  const float y = x < -90 ? -90.0f : x > 90 ? 90.0f : x, square = y * y;
  const float u = y * (f.linear + f.cube * square);
  const float e = fast_exp(u < 0 ? u : -u), r = 1 / (1 + e);
  const float s = u < 0 ? e * r : r, front = f.offset + f.factor * (x < -90 ? y : x);
  const float slope = e * r * r * (f.linear + 3 * f.cube * square);
  return {front * s - f.shift, f.factor * s + (f.offset + f.factor * y) * slope};
}

// The other activation functions, to an absolute accuracy of fp32.
FASTLIK_MATH FunctionDual apply(int32_t function, float p, float x) {
  switch (function) {
    case kGelu: {  // (1 + a) Phi(-a) / phi(a) is a polynomial in t: csrc/cpu/functions.h
      const float a = std::fabs(x), t = (a - 3) / (a + 3);
      const float c[] = {-0.000323416181f, -0.00152520654f, -0.00092128591f, 0.00757048585f,
                         0.00292119463f,   -0.0569746331f,  0.113208486f,    -0.0411894187f,
                         -0.241956694f,    1.2183612f};
      float mills = c[0];
      for (int i = 1; i < 10; ++i) mills = mills * t + c[i];
      const float density = 0.39894228f * fast_exp(-0.5f * x * x);
      const float tail = density * mills / (1 + a), mass = x > 0 ? 1 - tail : tail;
      return {x * mass, mass + x * density};
    }
    case kSoftplus: {
      const float z = p * x, e = fast_exp(-std::fabs(z)), r = 1 / (1 + e);
      if (z > 20) return {x, 1};
      return {((z < 0 ? 0 : z) + fast_log(1 + e)) / p, z < 0 ? e * r : r};
    }
    case kElu: {
      const float e = fast_exp(x > 0 ? 0 : x);
      return {x > 0 ? x : p * (e - 1), x > 0 ? 1.0f : p * e};
    }
    case kLeakyRelu: return {x > 0 ? x : p * x, x > 0 ? 1.0f : p};
    default: return {std::sin(x), std::cos(x)};
  }
}

}  // namespace fastlik
