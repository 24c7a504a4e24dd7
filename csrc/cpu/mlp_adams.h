// The likelihood's ODE by Adams' predictor-corrector method, the trace by quadrature over its nodes:
// fastlik/solvers/adams.py and fastlik/likelihood/trace.py for a tile.  A row that ends makes room for the
// next one, so that tiles stay full.
#pragma once

#include <cmath>

#include "fastlik/adams.h"
#include "fastlik/cpu.h"
#include "fastlik/trace_integral.h"
#include "mlp_tile.h"

namespace fastlik::FASTLIK_ISA {
namespace {

template <class T>
class AdamsTile {
 public:
  static int64_t bytes(const MlpNetwork& net, const MlpAdamsArgs& a, const Tile& tile) {
    const int64_t size = tile.rows * net.dim, columns = a.trace.columns();
    return TileField<T>::bytes(net, tile) + (5 + a.order) * cut_size<T>(size) +
           cut_size<double>(size * std::max<int64_t>(1, columns)) + cut_size<double>(size) +
           cut_size<double>(tile.rows * columns) + 2 * cut_size<double>(tile.rows * a.order) +
           2 * cut_size<double>(tile.rows * kMostNodes) + 4 * cut_size<double>(tile.rows) +
           2 * cut_size<int64_t>(tile.rows) + cut_size<AdamsRow>(tile.rows) +
           cut_size<TraceIntegral>(tile.rows) + cut_size<double>(tile.rows * trace_numbers(columns));
  }

  AdamsTile(const MlpNetwork& net, const MlpAdamsArgs& a, const Tile& tile, char* memory)
      : a_(a), dim_(net.dim), columns_(a.trace.columns()), capacity_(tile.rows),
        field_(net, a.in, a.trace, a.clock, tile, memory) {
    Cutter cutter(memory + TileField<T>::bytes(net, tile));
    const int64_t rows = tile.rows, size = rows * dim_;
    for (T** array : {&y_, &state_, &slope_, &gap_, &sensitivity_}) *array = cutter.take<T>(size);
    slopes_ = cutter.take<T>(a.order * size);
    parts_ = cutter.take<double>(size * std::max<int64_t>(1, columns_));
    features_ = cutter.take<double>(size);
    divergence_ = cutter.take<double>(rows * columns_);
    times_ = cutter.take<double>(rows * a.order);
    followed_ = cutter.take<double>(rows * a.order);
    predict_ = cutter.take<double>(rows * kMostNodes);
    correct_ = cutter.take<double>(rows * kMostNodes);
    for (double** array : {&at_, &noise_, &smooth_, &link_}) *array = cutter.take<double>(rows);
    for (int64_t** array : {&row_, &number_}) *array = cutter.take<int64_t>(rows);
    control_ = cutter.take<AdamsRow>(rows);
    integral_ = cutter.take<TraceIntegral>(rows);
    beside_ = cutter.take<double>(rows * trace_numbers(columns_));
  }

  void run(Queue& queue) {
    while (fill(queue) || count_ > 0) {
      attempt();
      retire();
    }
  }

 private:
  bool probes() const { return a_.trace.mode == kProbes; }
  bool linked() const { return probes() && a_.trace.probes == 1; }
  int known(int64_t i) const { return control_[i].known(a_.order); }
  double* beside(int64_t i) const { return beside_ + i * trace_numbers(columns_); }
  T* slopes(int64_t i, int64_t slot) const { return slopes_ + (i * a_.order + slot) * dim_; }

  // Takes rows up until the tile is full, and evaluates them where they start; false: there were none.
  bool fill(Queue& queue) {
    const int64_t before = count_;
    for (int64_t row; count_ < capacity_ && (row = queue.next()) >= 0; ++count_) {
      const int64_t i = count_;
      row_[i] = row;
      std::memcpy(y_ + i * dim_, static_cast<const T*>(a_.in.state) + row * dim_, dim_ * sizeof(T));
      std::copy_n(y_ + i * dim_, dim_, state_ + i * dim_);
      control_[i] = adams_start(a_);
      at_[i] = a_.t0;
      number_[i] = 0;
      clear(integral_[i], beside(i), columns_);
    }
    evaluate(before);
    for (int64_t i = before; i < count_; ++i) {
      if (!all_finite(slope_ + i * dim_, dim_) || !integrand_is_finite(i))
        control_[i].status = kNonFinite;
      remember(i);
    }
    const bool taken = count_ > before;
    retire();
    return taken;
  }

  // The rows from `first` on, at at_ and state_, with the probes of number_.
  void evaluate(int64_t first) {
    const int64_t count = count_ - first;
    if (probes()) field_.keep_parts(parts_ + first * columns_ * dim_);
    field_.evaluate(count, row_ + first, at_ + first, state_ + first * dim_, number_ + first,
                    slope_ + first * dim_, divergence_ + first * columns_);
    for (int64_t i = first; i < count_; ++i) {
      ++control_[i].evaluations;
      if (columns_ == 0) continue;
      smooth_[i] = divergence_[i * columns_];
      if (probes()) describe(i, parts_ + i * columns_ * dim_);
    }
  }

