// The likelihood's ODE with steps of its own for each row: fastlik/solvers/adaptive.py for a tile.  A row
// that ends makes room for the next one, so that tiles stay full.
#pragma once

#include <cmath>

#include "fastlik/cpu.h"
#include "mlp_tile.h"

namespace fastlik::FASTLIK_ISA {
namespace {

template <class T>
class AdaptiveTile {
 public:
  static int64_t bytes(const MlpNetwork& net, const MlpAdaptiveArgs& a, const Tile& tile) {
    const int64_t columns = a.trace.columns();
    return TileField<T>::bytes(net, tile) + (5 + a.stages) * cut_size<T>(tile.rows * net.dim) + cut_size<T>(net.dim) +
           (2 + a.stages) * cut_size<double>(tile.rows * columns) +
           8 * cut_size<double>(tile.rows) + 7 * cut_size<int64_t>(tile.rows) +
           cut_size<int32_t>(tile.rows) + 2 * cut_size<bool>(tile.rows);
  }

  AdaptiveTile(const MlpNetwork& net, const MlpAdaptiveArgs& a, const Tile& tile, char* memory)
      : a_(a), dim_(net.dim), columns_(a.trace.columns()), capacity_(tile.rows),
        field_(net, a.in, a.trace, a.clock, tile, memory) {
    Cutter cutter(memory + TileField<T>::bytes(net, tile));
    const int64_t rows = tile.rows, size = rows * dim_;
    for (T** array : {&y_, &state_, &slope_, &packed_, &sensitivity_}) *array = cutter.take<T>(size);
    k_ = cutter.take<T>(a.stages * size);
    saved_ = cutter.take<T>(dim_);
    for (double** array : {&q_, &divergence_}) *array = cutter.take<double>(rows * columns_);
    kq_ = cutter.take<double>(a.stages * rows * columns_);
    for (double** array : {&t_, &t_end_, &h_, &stage_t_, &packed_t_, &error_prev_, &defect_, &error_})
      *array = cutter.take<double>(rows);
    for (int64_t** array :
         {&row_, &packed_row_, &list_, &nodes_, &steps_, &refused_, &evaluations_})
      *array = cutter.take<int64_t>(rows);
    status_ = cutter.take<int32_t>(rows);
    for (bool** array : {&accepted_, &rejected_}) *array = cutter.take<bool>(rows);
  }

  void run(Queue& queue) {
    for (;;) {
      fill(queue);
      if (count_ == 0) return;
      attempt();
      retire();
    }
  }

 private:
  T* k(int64_t stage, int64_t i) const { return k_ + (stage * capacity_ + i) * dim_; }
  double* kq(int64_t stage, int64_t i) const { return kq_ + (stage * capacity_ + i) * columns_; }

  // Takes rows up until the tile is full, and chooses their first steps.
  void fill(Queue& queue) {
    const int64_t before = count_;
    for (int64_t row; count_ < capacity_ && (row = queue.next()) >= 0;) {
      const int64_t i = count_;
      row_[i] = row;
      std::memcpy(y_ + i * dim_, static_cast<const T*>(a_.in.state) + row * dim_, dim_ * sizeof(T));
      std::fill_n(q_ + i * columns_, columns_, 0.0);
      t_[i] = a_.t0;
      t_end_[i] = a_.t1;
      h_[i] = defect_[i] = 0;
      error_prev_[i] = 1e-4;
      steps_[i] = refused_[i] = evaluations_[i] = 0;
      rejected_[i] = false;
      status_[i] = kRunning;
      ++count_;
    }
    if (count_ > before) start(before);
  }

  // Evaluates the first stage of the rows from `first` on and chooses their first step.
  void start(int64_t first) {
    const double span = std::fabs(a_.t1 - a_.t0), direction = a_.t1 >= a_.t0 ? 1 : -1;
    int64_t count = 0;
    for (int64_t i = first; i < count_; ++i) {
      list_[count++] = i;
      stage_t_[i] = t_[i];
    }
    evaluate(0, count, y_);
    if (a_.first_step > 0) {
      for (int64_t i = first; i < count_; ++i) h_[i] = direction * std::fmin(a_.first_step, span);
      return;
    }
    for (int64_t i = first; i < count_; ++i) {
      const double size = trial_step(norm(i, y_ + i * dim_, nullptr), norm(i, k(0, i), nullptr));
      h_[i] = direction * std::fmin(size, span);
      stage_t_[i] = t_[i] + h_[i];
      for (int64_t j = 0; j < dim_; ++j)
        state_[i * dim_ + j] = y_[i * dim_ + j] + T(h_[i]) * k(0, i)[j];
    }
    evaluate(1, count, state_);
    for (int64_t i = first; i < count_; ++i) {
      const double change = norm(i, k(1, i), k(0, i)), order = a_.step.controller.order;
      const double size = first_step(std::fabs(h_[i]), norm(i, k(0, i), nullptr), change, order);
      h_[i] = direction * std::fmin(size, span);
    }
  }

  // Root mean square of (v - w) / (atol + rtol |y|) for row i.
  double norm(int64_t i, const T* v, const T* w) const {
    double total = 0;
    for (int64_t j = 0; j < dim_; ++j) {
      const double scale = a_.step.atol + a_.step.rtol * std::fabs(double(y_[i * dim_ + j]));
      const double x = (w ? double(v[j] - w[j]) : double(v[j])) / scale;
      total += x * x;
    }
    return std::sqrt(total / double(dim_));
  }

