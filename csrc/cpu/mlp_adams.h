// The likelihood's ODE by Adams' predictor-corrector method, the trace by quadrature over its nodes:
// fastlik/solvers/adams.py and fastlik/likelihood/trace.py for a tile.  A row that ends makes room for the
// next one, so that tiles stay full.
#pragma once

#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "fastlik/cpu.h"
#include "fastlik/quadrature.h"
#include "mlp_tile.h"

namespace fastlik::FASTLIK_ISA {
namespace {

// A row's nodes: the divergence by each probe, or exactly; the noise of their mean; what changes as the
// divergence does, without noise; and the products of the node's features with those of the one before.
struct AdamsNodes {
  std::vector<double> t, divergence, noise, followed, links;

  void clear() {
    for (auto* values : {&t, &divergence, &noise, &followed, &links}) values->clear();
  }
};

template <class T>
class AdamsTile {
 public:
  static int64_t bytes(const MlpNetwork& net, const MlpAdamsArgs& a, const Tile& tile) {
    const int64_t size = tile.rows * net.dim, columns = a.trace.columns();
    return TileField<T>::bytes(net, tile) + (5 + a.order) * cut_size<T>(size) +
           cut_size<double>(size * std::max<int64_t>(1, columns)) + cut_size<double>(size) +
           cut_size<double>(tile.rows * columns) + 2 * cut_size<double>(tile.rows * a.order) +
           2 * cut_size<double>(tile.rows * kMostNodes) + 9 * cut_size<double>(tile.rows) +
           5 * cut_size<int64_t>(tile.rows) + cut_size<int32_t>(tile.rows);
  }

  AdamsTile(const MlpNetwork& net, const MlpAdamsArgs& a, const Tile& tile, char* memory)
      : a_(a), dim_(net.dim), columns_(a.trace.columns()), capacity_(tile.rows), nodes_(tile.rows),
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
    for (double** array : {&t_, &h_, &at_, &tried_, &defect_, &squares_, &noise_, &smooth_, &link_})
      *array = cutter.take<double>(rows);
    for (int64_t** array : {&row_, &number_, &steps_, &refused_, &evaluations_})
      *array = cutter.take<int64_t>(rows);
    status_ = cutter.take<int32_t>(rows);
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
  int known(int64_t i) const { return int(std::min(steps_[i] + 1, a_.order)); }
  T* slopes(int64_t i, int64_t slot) const { return slopes_ + (i * a_.order + slot) * dim_; }
  double resolution(double t) const {
    return 16 * std::numeric_limits<double>::epsilon() * std::fmax(std::fabs(t), std::fabs(a_.t1));
  }

