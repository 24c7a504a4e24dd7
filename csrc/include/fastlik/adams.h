// The step control of Adams' method for one row: what the CPU and the CUDA kernels share.
// Specification, in plain PyTorch: fastlik/solvers/adams.py.
#pragma once

#include "fastlik/mlp.h"
#include "fastlik/quadrature.h"

namespace fastlik {

// `at` is where the row is evaluated next, `tried` the length of the longest attempt lately.
struct AdamsRow {
  double t, h, at, tried, defect, squares;
  int64_t steps, refused, evaluations;
  int32_t status;

  FASTLIK_METHOD int known(int64_t order) const { return int(steps + 1 < order ? steps + 1 : order); }
};

FASTLIK_MATH AdamsRow adams_start(const MlpAdamsArgs& a) {
  const double span = std::fabs(a.t1 - a.t0), size = std::fmin(a.first_step, span);
  AdamsRow r{};
  r.t = r.at = a.t0;
  r.h = a.t1 < a.t0 ? -size : size;
  r.tried = size;
  r.status = kRunning;
  return r;
}

// The next attempt: where, and the weights of the slopes at `times` (known,) that predict the state there
// and of the same with the slope at the attempt that correct it.
FASTLIK_MATH void adams_aim(AdamsRow& r, const MlpAdamsArgs& a, const double* times, double* predict,
                            double* correct) {
  r.at = r.t + r.h;
  if (std::fabs(a.t1 - r.at) <= resolution(r.at, a.t1)) r.at = a.t1;
  const int known = r.known(a.order);
  double nodes[kMostNodes];
  for (int i = 0; i < kMostNodes; ++i) nodes[i] = i < known ? times[i] : r.at;
  lagrange_weights(nodes, known, r.t, r.at, predict);
  lagrange_weights(nodes, known + 1, r.t, r.at, correct);
}

// Errors in units of their tolerances; a comparison with NaN is false, and NaN has to stay.
FASTLIK_MATH double worst(double of_state, double of_answer, double of_trace) {
  const double sum = of_state + of_answer + of_trace;
  return std::isfinite(sum) ? std::fmax(std::fmax(of_state, of_answer), of_trace) : sum;
}

// Whether a jump may have shrunk the steps, as far as the state is concerned (`error` is its own).
FASTLIK_MATH bool may_jump(const AdamsRow& r, const MlpAdamsArgs& a, double error) {
  return a.trace.mode != kNoTrace && a.order > 1 && r.known(a.order) == a.order &&
         r.tried >= a.shrunk * std::fabs(r.at - r.t) && error > a.for_the_state;
}

// The attempt has been accepted or not, with `used` slopes; sets everything but t, steps and refused.
FASTLIK_MATH void adams_control(AdamsRow& r, const MlpAdamsArgs& a, bool accepted, double error, int used) {
  double factor = 0.1;
  if (std::isfinite(error)) {
    factor = 0.75 * std::pow(error, -1.0 / (used + 1));
    factor = accepted ? std::fmin(std::fmax(factor, 0.3), 2.0) : std::fmin(std::fmax(factor, 0.1), 0.7);
  }
  const double left = a.t1 - r.t;
  double h = r.h * factor;
  // no sliver at the end
  if (std::fabs(h) >= std::fabs(left)) h = left;
  else if (2 * std::fabs(h) > std::fabs(left)) h = 0.5 * left;
  r.h = h;
  if (accepted) r.tried = std::fmax(std::fabs(h), 0.5 * r.tried);
  if (accepted && r.t == a.t1) r.status = kDone;
  else if (std::fabs(h) < resolution(r.t, a.t1)) r.status = std::isfinite(error) ? kUnderflow : kNonFinite;
}

// The end of an attempt: `jumps` where the slope does, which only an accepted step tells.
FASTLIK_MATH void adams_move(AdamsRow& r, const MlpAdamsArgs& a, bool accepted, bool jumps, double error,
                             double defect) {
  const int used = r.known(a.order);
  if (accepted) {
    r.t = r.at;
    r.defect += defect;
    r.squares += defect * defect;
    ++r.steps;
  } else {
    ++r.refused;
  }
  adams_control(r, a, accepted, error, used);
  if (jumps) r.status = kDiscontinuous;
  if (r.status == kRunning && r.steps + r.refused == a.max_steps) r.status = kMaxSteps;
}

}  // namespace fastlik