  // One step of every row.
  void attempt() {
    if (!a_.step.fsal) {  // only rows that were just taken up know their first stage
      int64_t count = 0;
      for (int64_t i = 0; i < count_; ++i) {
        stage_t_[i] = t_[i];
        if (steps_[i] + refused_[i] > 0) list_[count++] = i;
      }
      evaluate(0, count, y_);
    }
    for (int64_t i = 0; i < count_; ++i) list_[i] = i;
    for (int64_t s = 1; s < a_.stages; ++s) {
      for (int64_t i = 0; i < count_; ++i) {
        const double t = t_[i] + a_.c[s] * h_[i];  // rounding must not carry it past the end
        stage_t_[i] = h_[i] >= 0 ? std::fmin(t, t_end_[i]) : std::fmax(t, t_end_[i]);
      }
      combine_stage(s);
      evaluate(s, count_, state_);
    }
    field_.sensitivity(count_, stage_t_, state_, k(a_.stages - 1, 0), sensitivity_);
    finish_step();
  }

  void combine_stage(int64_t s) const {
    CombineArgs args{};
    args.rows = count_;
    args.size = args.y_row = args.k_row = args.out_row = dim_;
    args.stages = s;
    args.k_stage = capacity_ * dim_;
    args.y = y_;
    args.k = k_;
    args.out = state_;
    args.h = h_;
    std::copy_n(a_.a + s * a_.stages, s, args.weights);
    combine<T>(args, 1);
  }

  // Stage s of the first `rows` rows in list_, at stage_t_ and states.
  void evaluate(int64_t s, int64_t rows, const T* states) {
    if (rows == 0) return;
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t at = list_[i];
      std::memcpy(packed_ + i * dim_, states + at * dim_, dim_ * sizeof(T));
      packed_t_[i] = stage_t_[at];
      packed_row_[i] = row_[at];
      nodes_[i] = steps_[at];
    }
    field_.evaluate(rows, packed_row_, packed_t_, packed_, nodes_, slope_, divergence_);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t at = list_[i];
      std::copy_n(slope_ + i * dim_, dim_, k(s, at));
      std::copy_n(divergence_ + i * columns_, columns_, kq(s, at));
      ++evaluations_[at];
    }
  }

  void finish_step() {
    AdvanceArgs args = a_.step;
    args.rows = count_;
    args.size = args.y_row = args.k_row = args.sensitivity_row = dim_;
    args.k_stage = capacity_ * dim_;
    args.stages = a_.stages;
    args.probes = args.kq_row = columns_;
    args.kq_stage = capacity_ * columns_;
    args.y = y_;
    args.k = k_;
    args.saved = saved_;
    args.sensitivity = sensitivity_;
    args.q = columns_ ? q_ : nullptr;
    args.kq = columns_ ? kq_ : nullptr;
    args.h = h_;
    args.t = t_;
    args.t_end = t_end_;
    args.error_prev = error_prev_;
    args.defect = defect_;
    args.error = error_;
    args.rejected = rejected_;
    args.accepted = accepted_;
    args.status = status_;
    advance<T>(args, 1);
    for (int64_t i = 0; i < count_; ++i) {
      ++(accepted_[i] ? steps_ : refused_)[i];
      // shrinking the step cannot mend a slope that is not finite at the step's start
      if (!std::isfinite(error_[i]) &&
          !(all_finite(k(0, i), dim_) && all_finite(kq(0, i), columns_)))
        status_[i] = kNonFinite;
      if (status_[i] == kRunning && steps_[i] + refused_[i] == a_.max_steps) status_[i] = kMaxSteps;
    }
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

  void write(int64_t i) const {
    const int64_t row = row_[i];
    std::copy_n(y_ + i * dim_, dim_, static_cast<T*>(a_.y) + row * dim_);
    std::copy_n(q_ + i * columns_, columns_, a_.q + row * columns_);
    a_.t[row] = t_[i];
    a_.defect[row] = defect_[i];
    a_.status[row] = status_[i];
    a_.nfe[row] = evaluations_[i];
    a_.steps[row] = steps_[i];
    a_.rejected[row] = refused_[i];
  }

  void move(int64_t from, int64_t to) {
    if (from == to) return;
    std::copy_n(y_ + from * dim_, dim_, y_ + to * dim_);
    std::copy_n(k(0, from), dim_, k(0, to));
    std::copy_n(q_ + from * columns_, columns_, q_ + to * columns_);
    std::copy_n(kq(0, from), columns_, kq(0, to));
    for (double* array : {t_, t_end_, h_, error_prev_, defect_}) array[to] = array[from];
    for (int64_t* array : {row_, steps_, refused_, evaluations_}) array[to] = array[from];
    status_[to] = status_[from];
    rejected_[to] = rejected_[from];
  }

  const MlpAdaptiveArgs& a_;
  const int64_t dim_, columns_, capacity_;
  int64_t count_ = 0;
  T *y_, *state_, *slope_, *packed_, *sensitivity_, *k_, *saved_;
  double *q_, *divergence_, *kq_;
  double *t_, *t_end_, *h_, *stage_t_, *packed_t_, *error_prev_, *defect_, *error_;
  int64_t *row_, *packed_row_, *list_, *nodes_, *steps_, *refused_, *evaluations_;
  int32_t* status_;
  bool *accepted_, *rejected_;
  TileField<T> field_;
};

}  // namespace
}  // namespace fastlik::FASTLIK_ISA