  // From v_i (Jv)_i (probes, dim) of row i: the noise of the divergence, the features that tell it from the
  // diagonal, and the companion of the trace (fastlik/likelihood/flow.py).
  void describe(int64_t i, double* parts) {
    const bool gaussian = ProbeKind(a_.trace.kind) == kGaussian;
    const double diagonals = gaussian ? 2 : 1;
    double square = 0;
    for (int64_t k = 0; k < columns_; ++k) {
      double* part = parts + k * dim_;
      double mean = 0;
      for (int64_t j = 0; j < dim_; ++j) mean += part[j];
      mean /= double(dim_);
      const double scale = std::sqrt(double(dim_) / double(std::max<int64_t>(1, dim_ - 1)));
      for (int64_t j = 0; j < dim_; ++j) {
        if (!gaussian) part[j] = (part[j] - mean) * scale;
        square += part[j] * part[j];
      }
    }
    square /= double(columns_);
    noise_[i] = 2 * square;
    link_[i] = 0;
    if (columns_ == 1) {
      for (int64_t j = 0; j < dim_; ++j) {
        parts[j] *= std::sqrt(diagonals);
        link_[i] += parts[j] * features_[i * dim_ + j];
      }
    } else {
      double crossed = 0;
      for (int64_t j = 0; j < dim_; ++j) {
        double total = 0;
        for (int64_t k = 0; k < columns_; ++k) total += parts[k * dim_ + j];
        crossed += total * total;
      }
      const double n = double(columns_);
      crossed = (crossed - n * square) / (n * (n - 1));
      noise_[i] = std::fmax(2 * (square - diagonals * crossed) / n, 0);
    }
    double drift = 0, speed = 0;
    for (int64_t j = i * dim_; j < (i + 1) * dim_; ++j) {
      drift += double(state_[j]) * double(slope_[j]);
      speed += double(slope_[j]) * double(slope_[j]);
    }
    smooth_[i] = 2 * drift + speed * cotangent(clock_values(a_.clock, at_[i]));
  }

  bool integrand_is_finite(int64_t i) const {
    if (columns_ == 0) return true;
    bool finite = all_finite(divergence_ + i * columns_, columns_) && all_finite(smooth_ + i, 1);
    return finite && (!probes() || all_finite(noise_ + i, 1));
  }

  // The node just evaluated becomes the row's last one.
  void remember(int64_t i) {
    const int64_t slot = control_[i].steps % a_.order;
    times_[i * a_.order + slot] = at_[i];
    std::copy_n(slope_ + i * dim_, dim_, slopes(i, slot));
    if (columns_ == 0) return;
    followed_[i * a_.order + slot] = smooth_[i];
    std::copy_n(divergence_ + i * columns_, columns_, next_divergences(integral_[i], beside(i), columns_));
    add(integral_[i], at_[i], smooth_[i], probes() ? noise_[i] : 0, linked() ? link_[i] : 0);
    if (linked()) std::copy_n(parts_ + i * dim_, dim_, features_ + i * dim_);
  }

  // One step of every row.
  void attempt() {
    for (int64_t i = 0; i < count_; ++i) predict(i);
    evaluate(0);
    field_.sensitivity(count_, at_, state_, slope_, sensitivity_);
    for (int64_t i = 0; i < count_; ++i) finish(i);
  }

  void predict(int64_t i) {
    double* weights = predict_ + i * kMostNodes;
    adams_aim(control_[i], a_, times_ + i * a_.order, weights, correct_ + i * kMostNodes);
    at_[i] = control_[i].at;
    number_[i] = control_[i].steps + 1;
    combine(i, weights, state_ + i * dim_);
    for (int64_t j = i * dim_; j < (i + 1) * dim_; ++j) state_[j] = y_[j] + state_[j];
  }

  // sum_j weights[j] slopes[j] of row i.
  void combine(int64_t i, const double* weights, T* out) const {
    std::fill_n(out, dim_, T(0));
    for (int slot = 0; slot < known(i); ++slot) {
      const T weight = T(weights[slot]);
      const T* slope = slopes(i, slot);
      for (int64_t j = 0; j < dim_; ++j) out[j] += weight * slope[j];
    }
  }

