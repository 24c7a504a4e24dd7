// What tiles share whose rows have times of their own: where rows come from, and how they are evaluated.
#pragma once

#include "mlp_field.h"

namespace fastlik::FASTLIK_ISA {
namespace {

// Rows of the batch that are still to be taken up; shared by the threads.
class Queue {
 public:
  explicit Queue(int64_t rows) : rows_(rows) {}
  int64_t next() {  // -1: there is none
    int64_t row;
#pragma omp atomic capture
    row = at_++;
    return row < rows_ ? row : -1;
  }

 private:
  int64_t rows_, at_ = 0;
};

template <class T>
class TileField {
 public:
  static int64_t bytes(const MlpNetwork& net, const Tile& tile) {
    return MlpEvaluator<T>::bytes(net, tile.rows, tile.tangents, false) +
           2 * cut_size<int64_t>(tile.rows) + cut_size<Coefficients>(tile.rows);
  }

  TileField(const MlpNetwork& net, const MlpRows& in, const MlpTrace& trace, const MlpClock& clock,
            const Tile& tile, char* memory)
      : in_(in), trace_(trace), clock_(clock),
        evaluator_(net, tile.rows, tile.tangents, false, memory),
        field_(evaluator_, trace, std::max<int64_t>(1, tile.tangents)) {
    Cutter cutter(memory + MlpEvaluator<T>::bytes(net, tile.rows, tile.tangents, false));
    loaded_ = cutter.take<int64_t>(tile.rows);
    ids_ = cutter.take<int64_t>(tile.rows);
    coefficients_ = cutter.take<Coefficients>(tile.rows);
    std::fill_n(loaded_, tile.rows, int64_t(-1));
  }

  // As MlpField::keep_parts.
  void keep_parts(double* parts) { field_.keep_parts(parts); }

  // Slopes (count, dim) and divergences (count, columns) of the batch's rows `rows` (count,) at clock
  // values u and states (count, dim), with the probes of `nodes`.
  void evaluate(int64_t count, const int64_t* rows, const double* u, const T* states,
                const int64_t* nodes, T* slope, double* divergence) {
    if (count == 0) return;
    bool changed = false;
    for (int64_t i = 0; i < count; ++i) {
      const MlpClockValues values = clock_values(clock_, u[i]);
      *evaluator_.time(i) = T(values.time);
      coefficients_[i] = {values.input_scale, values.of_state, values.of_output};
      ids_[i] = in_.ids[rows[i]];
      if (loaded_[i] == rows[i]) continue;
      loaded_[i] = rows[i];
      field_.load_conditions(in_, i, rows[i]);
      changed = true;
    }
    evaluator_.run_times(count);
    if (changed) evaluator_.run_conditions(count);
    if (trace_.columns() == 0)
      field_.value(count, states, coefficients_, slope);
    else
      field_.value_and_divergence(count, states, coefficients_, ids_, nodes, slope, divergence);
  }

  // grad_z log p (rows, dim) by the model's own score.
  void sensitivity(int64_t rows, const double* u, const T* states, const T* slopes, T* out) const {
    const int64_t dim = evaluator_.net().dim;
    for (int64_t i = 0; i < rows; ++i) {
      const T gain = T(cotangent(clock_values(clock_, u[i])));
      for (int64_t j = i * dim; j < (i + 1) * dim; ++j) out[j] = -states[j] - gain * slopes[j];
    }
  }

 private:
  const MlpRows& in_;
  const MlpTrace& trace_;
  const MlpClock& clock_;
  int64_t *loaded_, *ids_;
  Coefficients* coefficients_;
  MlpEvaluator<T> evaluator_;
  MlpField<T> field_;
};

}  // namespace
}  // namespace fastlik::FASTLIK_ISA
