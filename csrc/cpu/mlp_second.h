// Runs a network's operations on values, tangents and lines of second order, sums of D^2 F[v_a, v_b].
//
// Line t of row r is line t * rows + r of a buffer.  An operation treats a line of second order as a tangent, and
// adds what its own second derivative makes of the tangents a and b.  So a mixed derivative is one line; from those
// along v_a + v_b and v_a - v_b it would be the difference of two, with tangents of their own.
#pragma once

#include <vector>

#include "functions_high.h"
#include "mlp_evaluator.h"

namespace fastlik::FASTLIK_ISA {
namespace {

template <class T>
inline void add_scaled(T scale, const T* from, T* to, int64_t width) {
  for (int64_t i = 0; i < width; ++i) to[i] += scale * from[i];
}

template <class T>
class MlpSecondOrder : public MlpEvaluator<T> {
  using Base = MlpEvaluator<T>;

 public:
  MlpSecondOrder(const MlpNetwork& net, int64_t rows, int64_t tangents, const MlpSecond& second, char* memory)
      : Base(net, rows, tangents + second.lines, false, memory), lines_(tangents + second.lines), second_(second) {}

  void run(int64_t rows) {
    for (int32_t i = 0; i < this->net_.value_ops; ++i) {
      const MlpOp& op = this->net_.ops[i];
      if (op.depends != kOnTime && op.depends != kOnCondition) run(op, rows);
    }
  }

 protected:
  // The lines of row r among those of `rows` rows.
  static Lines<T> of_row(const Lines<T>& all, int64_t r, int64_t rows) { return {all[r], all.line * rows}; }

  // go(a, b, out) for the terms that an operation has, if its results move with the state.
  template <class Go>
  void each_term(bool moves, Go go) const {
    const MlpTerm* term = second_.terms;
    for (int64_t k = 0; moves && k < second_.count; ++k, ++term) go(term->a, term->b, term->out);
  }

  // A row's normalisation as y = c square^(-1/2), where c are the centred inputs and square = mean(c^2) + eps: all of
  // them in units in which square is 1.
  struct Deviation {
    T root = 1;                     // that they are multiplied by
    std::vector<T> square, factor;  // lines of square and of square^(-1/2)
  };

  // Of the inputs' lines x; the centred ones go to c.
  void measure(const Lines<T>& x, const Lines<T>& c, const MlpOp& op, Deviation& found) const {
    const bool moves = this->on_state(op.out);
    const int64_t width = op.a.width, lines = moves ? lines_ : 0;
    const auto mean = [&](const T* a, const T* b) { return Base::inner(a, b, width) / T(width); };
    found.square.assign(1 + lines, T(1));
    found.factor.assign(1 + lines, T(1));
    for (int64_t t = 0; t <= lines; ++t) {
      Base::centre(x[t], c[t], width);
      if (t == 0) found.root = 1 / std::sqrt(mean(c[0], c[0]) + T(op.parameter));
      for (int64_t i = 0; i < width; ++i) c[t][i] *= found.root;
      if (t > 0) found.square[t] = 2 * mean(c[0], c[t]);
    }
    each_term(moves, [&](int a, int b, int out) { found.square[out] += 2 * mean(c[a], c[b]); });
    for (int64_t t = 1; t <= lines; ++t) found.factor[t] = T(-0.5) * found.square[t];
    each_term(moves, [&](int a, int b, int out) { found.factor[out] += T(0.75) * found.square[a] * found.square[b]; });
  }

  const int64_t lines_;  // tangents and those of second order
  const MlpSecond second_;

 private:
  void run(const MlpOp& op, int64_t rows) {
    const bool curved = second_.count > 0 && op.depends & kOnState;
    if (curved && op.code == kFunction)
      return with_function(op.function, [&](auto f) { function<f>(op, rows, T(op.parameter)); });
    if (curved && op.code == kNormalise) return normalise(op, rows);
    Base::run(op, rows, lines_);
    if (curved && op.code == kMultiply) add_products(op, rows);
  }

  // f' a_t, and f'' a_a a_b.
  template <MlpFunction kF>
  void function(const MlpOp& op, int64_t rows, T p) {
    for (int64_t r = 0; r < rows; ++r) {
      const Lines<T> x = of_row(this->lines(op.a), r, rows), y = of_row(this->lines(op.out), r, rows);
      each_vector<T>(op.a.width, [&](int64_t i) {
        const Derivatives<T> f = apply_high<kF, T>(load(x[0] + i), p);
        store(y[0] + i, f.value);
        for (int64_t t = 1; t <= lines_; ++t) store(y[t] + i, f.first * load(x[t] + i));
        each_term(true, [&](int a, int b, int out) {
          store(y[out] + i, load(y[out] + i) + f.second * load(x[a] + i) * load(x[b] + i));
        });
      });
    }
  }

  // x_a z_b + x_b z_a.
  void add_products(const MlpOp& op, int64_t rows) {
    const bool both = this->on_state(op.a) && this->on_state(op.b);
    for (int64_t r = 0; both && r < rows; ++r) {
      const Lines<T> x = of_row(this->lines(op.a), r, rows), z = of_row(this->lines(op.b), r, rows),
                     y = of_row(this->lines(op.out), r, rows);
      each_term(true, [&](int a, int b, int out) {
        each_vector<T>(op.a.width, [&](int64_t i) {
          const Vector<T> of_a = Base::operand(z[a], op.b.width, i), of_b = Base::operand(z[b], op.b.width, i);
          store(y[out] + i, load(y[out] + i) + load(x[a] + i) * of_b + load(x[b] + i) * of_a);
        });
      });
    }
  }

  void normalise(const MlpOp& op, int64_t rows) {
    const int64_t width = op.a.width;
    Deviation deviation;
    for (int64_t r = 0; r < rows; ++r) {
      const Lines<T> y = of_row(this->lines(op.out), r, rows);  // c, until it is multiplied by the factor
      measure(of_row(this->lines(op.a), r, rows), y, op, deviation);
      const std::vector<T>& factor = deviation.factor;
      each_term(true, [&](int a, int b, int out) {
        add_scaled(factor[a], y[b], y[out], width);
        add_scaled(factor[b], y[a], y[out], width);
      });
      for (int64_t t = 1; t <= lines_; ++t) add_scaled(factor[t], y[0], y[t], width);
    }
  }
};

}  // namespace
}  // namespace fastlik::FASTLIK_ISA
