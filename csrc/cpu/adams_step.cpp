// CPU kernels of the Adams step.  A row belongs to one thread from beginning to end, so the result does not
// depend on the number of threads.
#include "fastlik/adams_step.h"

#include <cmath>
#include <vector>

#include "fastlik/cpu.h"

namespace fastlik::FASTLIK_ISA {
namespace {

constexpr int64_t kParallelWork = 1 << 15;  // products below which waking the threads costs more

// What adams.h has to know, but for the end of a row.
MlpAdamsArgs rules_of(const AdamsStepArgs& a) {
  MlpAdamsArgs rules{};
  rules.order = a.order;
  rules.max_steps = -1;  // the caller counts
  rules.shrunk = a.shrunk;
  rules.for_the_state = a.for_the_state;
  rules.trace.mode = a.integrand ? kExact : kNoTrace;
  return rules;
}

AdamsRow read_row(const AdamsStepArgs& a, int64_t row) {
  AdamsRow r{};
  r.t = a.t[row];
  r.h = a.h[row];
  r.tried = a.tried[row];
  r.defect = a.defect[row];
  r.squares = a.defect_square[row];
  r.steps = a.steps[row];
  r.refused = a.rejected[row];
  r.status = a.status[row];
  return r;
}

template <class T>
void predict_row(const AdamsStepArgs& a, MlpAdamsArgs& rules, int64_t row) {
  AdamsRow r = read_row(a, row);
  double* weights = a.weights + row * 2 * (a.order + 1);
  for (int64_t j = 0; j < 2 * (a.order + 1); ++j) weights[j] = 0;
  a.node[row] = r.steps + 1;
  const T* y = static_cast<const T*>(a.y) + row * a.size;
  T* out = static_cast<T*>(a.predicted) + row * a.size;
  if (r.status != kRunning) {
    a.at[row] = r.t;
    for (int64_t i = 0; i < a.size; ++i) out[i] = y[i];
    return;
  }
  ++a.nfe[row];
  rules.t1 = a.t_end[row];
  double predict[kMostNodes], correct[kMostNodes];
  adams_aim(r, rules, a.times + row * a.order, predict, correct);
  a.at[row] = r.at;
  const int known = r.known(a.order);
  for (int j = 0; j < known; ++j) {
    weights[j] = predict[j];
    weights[a.order + 1 + j] = correct[j];
  }
  weights[2 * a.order + 1] = correct[known];
  const T* slopes = static_cast<const T*>(a.slopes) + row * a.order * a.size;
  for (int64_t i = 0; i < a.size; ++i) out[i] = y[i];
  for (int j = 0; j < known; ++j) {
    const T weight = T(predict[j]);
    const T* k = slopes + j * a.size;
#pragma omp simd
    for (int64_t i = 0; i < a.size; ++i) out[i] += weight * k[i];
  }
}

// The gap between corrector and predictor in one row, and the sums that its errors are made of.
template <class T>
struct Gap {
  double squares = 0, answer = 0, length = 0, change = 0;