  // Takes rows up until the tile is full, and evaluates them where they start; false: there were none.
  bool fill(Queue& queue) {
    const int64_t before = count_;
    for (int64_t row; count_ < capacity_ && (row = queue.next()) >= 0; ++count_) {
      const int64_t i = count_;
      row_[i] = row;
      std::memcpy(y_ + i * dim_, static_cast<const T*>(a_.in.state) + row * dim_, dim_ * sizeof(T));
      std::copy_n(y_ + i * dim_, dim_, state_ + i * dim_);
      t_[i] = at_[i] = a_.t0;
      h_[i] = std::copysign(std::fmin(a_.first_step, std::fabs(a_.t1 - a_.t0)), a_.t1 - a_.t0);
      tried_[i] = std::fabs(h_[i]);
      defect_[i] = squares_[i] = 0;
      number_[i] = steps_[i] = refused_[i] = evaluations_[i] = 0;
      status_[i] = kRunning;
      nodes_[i].clear();
    }
    evaluate(before);
    for (int64_t i = before; i < count_; ++i) {
      if (!all_finite(slope_ + i * dim_, dim_) || !integrand_is_finite(i)) status_[i] = kNonFinite;
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
      ++evaluations_[i];
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
    smooth_[i] = 2 * drift + speed * TileField<T>::cotangent(clock_values(a_.clock, at_[i]));
  }

  bool integrand_is_finite(int64_t i) const {
    if (columns_ == 0) return true;
    bool finite = all_finite(divergence_ + i * columns_, columns_) && all_finite(smooth_ + i, 1);
    return finite && (!probes() || all_finite(noise_ + i, 1));
  }

  // The node just evaluated becomes the row's last one.
  void remember(int64_t i) {
    const int64_t slot = steps_[i] % a_.order;
    times_[i * a_.order + slot] = at_[i];
    std::copy_n(slope_ + i * dim_, dim_, slopes(i, slot));
    if (columns_ == 0) return;
    followed_[i * a_.order + slot] = smooth_[i];
    AdamsNodes& nodes = nodes_[i];
    nodes.t.push_back(at_[i]);
    nodes.divergence.insert(nodes.divergence.end(), divergence_ + i * columns_,
                            divergence_ + (i + 1) * columns_);
    nodes.followed.push_back(smooth_[i]);
    if (probes()) nodes.noise.push_back(noise_[i]);
    if (!linked()) return;
    nodes.links.push_back(link_[i]);
    std::copy_n(parts_ + i * dim_, dim_, features_ + i * dim_);
  }

  // One step of every row.
  void attempt() {
    for (int64_t i = 0; i < count_; ++i) predict(i);
    evaluate(0);
    field_.sensitivity(count_, at_, state_, slope_, sensitivity_);
    for (int64_t i = 0; i < count_; ++i) finish(i);
  }

  void predict(int64_t i) {
    const double* times = times_ + i * a_.order;
    double* weights = predict_ + i * kMostNodes;
    at_[i] = t_[i] + h_[i];
    if (std::fabs(a_.t1 - at_[i]) <= resolution(at_[i])) at_[i] = a_.t1;
    number_[i] = steps_[i] + 1;
    lagrange_weights(times, known(i), t_[i], at_[i], weights);
    combine(i, weights, state_ + i * dim_);
    for (int64_t j = i * dim_; j < (i + 1) * dim_; ++j) state_[j] = y_[j] + state_[j];
    double nodes[kMostNodes];
    std::copy_n(times, known(i), nodes);
    nodes[known(i)] = at_[i];
    lagrange_weights(nodes, known(i) + 1, t_[i], at_[i], correct_ + i * kMostNodes);
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
    // a comparison with NaN is false: NaN has to stay
    const double of_state = std::sqrt(square / double(dim_)), of_answer = std::fabs(defect) / a_.q_atol;
    const double of_trace = integral_error(i, change, correct[used]);
    double error = of_state + of_answer + of_trace;
    if (std::isfinite(error)) error = std::fmax(std::fmax(of_state, of_answer), of_trace);
    const bool accepted = error <= 1;
    const bool jumps = accepted && jump(i, used, std::fmax(of_state, of_answer));
    if (accepted) {
      for (int64_t j = 0; j < dim_; ++j) y_[i * dim_ + j] = state_[i * dim_ + j] + gap[j];
      t_[i] = at_[i];
      defect_[i] += defect;
      squares_[i] += defect * defect;
      ++steps_[i];
      remember(i);
    } else {
      ++refused_[i];
    }
    control(i, accepted, error, used);
    if (jumps) status_[i] = kDiscontinuous;
    if (status_[i] == kRunning && steps_[i] + refused_[i] == a_.max_steps) status_[i] = kMaxSteps;
  }

  // Whether the slope jumps in this step, as far as the state is concerned.
  bool jump(int64_t i, int used, double error) const {
    const double h = std::fabs(at_[i] - t_[i]);
    if (columns_ == 0 || a_.order == 1 || used < a_.order || tried_[i] < a_.shrunk * h || !(error > a_.for_the_state))
      return false;
    const T* last = slopes(i, steps_[i] % a_.order);
    double missed = 0, change = 0;
    for (int64_t j = 0; j < dim_; ++j) {
      const double gap = gap_[i * dim_ + j], by = double(slope_[i * dim_ + j]) - double(last[j]);
      missed += gap * gap;
      change += by * by;
    }
    return std::sqrt(missed) > a_.missed * h * std::sqrt(change);
  }

  // The same difference for what the steps follow of the trace; NaN where anything is not finite.
  double integral_error(int64_t i, const double* change, double last) const {
    if (columns_ == 0) return 0;
    if (!integrand_is_finite(i)) return std::numeric_limits<double>::quiet_NaN();
    double gap = last * smooth_[i];
    for (int slot = 0; slot < known(i); ++slot) gap += change[slot] * followed_[i * a_.order + slot];
    return a_.integral_share * std::fabs(gap) / a_.q_atol;
  }

  void control(int64_t i, bool accepted, double error, int used) {
    double factor = 0.1;
    if (std::isfinite(error)) {
      factor = 0.9 * std::pow(error, -1.0 / (used + 1));
      factor = accepted ? std::fmin(std::fmax(factor, 0.3), 2.0) : std::fmin(std::fmax(factor, 0.1), 0.7);
    }
    const double left = a_.t1 - t_[i];
    double h = h_[i] * factor;
    // no sliver at the end
    if (std::fabs(h) >= std::fabs(left)) h = left;
    else if (2 * std::fabs(h) > std::fabs(left)) h = 0.5 * left;
    h_[i] = h;
    if (accepted) tried_[i] = std::fmax(std::fabs(h), 0.5 * tried_[i]);
    if (accepted && t_[i] == a_.t1) status_[i] = kDone;
    else if (std::fabs(h) < resolution(t_[i])) status_[i] = std::isfinite(error) ? kUnderflow : kNonFinite;
  }

  // Rows that ended leave the tile; the last one takes their place.
  void retire() {
    for (int64_t i = 0; i < count_;) {
      if (status_[i] == kRunning) {
        ++i;
        continue;
      }
      write(i);
      move(--count_, i);
    }
  }

  void write(int64_t i) {
    const int64_t row = row_[i];
    std::copy_n(y_ + i * dim_, dim_, static_cast<T*>(a_.y) + row * dim_);
    a_.t[row] = t_[i];
    a_.defect[row] = defect_[i];
    a_.defect_square[row] = squares_[i];
    a_.status[row] = status_[i];
    a_.nfe[row] = evaluations_[i];
    a_.steps[row] = steps_[i];
    a_.rejected[row] = refused_[i];
    a_.change[row] = a_.variance[row] = a_.quadrature[row] = 0;
    if (columns_) integrate(nodes_[i], row);
  }

  // The trace's integral by six-node quadrature, its variance, and its error.
  void integrate(const AdamsNodes& nodes, int64_t row) {
    const int64_t count = int64_t(nodes.t.size());
    weights_.resize(count);
    node_weights(nodes.t.data(), count, kMostNodes, weights_.data());
    sums_.assign(columns_, 0.0);
    double squares = 0, variance = 0;
    for (int64_t n = 0; n < count; ++n) {
      const double off = weights_[n] * distance(nodes, n, count);
      squares += off * off;
      for (int64_t k = 0; k < columns_; ++k) sums_[k] += weights_[n] * nodes.divergence[n * columns_ + k];
      if (probes()) variance += weights_[n] * weights_[n] * noise_at(nodes, n, count);
    }
    double mean = 0, deviations = 0;
    for (double sum : sums_) mean += sum / double(columns_);
    for (double sum : sums_) deviations += (sum - mean) * (sum - mean);
    a_.change[row] = mean;
    a_.quadrature[row] = std::sqrt(squares);
    if (!probes()) return;
    const double n = double(columns_);
    a_.variance[row] = a_.trace.fresh ? variance : deviations / (n - 1) / n;
  }

  double distance(const AdamsNodes& nodes, int64_t n, int64_t count) const {
    const double *t = nodes.t.data(), *values = nodes.followed.data();
    return std::fmin(std::fabs(residual(t, values, count, n, 4)), std::fabs(residual(t, values, count, n, 6)));
  }

  double noise_at(const AdamsNodes& nodes, int64_t n, int64_t count) const {
    if (!linked()) return nodes.noise[n];
    double links = 0;
    int neighbours = 0;
    if (n > 0) links += nodes.links[n], ++neighbours;
    if (n + 1 < count) links += nodes.links[n + 1], ++neighbours;
    return std::fmax(nodes.noise[n] - 2 * links / std::max(1, neighbours), 0);
  }

  void move(int64_t from, int64_t to) {
    if (from == to) return;
    // the last evaluation too: rows may leave between an evaluation and its use
    for (T* array : {y_, state_, slope_}) std::copy_n(array + from * dim_, dim_, array + to * dim_);
    std::copy_n(slopes(from, 0), a_.order * dim_, slopes(to, 0));
    std::copy_n(features_ + from * dim_, dim_, features_ + to * dim_);
    for (double* array : {times_, followed_})
      std::copy_n(array + from * a_.order, a_.order, array + to * a_.order);
    for (double* array : {t_, h_, at_, tried_, defect_, squares_}) array[to] = array[from];
    for (int64_t* array : {row_, number_, steps_, refused_, evaluations_}) array[to] = array[from];
    status_[to] = status_[from];
    std::swap(nodes_[to], nodes_[from]);
  }

  const MlpAdamsArgs& a_;
  const int64_t dim_, columns_, capacity_;
  int64_t count_ = 0;
  std::vector<AdamsNodes> nodes_;
  std::vector<double> weights_, sums_;
  T *y_, *state_, *slope_, *gap_, *sensitivity_, *slopes_;
  double *parts_, *features_, *divergence_, *times_, *followed_, *predict_, *correct_;
  double *t_, *h_, *at_, *tried_, *defect_, *squares_, *noise_, *smooth_, *link_;
  int64_t *row_, *number_, *steps_, *refused_, *evaluations_;
  int32_t* status_;
  TileField<T> field_;
};

}  // namespace
}  // namespace fastlik::FASTLIK_ISA
