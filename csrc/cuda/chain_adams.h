// Adams' method for the samples of a block, a step size and a time to each: csrc/cpu/mlp_adams.h on a GPU.
// A row that ends makes room for the next one of the queue.
#pragma once

#include "chain_field.h"
#include "fastlik/adams.h"
#include "fastlik/trace_integral.h"

namespace fastlik::cuda {

// What a lane keeps of its sample between evaluations, but for the numbers that steer it.
struct AdamsMemory {
  float *y, *state, *slope, *slopes;   // slopes: `order` vectors
  double *parts, *total, *features;    // v_i (Jv)_i of a probe, summed over the probes, of the node before
  double *times, *followed;            // of the slopes
  TraceIntegral* integral;
  double* beside;
  int64_t bytes;

  FASTLIK_METHOD AdamsMemory(void* memory, const MlpChain& n, const MlpAdamsArgs& a, int lane) {
    WarpMemory cut(memory, n, lane);
    const bool probes = a.trace.mode == kProbes;
    y = cut.vectors<float>(1);
    state = cut.vectors<float>(1);
    slope = cut.vectors<float>(1);
    slopes = cut.vectors<float>(a.order);
    parts = cut.vectors<double>(probes);
    total = cut.vectors<double>(probes);
    features = cut.vectors<double>(probes);
    times = cut.of_lane<double>(a.order);
    followed = cut.of_lane<double>(a.order);
    integral = cut.of_sample<TraceIntegral>(1);
    beside = cut.of_sample<double>(trace_numbers(a.trace.columns()));
    bytes = cut.bytes();
  }
};

template <int kPrecision>
class ChainAdams {
 public:
  using Args = MlpAdamsArgs;

  static int64_t bytes(const MlpChain& n, const Args& a) { return AdamsMemory(nullptr, n, a, 0).bytes; }

  FASTLIK_DEVICE_MEMBER ChainAdams(const MlpChain& n, const Args& a, int groups, unsigned char* shared)
      : a_(a), dim_(n.dim), field_(n, a.in, a.trace, groups, shared),
        m_(field_.memory(AdamsMemory(nullptr, n, a, 0).bytes), n, a, field_.lane()) {}

  // All threads of the block together.
  FASTLIK_DEVICE_MEMBER void run() {
    for (;;) {
      if (row_ < 0) start();
      if (!block_any(row_ >= 0)) return;
      if (row_ >= 0 && r_.evaluations > 0) predict();
      evaluate();
      if (row_ < 0) continue;
      if (r_.evaluations++ == 0) begin();
      else finish();
      const bool ended = r_.status != kRunning;
      if (traced() && field_.leads()) advance(*m_.integral, m_.beside, a_.trace, ended);
      if (ended) write();
    }
  }

 private:
  FASTLIK_DEVICE_MEMBER bool traced() const { return a_.trace.mode != kNoTrace; }
  FASTLIK_DEVICE_MEMBER bool probes() const { return a_.trace.mode == kProbes; }
  FASTLIK_DEVICE_MEMBER bool linked() const { return probes() && a_.trace.probes == 1; }
  FASTLIK_DEVICE_MEMBER int entries() const { return field_.entries(); }

  FASTLIK_DEVICE_MEMBER void start() {
    row_ = field_.take();
    r_ = adams_start(a_);
    if (row_ < 0) return;
    field_.read(row_, m_.y);
    field_.read(row_, m_.state);
    if (field_.leads()) clear(*m_.integral, m_.beside, a_.trace.columns());
  }

  // Where the row is evaluated next.
  FASTLIK_DEVICE_MEMBER void predict() {
    double times[kMostNodes], weights[kMostNodes];
    for (int s = 0; s < r_.known(a_.order); ++s) times[s] = m_.times[s * 32];
    adams_aim(r_, a_, times, weights, correct_);
    for (int s = 0; s < r_.known(a_.order); ++s) change_[s] = correct_[s] - weights[s];
    for (int i = 0; i < entries(); ++i) m_.state[i * 32] = m_.y[i * 32] + combine(weights, i);
  }

