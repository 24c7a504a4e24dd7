// A multilayer perceptron as a list of operations, and the integration of its ODE.
// Specification, in plain PyTorch: fastlik/ops/mlp/reference.py.
#pragma once

#include <cmath>
#include <cstdint>

#include "fastlik/philox.h"
#include "fastlik/rk_step.h"

namespace fastlik {

enum MlpFunction : int32_t {
  kSilu, kGelu, kGeluTanh, kTanh, kSigmoid, kSoftplus, kElu, kLeakyRelu,
  kSin, kCos, kExp, kLog, kSqrt, kReciprocal, kSquare,
};

enum MlpCode : int32_t {
  kLinear,     // out = b + weight a; b may be left out
  kFunction,   // out = f(a); b, if there, receives f'(a)
  kAdd,        // out = a + b
  kMultiply,   // out = a * b; here and above a b of width 1 serves every feature
  kNormalise,  // out = (a - mean) / sqrt(variance + parameter) over the features
  kCopy,       // out = a, where out may be a part of a buffer
  kDot,        // out = sum of a * b; values only
};

// What a buffer depends on (bits).  Without any it is constant.  Buffers that depend on the state have
// tangents.
enum MlpDepends : int32_t { kOnTime = 1, kOnCondition = 2, kOnState = 4 };

// Features [offset, offset + width) of a buffer; buffer -1 is left out.
struct MlpView {
  int32_t buffer, offset, width;
};

struct MlpOp {
  int32_t code, function, weight, depends;
  MlpView out, a, b;
  double parameter;
};

struct MlpBuffer {
  int32_t width, depends;
  int64_t constant;  // where in `numbers` a constant buffer lies
};

// Panels of kMlpPanelBytes of outputs, zero beyond `outputs`: numbers[offset + (panel, input, output)].
struct MlpWeight {
  int64_t offset;
  int32_t outputs, inputs;
};

constexpr int kMlpPanelBytes = 64;  // also what the rows of buffers are padded to
constexpr int kMlpMaxBuffers = 128;
constexpr int kMlpMaxConditions = 8;

struct MlpNetwork {
  const MlpOp* ops;
  const MlpBuffer* buffers;
  const MlpWeight* weights;
  const void* numbers;  // float or double
  int32_t op_count;     // the first value_ops of them suffice for the value
  int32_t value_ops, buffer_count, dim;
  int32_t weight_count;  // where gradients are wanted, as many transposed ones follow
  int32_t input, time, condition_count;
  int32_t conditions[kMlpMaxConditions];
  MlpView output;
  MlpView trace;  // tr d output / d input in closed form; buffer -1: there is none
};

enum MlpTraceMode : int32_t { kNoTrace, kProbes, kExact, kClosedForm };

// How divergences are taken, and with which random numbers.
struct MlpTrace {
  int32_t mode, kind;
  int64_t probes, first_draw;
  uint64_t seed;
  bool fresh;
  FASTLIK_METHOD int64_t columns() const { return mode == kNoTrace ? 0 : mode == kProbes ? probes : 1; }
  // That a divergence needs beside each row.
  FASTLIK_METHOD int64_t tangents(int64_t dim) const { return mode == kProbes ? probes : mode == kExact ? dim : 0; }
};

struct MlpRows {
  int64_t rows;
  const void* state;  // (rows, dim), contiguous, as are the conditions (rows, width)
  const void* conditions[kMlpMaxConditions];
  const int64_t* ids;  // of the rows, for their probes
};

// The network itself: value and derivatives at a time for each row.
struct MlpEvaluateArgs {
  MlpRows in;
  const double* times;   // (rows,)
  int64_t tangents;      // vectors (tangents, rows, dim)
  const void* vectors;
  void* value;           // (rows, dim)
  void* products;        // (tangents, rows, dim) or null
  double* quadratic;     // (rows, tangents), v' J v, or null
  double* divergence;    // (rows,), exact, or null; closed form where there is one
};

// Value and derivatives of order 1 .. order along each direction, the other factors the direction itself.
struct MlpJetArgs {
  MlpRows in;
  const double* times;  // (rows,)
  int64_t directions, order;
  const void* vectors;  // (directions, rows, dim)
  void* value;          // (rows, dim)
  void* derivatives;    // (order, directions, rows, dim)
};

// D^2 F along the tangents of lines a and b, which is added to line `out`.  Line 0 is the value's, the tangents follow,
// and then the lines of second order.
struct MlpTerm {
  int32_t a, b, out;
};

// Lines of second order beside value and tangents, each the sum of its terms.
struct MlpSecond {
  int64_t lines, count;
  const MlpTerm* terms;  // (count,)
};

// An evaluation that is run backwards later: `tiles` tiles of `rows` rows, which leave `bytes` each.  Its products
// are those of MlpEvaluateArgs and the lines of second order after them.
struct MlpTape {
  int64_t rows, tiles, bytes;
  void* at;
  MlpSecond second;
};

// The gradients of value, tangents and lines of second order, from a tape of MlpEvaluateArgs with as many.
struct MlpReverseArgs {
  MlpTape tape;
  int64_t rows, tangents, numbers;
  const void *value, *products;  // (rows, dim), (tangents + second.lines, rows, dim)
  void *state, *vectors;         // (rows, dim), (tangents, rows, dim)
  void* of_numbers;              // (threads, numbers), zeros; see mlp_reverse.h
  bool of_weights;
};

// dz/du = of_state z + of_output F(input_scale z, time) on a grid that all rows share, as a table of
// evaluations e.  Each happens at y + sum_s stage[e, s] k[s]; its slope goes to k[slot[e]] (nowhere if
// slot[e] < 0); then, if commit[e], y += sum_s update[e, s] k[s].  A divergence is taken where a weight
// is not 0: q[row, probe, i] += weight[e, i] * divergence.
struct MlpGridArgs {
  MlpRows in;
  MlpTrace trace;
  int64_t evaluations, slots, quadratures;
  const double *time, *input_scale, *of_state, *of_output;  // (evaluations,)
  const double *stage, *update;                             // (evaluations, slots)
  const double* weight;                                     // (evaluations, quadratures)
  const int64_t *slot, *node;                               // (evaluations,)
  const bool* commit;
  void* latent;                 // (rows, dim)
  double* q;                    // (rows, columns, quadratures)
  int64_t* first_bad;           // (rows,) evaluation at which y or q was first not finite, else -1
};

// What the ODE needs to know at a clock value u: each a polynomial of Chebyshev form on each panel.
constexpr int kMlpClockFunctions = 6;
struct MlpClockValues {
  double time, input_scale, of_state, of_output;
  double cosine, sine;  // of the angle, the cosine over d angle / du
};
struct MlpClock {
  int64_t panels, coefficients;
  const double* breaks;  // (panels + 1,), increasing
  const double* values;  // (panels, kMlpClockFunctions, coefficients)
};

// The panel that holds u (those at the ends serve beyond them), and where in it: -1 .. 1.
struct PanelPoint {
  int64_t panel;
  double x;
};

FASTLIK_MATH PanelPoint locate(const double* breaks, int64_t panels, double u) {
  int64_t low = 0, high = panels - 1;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (u < breaks[middle]) high = middle - 1;
    else low = middle;
  }
  const double left = breaks[low], right = breaks[low + 1];
  return {low, (2 * u - left - right) / (right - left)};
}

