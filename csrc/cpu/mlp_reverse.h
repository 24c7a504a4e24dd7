// A network's operations run backwards: from the gradients of values and tangents to those of the inputs, the
// weights and the constants.  It works on what an evaluation left in its buffers, of which each was written once.
#pragma once

#include <vector>

#include "functions_high.h"
#include "gemm_outer.h"
#include "mlp_evaluator.h"

namespace fastlik::FASTLIK_ISA {
namespace {

// Transposed weights follow the others in the network's list.  Gradients of constants lie where the constants
// lie among the numbers, those of a weight where the weight does, as (inputs, outputs padded to panels).
template <class T>
class MlpReverse : public MlpEvaluator<T> {
  using Base = MlpEvaluator<T>;
  using V = Vector<T>;

 public:
  static int64_t bytes(const MlpNetwork& net, int64_t rows, int64_t tangents) {
    return Base::bytes(net, rows, tangents, false);
  }

  // `memory`, as large as an evaluator's, is for the gradients, `numbers` for those of the network's numbers,
  // of which those of weights only where `of_weights`.
  MlpReverse(const MlpNetwork& net, int64_t rows, int64_t tangents, char* memory, T* numbers, bool of_weights)
      : Base(net, rows, tangents, false, memory), numbers_(numbers), of_weights_(of_weights), memory_(memory),
        size_(bytes(net, rows, tangents)), rows_(rows), tangents_(tangents) {
    std::copy_n(this->buffers_, net.buffer_count, gradients_);
    for (int b = 0; b < net.buffer_count; ++b)
      if (net.buffers[b].depends == 0) gradients_[b].at = numbers + net.buffers[b].constant;
  }

  // Takes up a tape of `rows` rows; all gradients are zero, those of the output's lines to be filled in.
  void start(char* tape, int64_t rows) {
    std::memset(memory_, 0, size_);
    Base::place(rows_, tangents_, false, tape);
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
  int64_t lines_of(const MlpView& view) const {
    return this->on_state(view) ? used_ * (1 + tangents_) : used_;
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

  // y = f(a), dy = f' da: the gradient of a has f' that of y and f'' da that of dy.
  template <MlpFunction kF>
  void function(const MlpOp& op, T p) {
    const Lines<T> a = this->lines(op.a), to = gradient(op.a), from = gradient(op.out);
    const int64_t tangents = this->on_state(op.out) ? tangents_ : 0, rows = used_;
    const auto go = [&](int64_t r, int64_t i, auto read, auto write) {
      const Derivatives<T> f = apply_high<kF, T>(read(a[r] + i), p);
      V gradient = f.first * read(from[r] + i);
      for (int64_t k = 1; k <= tangents; ++k) {
        const int64_t t = k * rows + r;
        const V of_tangent = read(from[t] + i);
        gradient += f.second * read(a[t] + i) * of_tangent;
        write(to[t] + i, read(to[t] + i) + f.first * of_tangent);
      }
      write(to[r] + i, read(to[r] + i) + gradient);
    };
    for (int64_t r = 0; r < rows; ++r)
      each_part(op.a.width, [&](int64_t i, auto read, auto write) { go(r, i, read, write); });
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

  // y = a b, dy = da b + a db.
  void multiply(const MlpOp& op) {
    product(op.out, op.b, op.a);
    product(op.out, op.a, op.b);
  }

  // The gradient of factor `to`, the other one being `other`.
  void product(const MlpView& out, const MlpView& other, const MlpView& to) {
    const Lines<T> from = gradient(out), factor = this->lines(other), target = gradient(to);
    const int64_t tangents = this->on_state(out) ? tangents_ : 0, rows = used_, width = out.width;
    const bool moves = this->on_state(to), other_moves = this->on_state(other);
    T line[kMaxWidth];
    const auto give = [&](T* to_line) {
      if (to.width == 1 && width > 1) to_line[0] += Base::total(line, width);
      else add_line(line, to_line, width);
    };
    for (int64_t r = 0; r < rows; ++r) {
      scaled(from[r], factor[r], other.width, width, line, false);
      for (int64_t k = 1; other_moves && k <= tangents; ++k)
        scaled(from[k * rows + r], factor[k * rows + r], other.width, width, line, true);
      give(target[r]);
      for (int64_t k = 1; moves && k <= tangents; ++k) {
        scaled(from[k * rows + r], factor[r], other.width, width, line, false);
        give(target[k * rows + r]);
      }
    }
  }

  static void scaled(const T* from, const T* factor, int64_t factor_width, int64_t width, T* to, bool more) {
    for (int64_t i = 0; i < width; ++i)
      to[i] = (more ? to[i] : T(0)) + from[i] * factor[factor_width == 1 ? 0 : i];
  }

  // y = root c, dy = root (dc - y m), with c = a - mean(a), root = (mean(c^2) + eps)^-1/2, m = mean(y dc).
  void normalise(const MlpOp& op) {
    const Lines<T> a = this->lines(op.a), y = this->lines(op.out), from = gradient(op.out), to = gradient(op.a);
    const int64_t width = op.a.width, tangents = this->on_state(op.out) ? tangents_ : 0, rows = used_;
    T moved[kMaxWidth], g[kMaxWidth];
    for (int64_t r = 0; r < rows; ++r) {
      Base::centre(a[r], moved, width);
      const T root = 1 / std::sqrt(Base::inner(moved, moved, width) / T(width) + T(op.parameter));
      std::memcpy(g, from[r], width * sizeof(T));
      T of_root = 0;
      for (int64_t k = 1; k <= tangents; ++k) {
        const T* h = from[k * rows + r];
        Base::centre(a[k * rows + r], moved, width);
        const T m = Base::inner(y[r], moved, width) / T(width), n = Base::inner(h, y[r], width) / T(width);
        const T mean = Base::total(h, width) / T(width);
        for (int64_t i = 0; i < width; ++i) {
          of_root += h[i] * (moved[i] - y[r][i] * m);
          g[i] -= root * (m * h[i] + n * moved[i]);
          to[k * rows + r][i] += root * (h[i] - mean - n * y[r][i]);
        }
      }
      of_root += Base::inner(g, y[r], width) / root;
      const T share = root * of_root / T(width), mean = Base::total(g, width) / T(width);
      for (int64_t i = 0; i < width; ++i) to[r][i] += root * (g[i] - mean - share * y[r][i]);
    }
  }

  static constexpr int64_t kMaxWidth = 4096 + 16;
  T* numbers_;
  const bool of_weights_;
  char* memory_;
  const int64_t size_, rows_, tangents_;
  int64_t used_ = 0;
  Lines<T> gradients_[kMlpMaxBuffers];
  std::vector<T> part_;
};

}  // namespace
}  // namespace fastlik::FASTLIK_ISA
