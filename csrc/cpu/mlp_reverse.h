// A network's operations run backwards: from the gradients of values, tangents and lines of second order to those of
// the inputs, the weights and the constants.  It works on what an evaluation left in its buffers, of which each was
// written once.
#pragma once

#include <vector>

#include "gemm_outer.h"
#include "mlp_second.h"

namespace fastlik::FASTLIK_ISA {
namespace {

// Transposed weights follow the others in the network's list.  Gradients of constants lie where the constants
// lie among the numbers, those of a weight where the weight does, as (inputs, outputs padded to panels).
template <class T>
class MlpReverse : public MlpSecondOrder<T> {
  using Base = MlpSecondOrder<T>;
  using V = Vector<T>;

 public:
  static int64_t bytes(const MlpNetwork& net, int64_t rows, int64_t lines) {
    return Base::bytes(net, rows, lines, false);
  }

  // `memory`, as large as an evaluator's, is for the gradients, `numbers` for those of the network's numbers,
  // of which those of weights only where `of_weights`.
  MlpReverse(const MlpNetwork& net, int64_t rows, int64_t tangents, const MlpSecond& second, char* memory, T* numbers,
             bool of_weights)
      : Base(net, rows, tangents, second, memory), numbers_(numbers), of_weights_(of_weights), memory_(memory),
        size_(bytes(net, rows, this->lines_)), rows_(rows) {
    std::copy_n(this->buffers_, net.buffer_count, gradients_);
    for (int b = 0; b < net.buffer_count; ++b)
      if (net.buffers[b].depends == 0) gradients_[b].at = numbers + net.buffers[b].constant;
  }

  // Takes up a tape of `rows` rows; all gradients are zero, those of the output's lines to be filled in.
  void start(char* tape, int64_t rows) {
    std::memset(memory_, 0, size_);
    Base::place(rows_, this->lines_, false, tape);
    used_ = rows;
  }
  T* output_gradient(int64_t line) const { return gradient(this->net_.output)[line]; }
  const T* input_gradient(int64_t line) const { return gradients_[this->net_.input][line]; }

  void run() {
    for (int32_t i = this->net_.value_ops - 1; i >= 0; --i) run(this->net_.ops[i]);
  }

 private:
  Lines<T> gradient(const MlpView& view) const {
    return {gradients_[view.buffer].at + view.offset, gradients_[view.buffer].line};
  }
  Lines<T> row(const Lines<T>& all, int64_t r) const { return Base::of_row(all, r, used_); }
  int64_t lines_of(const MlpView& view) const {
    return this->on_state(view) ? used_ * (1 + this->lines_) : used_;
  }

  void run(const MlpOp& op) {
    switch (op.code) {
      case kLinear: return linear(op);
      case kFunction: return function(op);
      case kAdd: return add(op);
      case kMultiply: return multiply(op);
      case kNormalise: return normalise(op);
      case kCopy: return pass(op.out, op.a);
    }
  }

  // Adds the lines of one view's gradient to another's; of one feature, their sum.
  void pass(const MlpView& from, const MlpView& to) {
    const Lines<T> source = gradient(from), target = gradient(to);
    const int64_t count = lines_of(to);
    for (int64_t r = 0; r < count; ++r) {
      if (to.width == 1 && from.width > 1) {
        target[r][0] += Base::total(source[r], from.width);
        continue;
      }
      add_line(source[r], target[r], from.width);
    }
  }

  static void add_line(const T* from, T* to, int64_t width) {
    each_whole(width, [&](int64_t i) { store(to + i, load(to + i) + load(from + i)); },
               [&](int64_t i) { to[i] += from[i]; });
  }

  // Views may be parts of a line: what lies beyond their width is not theirs.
  template <class Whole, class One>
  static void each_whole(int64_t width, Whole whole, One one) {
    int64_t i = 0;
    for (; i + kLanes<T> <= width; i += kLanes<T>) whole(i);
    for (; i < width; ++i) one(i);
  }

