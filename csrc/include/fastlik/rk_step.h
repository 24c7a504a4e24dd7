// One adaptive Runge-Kutta step: the mathematics that the CPU and the CUDA kernel share.
// Specification, in plain PyTorch: fastlik/ops/rk_step/reference.py.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "fastlik/host_device.h"

namespace fastlik {

constexpr int kMaxStages = 32;

// The values of fastlik.solvers.status.Status.
enum Status : int32_t { kRunning = 0, kDone = 1, kUnderflow = 2, kNonFinite = 3, kMaxSteps = 4,
                        kInaccurate = 5, kDiscontinuous = 6 };

struct Controller {
  double order, safety, min_factor, max_factor, beta;
};

// out[r] = y[r] + h[r] * sum_j weights[j] k[j, r].  Strides count elements; rows are contiguous.
struct CombineArgs {
  int64_t rows, size, stages;
  const void* y;
  const void* k;
  void* out;
  const double* h;
  int64_t y_row, k_stage, k_row, out_row;
  double weights[kMaxStages];
};

// Everything about one step of all rows.  A null pointer leaves its part out: sensitivity, q and kq
// (together), defect.  q_atol <= 0: the integral q does not steer the step.
struct AdvanceArgs {
  int64_t rows, size, stages, probes;
  void* y;
  void* k;
  const void* sensitivity;
  void* saved;  // scratch, one row per thread (CPU only)
  int64_t y_row, k_stage, k_row, sensitivity_row;
  double* q;
  double* kq;
  int64_t kq_stage, kq_row;
  double *h, *t, *error_prev, *defect, *error;
  const double* t_end;
  bool *rejected, *accepted;
  int32_t* status;
  double b[kMaxStages], e[kMaxStages];
  double rtol, atol, q_atol;
  Controller controller;
  bool fsal;
};

// The stages that a weight uses.  The others are never read: they may hold anything.
struct Stages {
  int count;
  int index[kMaxStages];
};

FASTLIK_MATH Stages used_stages(const double* a, const double* b, int64_t stages) {
  Stages used;
  used.count = 0;
  for (int j = 0; j < stages; ++j)
    if (a[j] != 0 || b[j] != 0) used.index[used.count++] = j;
  return used;
}

// Error of one coordinate over its tolerance.  The last term is 0, or NaN where y_new is not finite:
// an infinite y_new would otherwise pass as an error of 0.
template <class T>
FASTLIK_MATH T scaled_error(T error, T y, T y_new, T rtol, T atol) {
  const T before = y < 0 ? -y : y;
  const T after = y_new < 0 ? -y_new : y_new;
  return error / (atol + rtol * (before > after ? before : after)) + (y_new - y_new);
}

// sum_j weights[j] kq[j] for one entry of the integral.
FASTLIK_MATH double weighted(const double* kq, int64_t stage, const double* weights,
                             const Stages& used) {
  double sum = 0;
  for (int s = 0; s < used.count; ++s) {
    const int j = used.index[s];
    if (weights[j] != 0) sum += weights[j] * kq[j * stage];
  }
  return sum;
}

// Error of the row's integral in nats: <sensitivity, state error> + mean over the probes of the
// embedded error.  NaN where the new integral is not finite.
FASTLIK_MATH double integral_error(const AdvanceArgs& a, const Stages& used, int64_t row,
                                   double dot) {
  if (!a.q) return dot;
  double sum = 0;
  for (int64_t p = 0; p < a.probes; ++p) {
    const double* kq = a.kq + row * a.kq_row + p;
    const double q_new =
        a.q[row * a.probes + p] + a.h[row] * weighted(kq, a.kq_stage, a.b, used);
    sum += a.h[row] * weighted(kq, a.kq_stage, a.e, used) + (q_new - q_new);
  }
  return dot + sum / a.probes;
}

// On acceptance: q <- q_new and kq[0] <- kq[-1] for one row.  Call before a.h[row] changes.
FASTLIK_MATH void commit_integral(const AdvanceArgs& a, const Stages& used, int64_t row) {
  for (int64_t p = 0; p < a.probes; ++p) {
    double* kq = a.kq + row * a.kq_row + p;
    a.q[row * a.probes + p] += a.h[row] * weighted(kq, a.kq_stage, a.b, used);
    if (a.fsal) kq[0] = kq[(a.stages - 1) * a.kq_stage];
  }
}

// The row's error in units of its tolerance; NaN if any part of it is not finite.
FASTLIK_MATH double row_error(double sum_of_squares, int64_t size, double gap, double q_atol) {
  const double norm = std::sqrt(sum_of_squares / size);
  const double share = q_atol > 0 ? std::fabs(gap) / q_atol : 0;
  return (norm > share ? norm : share) + (norm - norm) + (share - share);
}

// PI controller: safety * error^-alpha * error_prev^beta, alpha = 1 / order - 0.75 beta.
// E. Hairer, S. P. Norsett, G. Wanner, Solving Ordinary Differential Equations I, dopri5.f.
FASTLIK_MATH double step_factor(const Controller& c, double error, double error_prev) {
  if (!std::isfinite(error)) return c.min_factor;
  const double alpha = 1 / c.order - 0.75 * c.beta;
  const double factor = c.safety * std::exp(c.beta * std::log(error_prev) - alpha * std::log(error));
  return std::fmin(c.max_factor, std::fmax(c.min_factor, factor));
}

// The smallest step that still moves t reliably.
FASTLIK_MATH double resolution(double t, double t_end) {
  return 16 * DBL_EPSILON * std::fmax(std::fabs(t), std::fabs(t_end));
}

// What steers the steps of one row.
struct StepRow {
  double t, h, error_prev;
  bool rejected;
  int32_t status;
};

// Accepts or rejects the row's step towards t_end, and chooses the next.
FASTLIK_MATH bool control(const Controller& controller, StepRow& r, double t_end, double error) {
  const bool finite = std::isfinite(error), accepted = finite && error <= 1;
  double factor = step_factor(controller, error, r.error_prev);
  if (accepted) {
    const bool last = std::fabs(t_end - r.t) <= std::fabs(r.h) + resolution(r.t, t_end);
    r.t = last ? t_end : r.t + r.h;
    if (last) r.status = kDone;
    if (r.rejected) factor = std::fmin(factor, 1.0);
    r.error_prev = std::fmax(error, 1e-4);
  }
  const double left = t_end - r.t;
  r.h *= factor;
  if (std::fabs(r.h) > std::fabs(left)) r.h = left;
  if (r.status == kRunning && std::fabs(r.h) < resolution(r.t, t_end))
    r.status = finite ? kUnderflow : kNonFinite;
  r.rejected = !accepted;
  return accepted;
}

// The same for one row of many.
FASTLIK_MATH bool control(const AdvanceArgs& a, int64_t row, double error) {
  StepRow r{a.t[row], a.h[row], a.error_prev[row], a.rejected[row], a.status[row]};
  const bool accepted = control(a.controller, r, a.t_end[row], error);
  a.t[row] = r.t;
  a.h[row] = r.h;
  a.error_prev[row] = r.error_prev;
  a.rejected[row] = r.rejected;
  a.status[row] = r.status;
  a.accepted[row] = accepted;
  return accepted;
}

// The first step (Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, II.4), from norms in units
// of the tolerance: a trial from those of the state and its slope, then from the slope's and its change over
// the trial.
FASTLIK_MATH double trial_step(double state, double slope) {
  const double size = 0.01 * state / slope;
  return std::isfinite(size) && size > 1e-6 ? size : 1e-6;
}

FASTLIK_MATH double first_step(double trial, double slope, double change, double order) {
  const double curvature = change / trial;
  // NaN where either is
  const double steepest = (slope > curvature ? slope : curvature) + 0 * (slope + curvature);
  const double best = std::pow(0.01 / steepest, 1 / order);
  return std::isfinite(best) ? std::fmin(100 * trial, best) : trial;
}

}  // namespace fastlik
