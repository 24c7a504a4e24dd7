// Runs a network's operations on values and their derivatives of several orders along directions.
//
// The derivatives D^m f[v_k, ..., v_k] take the evaluator's lines of tangents: order m (from 1) of direction k
// and row r is line (1 + (m - 1) * directions + k) * rows + r.
#pragma once

#include "functions_high.h"
#include "mlp_evaluator.h"

namespace fastlik::FASTLIK_ISA {
namespace {

constexpr int kMaxOrder = 3;

template <class T>
class MlpTaylor : public MlpEvaluator<T> {
  using Base = MlpEvaluator<T>;

 public:
  MlpTaylor(const MlpNetwork& net, int64_t rows, int64_t lines, int order, char* memory)
      : Base(net, rows, lines, false, memory), order_(order) {}

  int64_t line(int order, int64_t direction, int64_t row) const {
    return order == 0 ? row : (1 + (order - 1) * directions_ + direction) * rows_ + row;
  }

  // How many rows and directions the lines are of, from now on.
  void arrange(int64_t rows, int64_t directions) {
    rows_ = rows;
    directions_ = directions;
  }

  void run() {
    for (int32_t i = 0; i < this->net_.value_ops; ++i) {
      const MlpOp& op = this->net_.ops[i];
      if (op.depends != kOnTime && op.depends != kOnCondition) run(op);
    }
  }

 private:
  // Row r's derivatives of one direction at vector i, up to the order asked for.
  struct Series {
    Vector<T> at[kMaxOrder + 1];
  };

  void run(const MlpOp& op) {
    const bool linear = op.code == kLinear || op.code == kAdd || op.code == kCopy;
    if (linear || !(op.depends & kOnState)) return Base::run(op, rows_, directions_ * order_);
    if (op.code == kFunction) return function(op);
    if (op.code == kMultiply) return multiply(op);
    if (op.code == kNormalise) return normalise(op);
  }

  Series read(const Lines<T>& from, int64_t k, int64_t r, int64_t i) const {
    Series series{};
    for (int m = 1; m <= order_; ++m) series.at[m] = load(from[line(m, k, r)] + i);
    return series;
  }

  void write(const Lines<T>& to, int64_t k, int64_t r, int64_t i, const Series& series) const {
    for (int m = 1; m <= order_; ++m) store(to[line(m, k, r)] + i, series.at[m]);
  }

  void function(const MlpOp& op) {
    const T p = T(op.parameter);
    with_function(op.function, [&](auto f) { function<f>(op, p); });
  }

  // Faa di Bruno: f' a1, f'' a1^2 + f' a2, f''' a1^3 + 3 f'' a1 a2 + f' a3.
  template <MlpFunction kF>
  void function(const MlpOp& op, T p) {
    const Lines<T> out = this->lines(op.out), a = this->lines(op.a);
    for (int64_t r = 0; r < rows_; ++r)
      each_vector<T>(op.a.width, [&](int64_t i) {
        const Derivatives<T> f = apply_high<kF, T>(load(a[r] + i), p);
        store(out[r] + i, f.value);
        for (int64_t k = 0; k < directions_; ++k) {
          const Series x = read(a, k, r, i);
          const Vector<T> first = x.at[1], square = first * first;
          write(out, k, r, i,
                {{f.value, f.first * first, f.second * square + f.first * x.at[2],
                  f.third * square * first + 3 * f.second * first * x.at[2] + f.first * x.at[3]}});
        }
      });
  }

  // Leibniz: the derivatives of a factor that does not depend on the state are 0.
  void multiply(const MlpOp& op) {
    const Lines<T> out = this->lines(op.out), a = this->lines(op.a), b = this->lines(op.b);
    const bool of_a = this->on_state(op.a), of_b = this->on_state(op.b);
    for (int64_t r = 0; r < rows_; ++r)
      each_vector<T>(op.a.width, [&](int64_t i) {
        const Vector<T> x0 = load(a[r] + i), y0 = Base::operand(b[r], op.b.width, i);
        for (int64_t k = 0; k < directions_; ++k) {
          Series x{}, y{};
          if (of_a) x = read(a, k, r, i);
          if (of_b)
            for (int m = 1; m <= order_; ++m) y.at[m] = Base::operand(b[line(m, k, r)], op.b.width, i);
          x.at[0] = x0;
          y.at[0] = y0;
          write(out, k, r, i, product(x, y));
        }
        store(out[r] + i, x0 * y0);
      });
  }

  static Series product(const Series& x, const Series& y) {
    const auto &a = x.at, &b = y.at;
    return {{a[0] * b[0], a[1] * b[0] + a[0] * b[1], a[2] * b[0] + 2 * a[1] * b[1] + a[0] * b[2],
             a[3] * b[0] + 3 * (a[2] * b[1] + a[1] * b[2]) + a[0] * b[3]}};
  }

  // y = c s^(-1/2) with c = a - mean(a) and s = mean(c^2) + eps.
  void normalise(const MlpOp& op) {
    const Lines<T> out = this->lines(op.out), a = this->lines(op.a);
    const int64_t width = op.a.width;
    const auto mean = [&](const T* x, const T* y) { return Base::inner(x, y, width) / T(width); };
    for (int64_t r = 0; r < rows_; ++r) {
      Base::centre(a[r], out[r], width);
      const T* c = out[r];
      const T s = mean(c, c) + T(op.parameter), root = 1 / std::sqrt(s);
      for (int64_t k = 0; k < directions_; ++k) {
        const T* d[kMaxOrder + 1] = {c};
        for (int m = 1; m <= order_; ++m) {
          Base::centre(a[line(m, k, r)], out[line(m, k, r)], width);
          d[m] = out[line(m, k, r)];
        }
        // u_m = s_m / s, the derivatives of s
        const T u1 = 2 * mean(c, d[1]) / s;
        const T u2 = order_ < 2 ? 0 : 2 * (mean(d[1], d[1]) + mean(c, d[2])) / s;
        const T u3 = order_ < 3 ? 0 : 2 * (3 * mean(d[1], d[2]) + mean(c, d[3])) / s;
        const T factor[] = {root, root * T(-0.5) * u1, root * (T(0.75) * u1 * u1 - T(0.5) * u2),
                            root * (T(-1.875) * u1 * u1 * u1 + T(2.25) * u1 * u2 - T(0.5) * u3)};
        Series y;
        for (int m = 0; m <= kMaxOrder; ++m) y.at[m] = splat(factor[m]);
        each_vector<T>(width, [&](int64_t i) {
          Series x = read(out, k, r, i);
          x.at[0] = load(c + i);
          write(out, k, r, i, product(x, y));
        });
      }
      each_vector<T>(width, [&](int64_t i) { store(out[r] + i, load(c + i) * root); });
    }
  }

  const int order_;
  int64_t rows_ = 0, directions_ = 0;
};

}  // namespace
}  // namespace fastlik::FASTLIK_ISA