  Gap(const AdamsStepArgs& a, const AdamsRow& r, int64_t row, T* gap) {
    const int64_t size = a.size;
    const int known = r.known(a.order);
    const double* weights = a.weights + row * 2 * (a.order + 1);
    const T* slope = static_cast<const T*>(a.slope) + row * size;
    const T* slopes = static_cast<const T*>(a.slopes) + row * a.order * size;
    const T latest = T(weights[2 * a.order + 1]);
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) gap[i] = latest * slope[i];
    for (int j = 0; j < known; ++j) {
      const T weight = T(weights[a.order + 1 + j] - weights[j]);
      const T* k = slopes + j * size;
#pragma omp simd
      for (int64_t i = 0; i < size; ++i) gap[i] += weight * k[i];
    }
    const T* y = static_cast<const T*>(a.y) + row * size;
    const T* predicted = static_cast<const T*>(a.predicted) + row * size;
    const T* last = slopes + (r.steps % a.order) * size;
    const T rtol = T(a.rtol), atol = T(a.atol);
    double of_squares = 0, of_length = 0, of_change = 0;
#pragma omp simd reduction(+ : of_squares, of_length, of_change)
    for (int64_t i = 0; i < size; ++i) {
      const T before = y[i] < 0 ? -y[i] : y[i], after = predicted[i] < 0 ? -predicted[i] : predicted[i];
      const double scaled = gap[i] / (atol + rtol * (before > after ? before : after));
      const double turn = slope[i] - last[i];
      of_squares += scaled * scaled;
      of_length += double(gap[i]) * double(gap[i]);
      of_change += turn * turn;
    }
    squares = of_squares;
    length = std::sqrt(of_length);
    change = std::sqrt(of_change);
    if (!a.sensitivity || !(a.q_atol > 0)) return;
    const T* sensitivity = static_cast<const T*>(a.sensitivity) + row * size;
    double product = 0;
#pragma omp simd reduction(+ : product)
    for (int64_t i = 0; i < size; ++i) product += double(sensitivity[i]) * double(gap[i]);
    answer = product;
  }
};

// The integrand's own error in units of its tolerance; NaN where any is not finite.
double integral_error(const AdamsStepArgs& a, int64_t row, int known) {
  if (!a.integrand) return 0;
  const double* integrand = a.integrand + row * a.columns;
  double finite = 0;
  for (int64_t c = 0; c < a.columns; ++c) finite += integrand[c] - integrand[c];
  if (!(a.q_atol > 0)) return finite;
  const double* weights = a.weights + row * 2 * (a.order + 1);
  double gap = weights[2 * a.order + 1] * integrand[a.columns - 1];
  for (int j = 0; j < known; ++j)
    gap += (weights[a.order + 1 + j] - weights[j]) * a.followed[row * a.order + j];
  return a.integral_share * std::fabs(gap) / a.q_atol + finite;
}

template <class T>
void correct_row(const AdamsStepArgs& a, MlpAdamsArgs& rules, int64_t row, T* scratch) {
  AdamsRow r = read_row(a, row);
  if (r.status != kRunning) return;
  rules.t1 = a.t_end[row];
  r.at = a.at[row];
  const Gap<T> gap(a, r, row, scratch);
  const double of_state = std::sqrt(gap.squares / a.size);
  const double of_answer = a.q_atol > 0 ? std::fabs(gap.answer) / a.q_atol : 0;
  const double error = worst(of_state, of_answer, integral_error(a, row, r.known(a.order)));
  const bool accepted = error <= 1;
  const bool jumps = accepted && may_jump(r, rules, worst(of_state, of_answer, 0)) &&
                     gap.length > a.missed * std::fabs(r.at - r.t) * gap.change;
  adams_move(r, rules, accepted, jumps, error, gap.answer);
  a.t[row] = r.t;
  a.h[row] = r.h;
  a.tried[row] = r.tried;
  a.defect[row] = r.defect;
  a.defect_square[row] = r.squares;
  a.steps[row] = r.steps;
  a.rejected[row] = r.refused;
  a.status[row] = r.status;
  if (!accepted) return;
  const int64_t place = r.steps % a.order;
  T* y = static_cast<T*>(a.y) + row * a.size;
  const T* predicted = static_cast<const T*>(a.predicted) + row * a.size;
  const T* slope = static_cast<const T*>(a.slope) + row * a.size;
  T* kept = static_cast<T*>(a.slopes) + (row * a.order + place) * a.size;
#pragma omp simd
  for (int64_t i = 0; i < a.size; ++i) {
    y[i] = predicted[i] + scratch[i];
    kept[i] = slope[i];
  }
  a.times[row * a.order + place] = r.t;
  if (a.integrand) a.followed[row * a.order + place] = a.integrand[row * a.columns + a.columns - 1];
}

}  // namespace

template <class T>
void adams_predict(const AdamsStepArgs& a, int threads) {
  const bool parallel = a.rows * a.size * (a.order + 1) > kParallelWork;
#pragma omp parallel num_threads(threads) if (parallel)
  {
    MlpAdamsArgs rules = rules_of(a);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < a.rows; ++row) predict_row<T>(a, rules, row);
  }
}

template <class T>
void adams_correct(const AdamsStepArgs& a, int threads) {
  const bool parallel = a.rows * a.size * (a.order + 1) > kParallelWork;
#pragma omp parallel num_threads(threads) if (parallel)
  {
    MlpAdamsArgs rules = rules_of(a);
    std::vector<T> scratch(a.size);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < a.rows; ++row) correct_row<T>(a, rules, row, scratch.data());
  }
}

template void adams_predict<float>(const AdamsStepArgs&, int);
template void adams_predict<double>(const AdamsStepArgs&, int);
template void adams_correct<float>(const AdamsStepArgs&, int);
template void adams_correct<double>(const AdamsStepArgs&, int);

}  // namespace fastlik::FASTLIK_ISA