  // Entry i of sum_s weights[s] slopes[s].
  FASTLIK_DEVICE_MEMBER float combine(const double* weights, int i) const {
    float sum = 0;
    for (int s = 0; s < r_.known(a_.order); ++s) sum += float(weights[s]) * m_.slopes[(s * entries() + i) * 32];
    return sum;
  }

  // Slope and divergences at r_.at; the divergences are noted as the next node's.
  FASTLIK_DEVICE_MEMBER void evaluate() {
    clock_ = clock_values(a_.clock, r_.at);
    square_ = finite_ = link_ = 0;
    double* divergences = row_ < 0 ? nullptr : next_divergences(*m_.integral, m_.beside, a_.trace.columns());
    const ChainCoefficients c{clock_.input_scale, clock_.of_state, clock_.of_output};
    const int64_t node = r_.evaluations > 0 ? r_.steps + 1 : 0;
    field_.evaluate(field_.point(row_, r_.at), c, node, true, m_.state, m_.slope, probes() ? m_.parts : nullptr,
                    [&](int64_t k, double divergence) {
                      finite_ += divergence - divergence;
                      smooth_ = divergence;
                      if (field_.leads()) divergences[k] = divergence;
                      if (probes()) describe(k);
                    });
    if (row_ >= 0 && probes()) follow();
  }

  // From v_i (Jv)_i of probe k: what tells the noise of the divergence from its diagonal
  // (fastlik/likelihood/flow.py).
  FASTLIK_DEVICE_MEMBER void describe(int64_t k) {
    double mean = 0, scale = 1;
    if (a_.trace.kind == kRademacher) {
      for (int i = 0; i < entries(); ++i) mean += m_.parts[i * 32];
      mean = quad_sum(mean) / double(dim_);
      scale = std::sqrt(double(dim_) / double(dim_ > 1 ? dim_ - 1 : 1));
    }
    const double of_diagonals = std::sqrt(diagonals());
    double square = 0, link = 0;
    for (int i = 0; i < entries(); ++i) {
      const double part = field_.feature(i) < dim_ ? (m_.parts[i * 32] - mean) * scale : 0;
      square += part * part;
      if (linked()) {
        link += of_diagonals * part * m_.features[i * 32];
        m_.total[i * 32] = of_diagonals * part;
      } else {
        m_.total[i * 32] = k == 0 ? part : m_.total[i * 32] + part;
      }
    }
    square_ += quad_sum(square) / double(a_.trace.probes);
    link_ = r_.evaluations > 0 ? quad_sum(link) : 0;
  }

  FASTLIK_DEVICE_MEMBER double diagonals() const { return a_.trace.kind == kGaussian ? 2 : 1; }

  // The noise of the mean over the probes, and the companion of the trace.
  FASTLIK_DEVICE_MEMBER void follow() {
    noise_ = 2 * square_;
    if (!linked()) {
      double crossed = 0;
      for (int i = 0; i < entries(); ++i) crossed += m_.total[i * 32] * m_.total[i * 32];
      const double n = double(a_.trace.probes);
      crossed = (quad_sum(crossed) - n * square_) / (n * (n - 1));
      // NaN has to stay
      const double noise = 2 * (square_ - diagonals() * crossed) / n;
      noise_ = noise < 0 ? 0 : noise;
    }
    double drift = 0, speed = 0;
    for (int i = 0; i < entries(); ++i) {
      drift += double(m_.state[i * 32]) * double(m_.slope[i * 32]);
      speed += double(m_.slope[i * 32]) * double(m_.slope[i * 32]);
    }
    smooth_ = 2 * quad_sum(drift) + quad_sum(speed) * cotangent(clock_);
    finite_ += (smooth_ - smooth_) + (noise_ - noise_);
  }

  FASTLIK_DEVICE_MEMBER void begin() {
    double gap = finite_;
    for (int i = 0; i < entries(); ++i) gap += double(m_.slope[i * 32]) - double(m_.slope[i * 32]);
    if (quad_sum(gap) != 0) r_.status = kNonFinite;
    remember();
  }

