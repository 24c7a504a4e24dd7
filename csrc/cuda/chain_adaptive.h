// Embedded Runge-Kutta steps of its own for each sample of a block: csrc/cpu/mlp_adaptive.h on a GPU.  Samples
// need not be at the same stage: each evaluation of the network serves whatever each of them needs next.
#pragma once

#include "chain_field.h"

namespace fastlik::cuda {

struct AdaptiveMemory {
  float *y, *state, *slope, *k;  // k: `stages` vectors
  double *q, *kq;                // (columns,) and (stages, columns)
  int64_t bytes;

  FASTLIK_METHOD AdaptiveMemory(void* memory, const MlpChain& n, const MlpAdaptiveArgs& a, int lane) {
    WarpMemory cut(memory, n, lane);
    y = cut.vectors<float>(1);
    state = cut.vectors<float>(1);
    slope = cut.vectors<float>(1);
    k = cut.vectors<float>(a.stages);
    q = cut.of_sample<double>(a.trace.columns());
    kq = cut.of_sample<double>(a.stages * a.trace.columns());
    bytes = cut.bytes();
  }
};

template <int kPrecision>
class ChainAdaptive {
 public:
  using Args = MlpAdaptiveArgs;

  static int64_t bytes(const MlpChain& n, const Args& a) { return AdaptiveMemory(nullptr, n, a, 0).bytes; }

  FASTLIK_DEVICE_MEMBER ChainAdaptive(const MlpChain& n, const Args& a, int groups, unsigned char* shared)
      : a_(a), dim_(n.dim), columns_(a.trace.columns()), field_(n, a.in, a.trace, groups, shared),
        m_(field_.memory(AdaptiveMemory(nullptr, n, a, 0).bytes), n, a, field_.lane()) {}

  // All threads of the block together.
  FASTLIK_DEVICE_MEMBER void run() {
    for (;;) {
      if (row_ < 0) start();
      if (!block_any(row_ >= 0)) return;
      evaluate();
      if (row_ < 0) continue;
      ++evaluations_;
      if (trial_) end_trial();
      else if (stage_ == 0 && evaluations_ == 1) begin();
      else if (++stage_ == a_.stages) finish();
      if (r_.status != kRunning) write();
      else if (!trial_ && stage_ > 0) combine_stage();
    }
  }

 private:
  FASTLIK_DEVICE_MEMBER int entries() const { return field_.entries(); }
  FASTLIK_DEVICE_MEMBER float k(int64_t stage, int i) const { return m_.k[(stage * entries() + i) * 32]; }
  FASTLIK_DEVICE_MEMBER double kq(int64_t stage, int64_t column) const { return m_.kq[stage * columns_ + column]; }
  FASTLIK_DEVICE_MEMBER double span() const { return std::fabs(a_.t1 - a_.t0); }
  FASTLIK_DEVICE_MEMBER double toward(double size) const {
    size = std::fmin(size, span());
    return a_.t1 >= a_.t0 ? size : -size;
  }

  FASTLIK_DEVICE_MEMBER void start() {
    row_ = field_.take();
    r_ = {a_.t0, 0, 1e-4, false, kRunning};
    at_ = a_.t0;
    stage_ = steps_ = refused_ = evaluations_ = 0;
    defect_ = 0;
    trial_ = false;
    if (row_ < 0) return;
    field_.read(row_, m_.y);
    field_.read(row_, m_.state);
    for (int64_t c = 0; field_.leads() && c < columns_; ++c) m_.q[c] = 0;
  }

  // The stage's slope and divergences, at at_ and the state.
  FASTLIK_DEVICE_MEMBER void evaluate() {
    clock_ = clock_values(a_.clock, at_);
    const ChainCoefficients c{clock_.input_scale, clock_.of_state, clock_.of_output};
    field_.evaluate(field_.point(row_, at_), c, steps_, true, m_.state, m_.slope, nullptr,
                    [&](int64_t column, double divergence) {
                      if (field_.leads() && !trial_) m_.kq[stage_ * columns_ + column] = divergence;
                    });
    if (row_ < 0 || trial_) return;
    for (int i = 0; i < entries(); ++i) m_.k[(stage_ * entries() + i) * 32] = m_.slope[i * 32];
  }

  // The first slope is known: the first step follows, or a trial for it.
  FASTLIK_DEVICE_MEMBER void begin() {
    stage_ = 1;
    if (a_.first_step > 0) {
      r_.h = toward(a_.first_step);
      return;
    }
    speed_ = norm([&](int i) { return double(k(0, i)); });
    r_.h = toward(trial_step(norm([&](int i) { return double(m_.y[i * 32]); }), speed_));
    at_ = r_.t + r_.h;
    for (int i = 0; i < entries(); ++i) m_.state[i * 32] = m_.y[i * 32] + float(r_.h) * k(0, i);
    trial_ = true;
  }

  FASTLIK_DEVICE_MEMBER void end_trial() {
    trial_ = false;
    const double change = norm([&](int i) { return double(m_.slope[i * 32] - k(0, i)); });
    r_.h = toward(first_step(std::fabs(r_.h), speed_, change, a_.step.controller.order));
  }

  // Root mean square in units of the state's tolerance.
  template <class Value>
  FASTLIK_DEVICE_MEMBER double norm(Value value) const {
    double total = 0;
    for (int i = 0; i < entries(); ++i) {
      const double x = value(i) / (a_.step.atol + a_.step.rtol * std::fabs(double(m_.y[i * 32])));
      total += field_.feature(i) < dim_ ? x * x : 0;
    }
    return std::sqrt(quad_sum(total) / double(dim_));
  }