  void linear(const MlpOp& op) {
    const MlpWeight &weight = this->net_.weights[op.weight],
                    &transposed = this->net_.weights[op.weight + this->net_.weight_count];
    const Lines<T> out = gradient(op.out), a = this->lines(op.a);
    const int64_t all = lines_of(op.out);
    if (of_weights_)
      gemm_outer<T>(all, weight.inputs, weight.outputs, a.at, a.line, out.at, out.line, numbers_ + weight.offset);
    if (op.b.buffer >= 0) pass(op.out, op.b);
    add_product(all, transposed, out, op.a);
  }

  // The product with a transposed weight is added to the gradient of `view`, and nothing beside it.
  void add_product(int64_t lines, const MlpWeight& weight, const Lines<T>& from, const MlpView& view) {
    const T* numbers = static_cast<const T*>(this->net_.numbers) + weight.offset;
    const Lines<T> to = gradient(view);
    if (view.width == this->net_.buffers[view.buffer].width)
      return gemm<T>(lines, weight.outputs, weight.inputs, from.at, from.line, numbers, to.at, to.line);
    const int64_t line = line_size<T>(view.width);
    part_.assign(lines * line, T(0));
    gemm<T>(lines, weight.outputs, weight.inputs, from.at, from.line, numbers, part_.data(), line);
    for (int64_t r = 0; r < lines; ++r) add_line(part_.data() + r * line, to[r], view.width);
  }

  void add(const MlpOp& op) {
    pass(op.out, op.a);
    pass(op.out, op.b);
  }

  void function(const MlpOp& op) {
    const T p = T(op.parameter);
    with_function(op.function, [&](auto f) { function<f>(op, p); });
  }

  // y = f(x), y_t = f' x_t, with further terms f'' x_a x_b.
  template <MlpFunction kF>
  void function(const MlpOp& op, T p) {
    const bool moves = this->on_state(op.out);
    for (int64_t r = 0; r < used_; ++r) {
      const Lines<T> x = row(this->lines(op.a), r), g = row(gradient(op.out), r), to = row(gradient(op.a), r);
      each_part(op.a.width, [&](int64_t i, auto read, auto write) {
        const Derivatives<T> f = apply_high<kF, T>(read(x[0] + i), p);
        const auto give = [&](int64_t t, V gradient) { write(to[t] + i, read(to[t] + i) + gradient); };
        V of_value = f.first * read(g[0] + i);
        for (int64_t t = 1; moves && t <= this->lines_; ++t) {
          of_value += f.second * read(x[t] + i) * read(g[t] + i);
          give(t, f.first * read(g[t] + i));
        }
        this->each_term(moves, [&](int a, int b, int out) {
          const V of_a = f.second * read(g[out] + i), x_a = read(x[a] + i), x_b = read(x[b] + i);
          of_value += f.third * x_a * x_b * read(g[out] + i);
          give(a, of_a * x_b);
          give(b, of_a * x_a);
        });
        give(0, of_value);
      });
    }
  }

  // Vectors of a line, the last of them in part.
  template <class Body>
  static void each_part(int64_t width, Body body) {
    int64_t i = 0;
    for (; i + kLanes<T> <= width; i += kLanes<T>)
      body(i, [](const T* from) { return load(from); }, [](T* to, V v) { store(to, v); });
    if (i == width) return;
    const int64_t bytes = (width - i) * int64_t(sizeof(T));
    body(i, [](const T* from) { return load(from); }, [=](T* to, V v) { std::memcpy(to, &v, bytes); });
  }

  // y = x z, y_t = x_t z + x z_t, with further terms x_a z_b + x_b z_a.
  void multiply(const MlpOp& op) {
    product(op.out, op.b, op.a);
    product(op.out, op.a, op.b);
  }

  // The gradient of factor `to`, the other one being `other`.
  void product(const MlpView& out, const MlpView& other, const MlpView& to) {
    const int64_t lines = this->on_state(out) ? this->lines_ : 0, width = out.width;
    const bool moves = this->on_state(to), other_moves = this->on_state(other);
    T line[kMaxWidth];
    for (int64_t r = 0; r < used_; ++r) {
      const Lines<T> g = row(gradient(out), r), z = row(this->lines(other), r), target = row(gradient(to), r);
      const auto give = [&](int64_t t) {
        if (to.width == 1 && width > 1) target[t][0] += Base::total(line, width);
        else add_line(line, target[t], width);
      };
      scaled(g[0], z[0], other.width, width, line, false);
      for (int64_t t = 1; other_moves && t <= lines; ++t) scaled(g[t], z[t], other.width, width, line, true);
      give(0);
      for (int64_t t = 1; moves && t <= lines; ++t) {
        scaled(g[t], z[0], other.width, width, line, false);
        give(t);
      }
      this->each_term(moves && other_moves, [&](int a, int b, int out) {
        scaled(g[out], z[b], other.width, width, line, false);
        give(a);
        scaled(g[out], z[a], other.width, width, line, false);
        give(b);
      });
    }
  }