FASTLIK_MATH MlpClockValues clock_values(const MlpClock& clock, double u) {
  const PanelPoint at = locate(clock.breaks, clock.panels, u);
  const double x = at.x;
  double value[kMlpClockFunctions];
  const double* c = clock.values + at.panel * kMlpClockFunctions * clock.coefficients;
  for (int f = 0; f < kMlpClockFunctions; ++f, c += clock.coefficients) {  // Clenshaw
    double b1 = 0, b2 = 0;
    for (int64_t i = clock.coefficients - 1; i > 0; --i) {
      const double b = 2 * x * b1 - b2 + c[i];
      b2 = b1;
      b1 = b;
    }
    value[f] = x * b1 - b2 + c[0];
  }
  return {value[0], value[1], value[2], value[3], value[4], value[5]};
}

// grad_z log p = -z - cotangent slope by the model's own score, where slope = dz/du: 1 / (rate tan(angle)).
// There is no limit at an angle of 0, where the state no longer moves either.
FASTLIK_MATH double cotangent(const MlpClockValues& values) {
  return values.cosine / std::fmax(values.sine, 1e-12);
}

// The same ODE with steps of its own for each row, from t0 to t1 != t0 on the clock; the fields are those
// of fastlik.solvers.system.Integration.
struct MlpAdaptiveArgs {
  MlpRows in;
  MlpTrace trace;
  MlpClock clock;
  double t0, t1, first_step;  // first_step <= 0: Hairer's choice
  int64_t stages;
  const double *a, *c;  // (stages, stages) and (stages,); b, e and the controller are in `step`
  AdvanceArgs step;     // b, e, tolerances, controller and fsal; the rest is filled in
  int64_t max_steps;
  void* y;
  double *q, *t, *defect;
  int32_t* status;
  int64_t *nfe, *steps, *rejected;
};

// The same by Adams' method, one evaluation a step, the trace by quadrature over the nodes: change is its
// integral, variance what the probes leave of it, quadrature its error.
struct MlpAdamsArgs {
  MlpRows in;
  MlpTrace trace;
  MlpClock clock;
  double t0, t1, first_step;
  double rtol, atol, q_atol, integral_share;
  double shrunk, missed, for_the_state;  // what tells a jump
  int64_t order, max_steps;
  void* y;
  double *t, *defect, *defect_square, *change, *variance, *quadrature;
  int32_t* status;
  int64_t *nfe, *steps, *rejected;
};

}  // namespace fastlik
