// The likelihood's ODE on a fixed grid, for a tile of rows.
#pragma once

#include "mlp_field.h"

namespace fastlik::FASTLIK_ISA {
namespace {

template <class T>
class GridTile {
 public:
  static int64_t bytes(const MlpNetwork& net, const MlpGridArgs& a, const Tile& tile) {
    const int64_t size = tile.rows * net.dim;
    return MlpEvaluator<T>::bytes(net, tile.rows, tile.tangents, true) +
           cut_size<T>(size) * (2 + a.slots) + cut_size<Coefficients>(tile.rows) +
           cut_size<int64_t>(tile.rows) + cut_size<double>(tile.rows * a.trace.columns());
  }

  GridTile(const MlpNetwork& net, const MlpGridArgs& a, const Tile& tile, T* table, char* memory)
      : net_(net), a_(a), table_(table),
        evaluator_(net, tile.rows, tile.tangents, true, memory),
        field_(evaluator_, a.trace, std::max<int64_t>(1, tile.tangents)) {
    Cutter cutter(memory + MlpEvaluator<T>::bytes(net, tile.rows, tile.tangents, true));
    const int64_t size = tile.rows * net.dim;
    y_ = cutter.take<T>(size);
    state_ = cutter.take<T>(size);
    for (int64_t s = 0; s < a.slots; ++s) slots_[s] = cutter.take<T>(size);
    coefficients_ = cutter.take<Coefficients>(tile.rows);
    nodes_ = cutter.take<int64_t>(tile.rows);
    divergence_ = cutter.take<double>(tile.rows * a.trace.columns());
  }

  void run(int64_t first, int64_t rows) {
    first_ = first;
    rows_ = rows;
    std::memcpy(y_, static_cast<const T*>(a_.in.state) + first * net_.dim, rows * net_.dim * sizeof(T));
    for (int64_t r = 0; r < rows; ++r) field_.load_conditions(a_.in, r, first + r);
    evaluator_.run_conditions(rows);
    const int64_t columns = a_.trace.columns() * a_.quadratures;
    std::fill_n(a_.q + first * columns, rows * columns, 0.0);
    std::fill_n(a_.first_bad + first, rows, int64_t(-1));
    for (int64_t e = 0; e < a_.evaluations; ++e) evaluate(e);
    std::memcpy(static_cast<T*>(a_.latent) + first * net_.dim, y_, rows * net_.dim * sizeof(T));
    check(a_.evaluations - 1);
  }

 private:
  void evaluate(int64_t e) {
    evaluator_.use_time(table_, a_.evaluations, e);
    std::fill_n(coefficients_, rows_,
                Coefficients{a_.input_scale[e], a_.of_state[e], a_.of_output[e]});
    combine(a_.stage + e * a_.slots, state_);
    T* slope = a_.slot[e] < 0 ? nullptr : slots_[a_.slot[e]];
    if (has_trace(e)) {
      std::fill_n(nodes_, rows_, a_.node[e]);
      field_.value_and_divergence(rows_, state_, coefficients_, a_.in.ids + first_, nodes_, slope,
                                  divergence_);
      add_divergences(a_.weight + e * a_.quadratures);
    } else {
      field_.value(rows_, state_, coefficients_, slope);
    }
    if (a_.commit[e]) {
      combine(a_.update + e * a_.slots, y_);
      check(e);
    }
  }

  bool has_trace(int64_t e) const {
    if (a_.trace.mode == kNoTrace) return false;
    for (int64_t i = 0; i < a_.quadratures; ++i)
      if (a_.weight[e * a_.quadratures + i] != 0) return true;
    return false;
  }

  // out = y + sum_s weights[s] k[s]; a slope of weight 0 is not read.
  void combine(const double* weights, T* out) const {
    const int64_t size = rows_ * net_.dim;
    if (out != y_) std::memcpy(out, y_, size * sizeof(T));
    for (int64_t s = 0; s < a_.slots; ++s) {
      const T weight = T(weights[s]);
      if (weights[s] == 0) continue;
      const T* k = slots_[s];
      for (int64_t i = 0; i < size; ++i) out[i] += weight * k[i];
    }
  }

  void add_divergences(const double* weights) const {
    const int64_t count = rows_ * a_.trace.columns();
    double* q = a_.q + first_ * a_.trace.columns() * a_.quadratures;
    for (int64_t c = 0; c < count; ++c)
      for (int64_t i = 0; i < a_.quadratures; ++i) q[c * a_.quadratures + i] += weights[i] * divergence_[c];
  }

  void check(int64_t e) const {
    const int64_t columns = a_.trace.columns() * a_.quadratures;
    for (int64_t r = 0; r < rows_; ++r)
      if (a_.first_bad[first_ + r] < 0 &&
          !(all_finite(y_ + r * net_.dim, net_.dim) &&
            all_finite(a_.q + (first_ + r) * columns, columns)))
        a_.first_bad[first_ + r] = e;
  }

  const MlpNetwork& net_;
  const MlpGridArgs& a_;
  T* table_;
  int64_t first_ = 0, rows_ = 0;
  T *y_, *state_;
  T* slots_[kMaxStages];
  Coefficients* coefficients_;
  int64_t* nodes_;
  double* divergence_;
  MlpEvaluator<T> evaluator_;
  MlpField<T> field_;
};

}  // namespace
}  // namespace fastlik::FASTLIK_ISA
