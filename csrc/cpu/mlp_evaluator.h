// Runs a network's operations on a tile of rows: values, and tangents beside them.
//
// A buffer holds one line of features for each row; one that depends on the state holds further lines
// for the tangents: tangent k of row r is line (1 + k) * rows + r.
#pragma once

#include <algorithm>

#include "functions.h"
#include "gemm.h"

namespace fastlik::FASTLIK_ISA {
namespace {

constexpr int64_t kLine = 64;  // bytes that lines are padded to

inline int64_t padded(int64_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

// A view's features: line r starts at at + r * line; a line step of 0 shares one line.
template <class T>
struct Lines {
  T* at;
  int64_t line;
  T* operator[](int64_t r) const { return at + r * line; }
};

template <class T>
inline int64_t line_size(int64_t width) {
  return padded(width * int64_t(sizeof(T))) / int64_t(sizeof(T));
}

template <class T, class F>
inline void each_vector(int64_t width, F f) {
  for (int64_t i = 0; i < width; i += kLanes<T>) f(i);
}

template <class T>
class MlpEvaluator {
 public:
  // Bytes for tiles of up to `rows` rows with `tangents` tangents each.  `shared_time`: all rows have
  // one time, whose buffers are made by `tabulate`.
  static int64_t bytes(const MlpNetwork& net, int64_t rows, int64_t tangents, bool shared_time) {
    int64_t total = kLine;  // vectors may be read a little beyond the last line
    for (int b = 0; b < net.buffer_count; ++b)
      total += lines(net.buffers[b], rows, tangents, shared_time) *
               padded(net.buffers[b].width * int64_t(sizeof(T)));
    return total;
  }

  MlpEvaluator(const MlpNetwork& net, int64_t rows, int64_t tangents, bool shared_time, char* memory)
      : net_(net) {
    place(rows, tangents, shared_time, memory);
  }

  // Puts the buffers of `rows` rows with `tangents` tangents each into `memory`.
  void place(int64_t rows, int64_t tangents, bool shared_time, char* memory) {
    for (int b = 0; b < net_.buffer_count; ++b) {
      const MlpBuffer& buffer = net_.buffers[b];
      if (buffer.depends == 0) {
        buffers_[b] = {const_cast<T*>(static_cast<const T*>(net_.numbers)) + buffer.constant, 0};
        continue;
      }
      buffers_[b] = {reinterpret_cast<T*>(memory), line_size<T>(buffer.width)};
      memory += lines(buffer, rows, tangents, shared_time) * padded(buffer.width * int64_t(sizeof(T)));
    }
  }

  const MlpNetwork& net() const { return net_; }
  T* input(int64_t line) const { return buffers_[net_.input][line]; }
  T* time(int64_t row) const { return buffers_[net_.time][row]; }
  T* condition(int index, int64_t row) const { return buffers_[net_.conditions[index]][row]; }
  const T* output(int64_t line) const { return lines(net_.output)[line]; }
  T trace(int64_t row) const { return lines(net_.trace)[row][0]; }

  // The operations that depend on the conditions alone, on the times alone (one for each row), and
  // the rest.  `divergence` includes those that only the closed form of the trace needs.
  void run_conditions(int64_t rows) { run(kOnCondition, rows, 0, net_.op_count); }
  void run_times(int64_t rows) { run(kOnTime, rows, 0, net_.op_count); }
  void run(int64_t rows, int64_t tangents, bool divergence) {
    const int32_t count = divergence ? net_.op_count : net_.value_ops;
    for (int32_t i = 0; i < count; ++i) {
      const int32_t depends = net_.ops[i].depends;
      if (depends != kOnTime && depends != kOnCondition) run(net_.ops[i], rows, tangents);
    }
  }

  // Elements of a table of everything that depends on the time alone, for one time.
  static int64_t table_size(const MlpNetwork& net) {
    int64_t total = 0;
    for (int b = 0; b < net.buffer_count; ++b)
      if (net.buffers[b].depends == kOnTime) total += line_size<T>(net.buffers[b].width);
    return total;
  }

  // Lays the time's buffers out in `table` for `count` times, computes them, and leaves `use_time` to
  // choose one of them.
  void tabulate(T* table, const double* times, int64_t count) {
    use_table(table, count, 0, false);
    for (int64_t e = 0; e < count; ++e) *time(e) = T(times[e]);
    run_times(count);
  }
  void use_time(T* table, int64_t count, int64_t index) { use_table(table, count, index, true); }

 protected:
  static int64_t lines(const MlpBuffer& buffer, int64_t rows, int64_t tangents, bool shared_time) {
    if (buffer.depends == 0 || (shared_time && buffer.depends == kOnTime)) return 0;
    return buffer.depends & kOnState ? rows * (1 + tangents) : rows;
  }

  void use_table(T* table, int64_t count, int64_t index, bool shared) {
    for (int b = 0; b < net_.buffer_count; ++b) {
      if (net_.buffers[b].depends != kOnTime) continue;
      const int64_t line = line_size<T>(net_.buffers[b].width);
      buffers_[b] = {table + index * line, shared ? 0 : line};
      table += count * line;
    }
  }

  Lines<T> lines(const MlpView& view) const {
    return {buffers_[view.buffer].at + view.offset, buffers_[view.buffer].line};
  }
  bool on_state(const MlpView& view) const {
    return view.buffer >= 0 && net_.buffers[view.buffer].depends & kOnState;
  }

  void run(int32_t depends, int64_t rows, int64_t tangents, int32_t count) {
    for (int32_t i = 0; i < count; ++i)
      if (net_.ops[i].depends == depends) run(net_.ops[i], rows, tangents);
  }

  void run(const MlpOp& op, int64_t rows, int64_t tangents) {
    if (!(op.depends & kOnState)) tangents = 0;
    switch (op.code) {
      case kLinear: return linear(op, rows, tangents);
      case kFunction: return function(op, rows, tangents);
      case kAdd: return add(op, rows, tangents);
      case kMultiply: return multiply(op, rows, tangents);
      case kNormalise: return normalise(op, rows, tangents);
      case kCopy: return copy(op, rows, tangents);
      case kDot: return dot(op, rows);
    }
  }

  void linear(const MlpOp& op, int64_t rows, int64_t tangents) {
    const MlpWeight& weight = net_.weights[op.weight];
    const Lines<T> out = lines(op.out), a = lines(op.a);
    const int64_t all = rows * (1 + tangents);
    const bool in_place = op.b.buffer == op.out.buffer;
    const int64_t given = op.b.buffer < 0 ? 0 : on_state(op.b) ? all : rows;
    if (!in_place) {
      for (int64_t r = 0; r < given; ++r)
        std::memcpy(out[r], lines(op.b)[r], op.out.width * sizeof(T));
      for (int64_t r = given; r < all; ++r) std::memset(out[r], 0, op.out.width * sizeof(T));
    }
    gemm<T>(all, weight.outputs, weight.inputs, a.at, a.line,
            static_cast<const T*>(net_.numbers) + weight.offset, out.at, out.line);
  }

  void function(const MlpOp& op, int64_t rows, int64_t tangents) {
    const T p = T(op.parameter);
    with_function(op.function, [&](auto f) { function<f>(op, rows, tangents, p); });
  }

  template <MlpFunction kF>
  void function(const MlpOp& op, int64_t rows, int64_t tangents, T p) {
    const Lines<T> out = lines(op.out), a = lines(op.a);
    const bool keep_slope = op.b.buffer >= 0;
    for (int64_t r = 0; r < rows; ++r) {
      T* slope = keep_slope ? lines(op.b)[r] : nullptr;
      each_vector<T>(op.a.width, [&](int64_t i) {
        const Dual<T> y = apply<kF, T>(load(a[r] + i), p);
        store(out[r] + i, y.value);
        if (slope) store(slope + i, y.slope);
        for (int64_t k = 1; k <= tangents; ++k)
          store(out[k * rows + r] + i, y.slope * load(a[k * rows + r] + i));
      });
    }
  }

  // The value of operand b at vector i of row r, of which there may be only one feature.
  static Vector<T> operand(const T* line, int64_t width, int64_t i) {
    return width == 1 ? splat(line[0]) : load(line + i);
  }

  void add(const MlpOp& op, int64_t rows, int64_t tangents) {
    const Lines<T> out = lines(op.out), a = lines(op.a), b = lines(op.b);
    const int64_t all = rows * (1 + tangents), given = on_state(op.b) ? all : rows;
    for (int64_t r = 0; r < given; ++r)
      each_vector<T>(op.a.width, [&](int64_t i) {
        store(out[r] + i, load(a[r] + i) + operand(b[r], op.b.width, i));
      });
    for (int64_t r = given; r < all; ++r)
      if (out[r] != a[r])
        each_vector<T>(op.a.width, [&](int64_t i) { store(out[r] + i, load(a[r] + i)); });
  }

  void multiply(const MlpOp& op, int64_t rows, int64_t tangents) {
    const Lines<T> out = lines(op.out), a = lines(op.a), b = lines(op.b);
    const bool both = on_state(op.a) && on_state(op.b);
    for (int64_t r = 0; r < rows; ++r) {
      each_vector<T>(op.a.width, [&](int64_t i) {
        const Vector<T> x = load(a[r] + i), y = operand(b[r], op.b.width, i);
        for (int64_t k = 1; k <= tangents; ++k) {
          const int64_t t = k * rows + r;
          Vector<T> product = load(a[t] + i) * y;
          if (both) product += x * operand(b[t], op.b.width, i);
          store(out[t] + i, product);
        }
        store(out[r] + i, x * y);
      });
    }
  }

  // y = r c with c = a - mean, r = (mean c^2 + eps)^-1/2;  dy = r (dc - y mean(y dc)).
  void normalise(const MlpOp& op, int64_t rows, int64_t tangents) {
    const Lines<T> out = lines(op.out), a = lines(op.a);
    const int64_t width = op.a.width;
    for (int64_t r = 0; r < rows; ++r) {
      centre(a[r], out[r], width);
      const T factor = 1 / std::sqrt(inner(out[r], out[r], width) / T(width) + T(op.parameter));
      each_vector<T>(width, [&](int64_t i) { store(out[r] + i, load(out[r] + i) * factor); });
      for (int64_t k = 1; k <= tangents; ++k) {
        T* tangent = out[k * rows + r];
        centre(a[k * rows + r], tangent, width);
        const T share = inner(out[r], tangent, width) / T(width);
        each_vector<T>(width, [&](int64_t i) {
          store(tangent + i, factor * (load(tangent + i) - share * load(out[r] + i)));
        });
      }
    }
  }

  static T total(const T* from, int64_t width) {
    Vector<T> all{};
    int64_t i = 0;
    for (; i + kLanes<T> <= width; i += kLanes<T>) all += load(from + i);
    T rest = sum<T>(all);
    for (; i < width; ++i) rest += from[i];
    return rest;
  }

  static void centre(const T* from, T* to, int64_t width) {
    const T mean = total(from, width) / T(width);
    each_vector<T>(width, [&](int64_t i) { store(to + i, load(from + i) - mean); });
  }

  static T inner(const T* a, const T* b, int64_t width) {
    Vector<T> total{};
    int64_t i = 0;
    for (; i + kLanes<T> <= width; i += kLanes<T>) total += load(a + i) * load(b + i);
    T rest = sum<T>(total);
    for (; i < width; ++i) rest += a[i] * b[i];
    return rest;
  }

  void copy(const MlpOp& op, int64_t rows, int64_t tangents) {
    const int64_t all = rows * (1 + tangents), given = on_state(op.a) ? all : rows;
    for (int64_t r = 0; r < given; ++r)
      std::memcpy(lines(op.out)[r], lines(op.a)[r], op.a.width * sizeof(T));
    for (int64_t r = given; r < all; ++r)
      std::memset(lines(op.out)[r], 0, op.a.width * sizeof(T));
  }

  void dot(const MlpOp& op, int64_t rows) {
    for (int64_t r = 0; r < rows; ++r)
      lines(op.out)[r][0] = inner(lines(op.a)[r], lines(op.b)[r], op.a.width);
  }

  const MlpNetwork& net_;
  Lines<T> buffers_[kMlpMaxBuffers];
};

}  // namespace
}  // namespace fastlik::FASTLIK_ISA