  // Judges the attempt of row i, corrects the state, and chooses the next step.
  void finish(int64_t i) {
    const int used = known(i);
    const double *predict = predict_ + i * kMostNodes, *correct = correct_ + i * kMostNodes;
    double change[kMostNodes], defect = 0, square = 0;
    for (int slot = 0; slot < used; ++slot) change[slot] = correct[slot] - predict[slot];
    T* gap = gap_ + i * dim_;
    combine(i, change, gap);
    for (int64_t j = 0; j < dim_; ++j) {
      const int64_t at = i * dim_ + j;
      gap[j] += T(correct[used]) * slope_[at];
      const T size = std::max(std::abs(state_[at]), std::abs(y_[at]));
      const T relative = gap[j] / (T(a_.atol) + T(a_.rtol) * size);
      square += double(relative) * double(relative);
      defect += double(sensitivity_[at]) * double(gap[j]);
    }
    const double of_state = std::sqrt(square / double(dim_)), of_answer = std::fabs(defect) / a_.q_atol;
    const double error = worst(of_state, of_answer, integral_error(i, change, correct[used]));
    const bool accepted = error <= 1, jumps = accepted && jump(i, std::fmax(of_state, of_answer));
    adams_move(control_[i], a_, accepted, jumps, error, defect);
    if (!accepted) return;
    for (int64_t j = 0; j < dim_; ++j) y_[i * dim_ + j] = state_[i * dim_ + j] + gap[j];
    remember(i);
    if (columns_) advance(integral_[i], beside(i), a_.trace, false);
  }

  // Whether the slope jumps in this step, as far as the state is concerned.
  bool jump(int64_t i, double error) const {
    const AdamsRow& r = control_[i];
    if (!may_jump(r, a_, error)) return false;
    const T* last = slopes(i, r.steps % a_.order);
    double missed = 0, change = 0;
    for (int64_t j = 0; j < dim_; ++j) {
      const double gap = gap_[i * dim_ + j], by = double(slope_[i * dim_ + j]) - double(last[j]);
      missed += gap * gap;
      change += by * by;
    }
    return std::sqrt(missed) > a_.missed * std::fabs(r.at - r.t) * std::sqrt(change);
  }

  // The same difference for what the steps follow of the trace; NaN where anything is not finite.
  double integral_error(int64_t i, const double* change, double last) const {
    if (columns_ == 0) return 0;
    if (!integrand_is_finite(i)) return std::numeric_limits<double>::quiet_NaN();
    double gap = last * smooth_[i];
    for (int slot = 0; slot < known(i); ++slot) gap += change[slot] * followed_[i * a_.order + slot];
    return a_.integral_share * std::fabs(gap) / a_.q_atol;
  }

  // Rows that ended leave the tile; the last one takes their place.
  void retire() {
    for (int64_t i = 0; i < count_;) {
      if (control_[i].status == kRunning) {
        ++i;
        continue;
      }
      write(i);
      move(--count_, i);
    }
  }

  void write(int64_t i) {
    const int64_t row = row_[i];
    const AdamsRow& r = control_[i];
    std::copy_n(y_ + i * dim_, dim_, static_cast<T*>(a_.y) + row * dim_);
    a_.t[row] = r.t;
    a_.defect[row] = r.defect;
    a_.defect_square[row] = r.squares;
    a_.status[row] = r.status;
    a_.nfe[row] = r.evaluations;
    a_.steps[row] = r.steps;
    a_.rejected[row] = r.refused;
    TraceAnswer trace{};
    if (columns_) {
      advance(integral_[i], beside(i), a_.trace, true);
      trace = answer(integral_[i], beside(i), a_.trace);
    }
    a_.change[row] = trace.change;
    a_.variance[row] = trace.variance;
    a_.quadrature[row] = trace.quadrature;
  }

  void move(int64_t from, int64_t to) {
    if (from == to) return;
    // the last evaluation too: rows may leave between an evaluation and its use
    for (T* array : {y_, state_, slope_}) std::copy_n(array + from * dim_, dim_, array + to * dim_);
    std::copy_n(slopes(from, 0), a_.order * dim_, slopes(to, 0));
    std::copy_n(features_ + from * dim_, dim_, features_ + to * dim_);
    for (double* array : {times_, followed_})
      std::copy_n(array + from * a_.order, a_.order, array + to * a_.order);
    std::copy_n(beside(from), trace_numbers(columns_), beside(to));
    for (int64_t* array : {row_, number_}) array[to] = array[from];
    at_[to] = at_[from];
    control_[to] = control_[from];
    integral_[to] = integral_[from];
  }

  const MlpAdamsArgs& a_;
  const int64_t dim_, columns_, capacity_;
  int64_t count_ = 0;
  T *y_, *state_, *slope_, *gap_, *sensitivity_, *slopes_;
  double *parts_, *features_, *divergence_, *times_, *followed_, *predict_, *correct_, *beside_;
  double *at_, *noise_, *smooth_, *link_;
  int64_t *row_, *number_;
  AdamsRow* control_;
  TraceIntegral* integral_;
  TileField<T> field_;
};

}  // namespace
}  // namespace fastlik::FASTLIK_ISA