  // Entry i of sum_j weights[j] k[j]; stages of weight 0 are not read.
  FASTLIK_DEVICE_MEMBER float sum(const double* weights, int64_t count, int i) const {
    float total = 0;
    for (int64_t j = 0; j < count; ++j)
      if (weights[j] != 0) total += float(weights[j]) * k(j, i);
    return total;
  }

  // Where stage_ is evaluated; rounding must not carry it past the end.
  FASTLIK_DEVICE_MEMBER void combine_stage() {
    const double t = r_.t + a_.c[stage_] * r_.h;
    at_ = r_.h >= 0 ? std::fmin(t, a_.t1) : std::fmax(t, a_.t1);
    for (int i = 0; i < entries(); ++i)
      m_.state[i * 32] = m_.y[i * 32] + float(r_.h) * sum(a_.a + stage_ * a_.stages, stage_, i);
  }

  // All stages are known: judges the step, and moves on or tries a shorter one.
  FASTLIK_DEVICE_MEMBER void finish() {
    const float h = float(r_.h), gain = float(cotangent(clock_));
    double squares = 0, dot = 0;
    for (int i = 0; i < entries(); ++i) {
      const float y = m_.y[i * 32], y_new = y + h * sum(a_.step.b, a_.stages, i);
      const float error = h * sum(a_.step.e, a_.stages, i);
      const double scaled = scaled_error(error, y, y_new, float(a_.step.rtol), float(a_.step.atol));
      squares += field_.feature(i) < dim_ ? scaled * scaled : 0;
      dot += double(-m_.state[i * 32] - gain * m_.slope[i * 32]) * double(error);
    }
    const double gap = quad_sum(dot) + quad_sum(field_.leads() ? integral_error() : 0);
    const double error = row_error(quad_sum(squares), dim_, gap, a_.step.q_atol);
    if (error <= 1) {
      for (int i = 0; i < entries(); ++i) m_.y[i * 32] += h * sum(a_.step.b, a_.stages, i);
      for (int64_t c = 0; field_.leads() && c < columns_; ++c) m_.q[c] += r_.h * weighted_kq(a_.step.b, c);
      defect_ += std::fabs(gap);
      if (a_.step.fsal) keep_last();
    }
    ++(control(a_.step.controller, r_, a_.t1, error) ? steps_ : refused_);
    // shrinking the step cannot mend a slope that is not finite at the step's start
    if (!std::isfinite(error) && !start_is_finite()) r_.status = kNonFinite;
    if (r_.status == kRunning && steps_ + refused_ == a_.max_steps) r_.status = kMaxSteps;
    stage_ = a_.step.fsal ? 1 : 0;
    if (stage_ > 0) return;
    at_ = r_.t;
    for (int i = 0; i < entries(); ++i) m_.state[i * 32] = m_.y[i * 32];
  }

  // The last stage serves the next step as its first.
  FASTLIK_DEVICE_MEMBER void keep_last() {
    for (int i = 0; i < entries(); ++i) m_.k[i * 32] = m_.slope[i * 32];
    for (int64_t c = 0; field_.leads() && c < columns_; ++c) m_.kq[c] = kq(a_.stages - 1, c);
  }

  FASTLIK_DEVICE_MEMBER double weighted_kq(const double* weights, int64_t column) const {
    double total = 0;
    for (int64_t j = 0; j < a_.stages; ++j)
      if (weights[j] != 0) total += weights[j] * kq(j, column);
    return total;
  }

  // Mean over the columns of the embedded error; NaN where a new integral is not finite.
  FASTLIK_DEVICE_MEMBER double integral_error() const {
    double total = 0;
    for (int64_t c = 0; c < columns_; ++c) {
      const double q_new = m_.q[c] + r_.h * weighted_kq(a_.step.b, c);
      total += r_.h * weighted_kq(a_.step.e, c) + (q_new - q_new);
    }
    return columns_ ? total / double(columns_) : 0;
  }

  FASTLIK_DEVICE_MEMBER bool start_is_finite() const {
    double gap = 0;
    for (int i = 0; i < entries(); ++i) gap += k(0, i) - k(0, i);
    for (int64_t c = 0; field_.leads() && c < columns_; ++c) gap += kq(0, c) - kq(0, c);
    return quad_sum(gap) == 0;
  }

  FASTLIK_DEVICE_MEMBER void write() {
    field_.write(row_, m_.y, a_.y);
    if (field_.leads()) {
      for (int64_t c = 0; c < columns_; ++c) a_.q[row_ * columns_ + c] = m_.q[c];
      a_.t[row_] = r_.t;
      a_.defect[row_] = defect_;
      a_.status[row_] = r_.status;
      a_.nfe[row_] = evaluations_;
      a_.steps[row_] = steps_;
      a_.rejected[row_] = refused_;
    }
    row_ = -1;
  }

  const MlpAdaptiveArgs& a_;
  const int64_t dim_, columns_;
  ChainField<kPrecision> field_;
  AdaptiveMemory m_;
  int64_t row_ = -1, stage_ = 0, steps_ = 0, refused_ = 0, evaluations_ = 0;
  bool trial_ = false;
  StepRow r_;
  MlpClockValues clock_;
  double at_ = 0, defect_ = 0, speed_ = 0;
};

}  // namespace fastlik::cuda