  // Judges the attempt, corrects the state, and chooses the next step.
  FASTLIK_DEVICE_MEMBER void finish() {
    const int used = r_.known(a_.order);
    const double gain = cotangent(clock_);
    double defect = 0, square = 0, missed = 0, change = 0;
    const float* last = m_.slopes + r_.steps % a_.order * entries() * 32;
    for (int i = 0; i < entries(); ++i) {
      const float state = m_.state[i * 32], slope = m_.slope[i * 32], y = m_.y[i * 32], gap = corrected(i, used);
      const float size = std::fmax(std::fabs(state), std::fabs(y));
      const double relative = gap / (float(a_.atol) + float(a_.rtol) * size);
      const double by = double(slope) - double(last[i * 32]);
      square += field_.feature(i) < dim_ ? relative * relative : 0;
      defect += double(-state - float(gain) * slope) * double(gap);
      missed += double(gap) * double(gap);
      change += by * by;
    }
    defect = quad_sum(defect);
    const double of_state = std::sqrt(quad_sum(square) / double(dim_)), of_answer = std::fabs(defect) / a_.q_atol;
    const double error = worst(of_state, of_answer, integral_error(used));
    const bool accepted = error <= 1;
    const double way = a_.missed * std::fabs(r_.at - r_.t);
    const bool far = std::sqrt(quad_sum(missed)) > way * std::sqrt(quad_sum(change));
    const bool jumps = accepted && far && may_jump(r_, a_, std::fmax(of_state, of_answer));
    if (accepted)
      for (int i = 0; i < entries(); ++i) m_.y[i * 32] = m_.state[i * 32] + corrected(i, used);
    adams_move(r_, a_, accepted, jumps, error, defect);
    if (accepted) remember();
  }

  // Entry i of the corrector's difference from the predictor.
  FASTLIK_DEVICE_MEMBER float corrected(int i, int used) const {
    return combine(change_, i) + float(correct_[used]) * m_.slope[i * 32];
  }

  // The same difference for what the steps follow of the trace; NaN where anything is not finite.
  FASTLIK_DEVICE_MEMBER double integral_error(int used) const {
    if (!traced()) return 0;
    double gap = correct_[used] * smooth_;
    for (int s = 0; s < used; ++s) gap += change_[s] * m_.followed[s * 32];
    return a_.integral_share * std::fabs(gap) / a_.q_atol + finite_;
  }

  // The node just evaluated becomes the row's last one.
  FASTLIK_DEVICE_MEMBER void remember() {
    const int64_t slot = r_.steps % a_.order;
    m_.times[slot * 32] = r_.at;
    m_.followed[slot * 32] = smooth_;
    for (int i = 0; i < entries(); ++i) {
      m_.slopes[(slot * entries() + i) * 32] = m_.slope[i * 32];
      if (linked()) m_.features[i * 32] = m_.total[i * 32];
    }
    if (traced() && field_.leads())
      add(*m_.integral, r_.at, smooth_, probes() ? noise_ : 0, linked() ? link_ : 0);
  }

  FASTLIK_DEVICE_MEMBER void write() {
    field_.write(row_, m_.y, a_.y);
    if (field_.leads()) {
      a_.t[row_] = r_.t;
      a_.defect[row_] = r_.defect;
      a_.defect_square[row_] = r_.squares;
      a_.status[row_] = r_.status;
      a_.nfe[row_] = r_.evaluations;
      a_.steps[row_] = r_.steps;
      a_.rejected[row_] = r_.refused;
      const TraceAnswer trace = traced() ? answer(*m_.integral, m_.beside, a_.trace) : TraceAnswer{};
      a_.change[row_] = trace.change;
      a_.variance[row_] = trace.variance;
      a_.quadrature[row_] = trace.quadrature;
    }
    row_ = -1;
  }

  const MlpAdamsArgs& a_;
  const int64_t dim_;
  ChainField<kPrecision> field_;
  AdamsMemory m_;
  int64_t row_ = -1;
  AdamsRow r_;
  MlpClockValues clock_;
  double correct_[kMostNodes], change_[kMostNodes];
  double smooth_ = 0, noise_ = 0, link_ = 0, square_ = 0, finite_ = 0;
};

}  // namespace fastlik::cuda