  static void scaled(const T* from, const T* factor, int64_t factor_width, int64_t width, T* to, bool more) {
    for (int64_t i = 0; i < width; ++i)
      to[i] = (more ? to[i] : T(0)) + from[i] * factor[factor_width == 1 ? 0 : i];
  }

  // As y = c factor, factor = square^(-1/2), square = mean(c^2), one after the other, backwards.
  void normalise(const MlpOp& op) {
    const bool moves = this->on_state(op.out);
    const int64_t width = op.a.width, line = line_size<T>(width), lines = moves ? this->lines_ : 0;
    part_.resize(2 * (1 + lines) * line);
    const Lines<T> c{part_.data(), line}, of_c{part_.data() + (1 + lines) * line, line};
    typename Base::Deviation found;
    std::vector<T> of_factor(1 + lines), of_square(1 + lines);
    for (int64_t r = 0; r < used_; ++r) {
      const Lines<T> g = row(gradient(op.out), r), to = row(gradient(op.a), r);
      this->measure(row(this->lines(op.a), r), c, op, found);
      const std::vector<T> &factor = found.factor, &square = found.square;
      for (int64_t t = 0; t <= lines; ++t) {
        std::memcpy(of_c[t], g[t], width * sizeof(T));
        of_factor[t] = Base::inner(g[t], c[0], width);
      }
      for (int64_t t = 1; t <= lines; ++t) {
        add_scaled(factor[t], g[t], of_c[0], width);
        of_factor[0] += Base::inner(g[t], c[t], width);
      }
      this->each_term(moves, [&](int a, int b, int out) {
        add_scaled(factor[b], g[out], of_c[a], width);
        add_scaled(factor[a], g[out], of_c[b], width);
        of_factor[a] += Base::inner(g[out], c[b], width);
        of_factor[b] += Base::inner(g[out], c[a], width);
      });
      // the derivatives of square^(-1/2) are -1/2, 3/4 and -15/8
      for (int64_t t = 0; t <= lines; ++t) of_square[t] = T(-0.5) * of_factor[t];
      for (int64_t t = 1; t <= lines; ++t) of_square[0] += T(0.75) * square[t] * of_factor[t];
      this->each_term(moves, [&](int a, int b, int out) {
        of_square[0] -= T(1.875) * square[a] * square[b] * of_factor[out];
        of_square[a] += T(0.75) * square[b] * of_factor[out];
        of_square[b] += T(0.75) * square[a] * of_factor[out];
      });
      for (T& gradient : of_square) gradient *= T(2) / T(width);
      for (int64_t t = 0; t <= lines; ++t) add_scaled(of_square[t], c[0], of_c[t], width);
      for (int64_t t = 1; t <= lines; ++t) add_scaled(of_square[t], c[t], of_c[0], width);
      this->each_term(moves, [&](int a, int b, int out) {
        add_scaled(of_square[out], c[b], of_c[a], width);
        add_scaled(of_square[out], c[a], of_c[b], width);
      });
      for (int64_t t = 0; t <= lines; ++t) {
        const T mean = Base::total(of_c[t], width) / T(width);
        for (int64_t i = 0; i < width; ++i) to[t][i] += found.root * (of_c[t][i] - mean);
      }
    }
  }

  static constexpr int64_t kMaxWidth = 4096 + 16;
  T* numbers_;
  const bool of_weights_;
  char* memory_;
  const int64_t size_, rows_;
  int64_t used_ = 0;
  Lines<T> gradients_[kMlpMaxBuffers];
  std::vector<T> part_;
};

}  // namespace
}  // namespace fastlik::FASTLIK_ISA
