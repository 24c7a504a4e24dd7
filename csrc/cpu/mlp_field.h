// The right-hand side of the likelihood's ODE for a tile of rows, and how a batch is cut into tiles.
#pragma once

#include <cstdlib>
#include <new>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "mlp_evaluator.h"

namespace fastlik::FASTLIK_ISA {
namespace {

// Lines that a tile has at most, values and tangents together: its buffers stay in the second-level
// cache beside the weights.
constexpr int64_t kTileLines = 96;
constexpr int64_t kTangentsTogether = 47;

// Rows of a tile and tangents of a group.
struct Tile {
  int64_t rows, tangents, count;

  Tile(int64_t batch, int64_t wanted_tangents, int threads) {
    tangents = std::min(wanted_tangents, kTangentsTogether);
    rows = std::max<int64_t>(1, kTileLines / (1 + tangents));
    if (rows >= kGemmRows) rows -= rows % kGemmRows;
    count = (batch + rows - 1) / rows;
    count = (count + threads - 1) / threads * threads;  // so that all threads end together
    rows = std::max<int64_t>(1, (batch + count - 1) / count);
    count = (batch + rows - 1) / rows;
  }
};

// One block of zeros for each thread, aligned to cache lines.
class Workspace {
 public:
  Workspace(int64_t bytes, int threads) : each_(padded(bytes) + kLine) {
    memory_ = static_cast<char*>(std::calloc(each_ * threads + kLine, 1));
    if (!memory_) throw std::bad_alloc();
  }
  ~Workspace() { std::free(memory_); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  char* of_thread() const {
#ifdef _OPENMP
    char* block = memory_ + each_ * omp_get_thread_num();
#else
    char* block = memory_;
#endif
    const auto address = reinterpret_cast<std::uintptr_t>(block);
    return block + (kLine - address % kLine) % kLine;
  }

 private:
  int64_t each_;
  char* memory_;
};

// Takes arrays off a block of memory.
class Cutter {
 public:
  explicit Cutter(char* memory) : memory_(memory) {}
  template <class U>
  U* take(int64_t count) {
    U* array = reinterpret_cast<U*>(memory_);
    memory_ += padded(count * int64_t(sizeof(U)));
    return array;
  }

 private:
  char* memory_;
};

template <class U>
inline int64_t cut_size(int64_t count) {
  return padded(count * int64_t(sizeof(U)));
}

// dz/du = of_state z + of_output F(input_scale z).
struct Coefficients {
  double input_scale, of_state, of_output;
};

template <class T>
class MlpField {
 public:
  MlpField(MlpEvaluator<T>& evaluator, const MlpTrace& trace, int64_t group)
      : evaluator_(evaluator), trace_(trace), group_(group), dim_(evaluator.net().dim) {}

  // From now on, of probes v, v_i (Jv)_i also goes to parts (rows, probes, dim).
  void keep_parts(double* parts) { parts_ = parts; }

  void load_conditions(const MlpRows& in, int64_t line, int64_t row) {
    const MlpNetwork& net = evaluator_.net();
    for (int c = 0; c < net.condition_count; ++c) {
      const int64_t width = net.buffers[net.conditions[c]].width;
      std::memcpy(evaluator_.condition(c, line),
                  static_cast<const T*>(in.conditions[c]) + row * width, width * sizeof(T));
    }
  }

  // Slopes (rows, dim) at states (rows, dim), where `slope` is not null.
  void value(int64_t rows, const T* state, const Coefficients* c, T* slope) {
    put_states(rows, state, c);
    evaluator_.run(rows, 0, false);
    take_slopes(rows, state, c, slope);
  }

  // And the divergences (rows, trace.columns()) with the probes of (ids, nodes).
  void value_and_divergence(int64_t rows, const T* state, const Coefficients* c, const int64_t* ids,
                            const int64_t* nodes, T* slope, double* divergence) {
    const int64_t columns = trace_.columns();
    if (trace_.mode == kClosedForm) {
      put_states(rows, state, c);
      evaluator_.run(rows, 0, true);
      take_slopes(rows, state, c, slope);
      for (int64_t r = 0; r < rows; ++r)
        divergence[r] = c[r].of_state * double(dim_) +
                        c[r].of_output * c[r].input_scale * double(evaluator_.trace(r));
      return;
    }
    std::fill_n(divergence, rows * columns, 0.0);
    const int64_t all = trace_.mode == kExact ? dim_ : trace_.probes;
    for (int64_t first = 0; first < all; first += group_) {
      const int64_t count = std::min(group_, all - first);
      put_states(rows, state, c);
      for (int64_t k = 0; k < count; ++k)
        for (int64_t r = 0; r < rows; ++r)
          put_tangent(evaluator_.input((1 + k) * rows + r), first + k, ids[r], nodes[r]);
      evaluator_.run(rows, count, false);
      if (first == 0) take_slopes(rows, state, c, slope);
      for (int64_t k = 0; k < count; ++k)
        for (int64_t r = 0; r < rows; ++r)
          add_product((1 + k) * rows + r, r, first + k, c[r], divergence + r * columns);
    }
  }

 private:
  void put_states(int64_t rows, const T* state, const Coefficients* c) {
    for (int64_t r = 0; r < rows; ++r) {
      T* line = evaluator_.input(r);
      const T scale = T(c[r].input_scale);
      for (int64_t i = 0; i < dim_; ++i) line[i] = scale * state[r * dim_ + i];
    }
  }

  void put_tangent(T* line, int64_t index, int64_t id, int64_t node) const {
    if (trace_.mode == kProbes) {
      draw_probe(ProbeKind(trace_.kind), trace_.seed, id, trace_.first_draw + index,
                 trace_.fresh ? node : 0, dim_, line);
    } else {
      std::fill_n(line, dim_, T(0));
      line[index] = 1;
    }
  }

  void take_slopes(int64_t rows, const T* state, const Coefficients* c, T* slope) const {
    if (!slope) return;
    for (int64_t r = 0; r < rows; ++r) {
      const T* out = evaluator_.output(r);
      const T of_state = T(c[r].of_state), of_output = T(c[r].of_output);
      for (int64_t i = 0; i < dim_; ++i)
        slope[r * dim_ + i] = of_state * state[r * dim_ + i] + of_output * out[i];
    }
  }

  // v' J v of one tangent's line, or its diagonal entry of J.
  void add_product(int64_t line, int64_t row, int64_t index, const Coefficients& c,
                   double* divergence) const {
    const T *v = evaluator_.input(line), *product = evaluator_.output(line);
    const double of_network = c.of_output * c.input_scale;
    if (trace_.mode == kExact) {
      divergence[0] += c.of_state + of_network * double(product[index]);
      return;
    }
    double square = 0, quadratic = 0;
    for (int64_t i = 0; i < dim_; ++i) {
      square += double(v[i]) * double(v[i]);
      quadratic += double(v[i]) * double(product[i]);
    }
    divergence[index] += c.of_state * square + of_network * quadratic;
    if (!parts_) return;
    double* parts = parts_ + (row * trace_.probes + index) * dim_;
    for (int64_t i = 0; i < dim_; ++i)
      parts[i] = double(v[i]) * (c.of_state * double(v[i]) + of_network * double(product[i]));
  }

  MlpEvaluator<T>& evaluator_;
  const MlpTrace& trace_;
  const int64_t group_, dim_;
  double* parts_ = nullptr;
};

template <class T>
inline bool all_finite(const T* x, int64_t count) {
  bool finite = true;
  for (int64_t i = 0; i < count; ++i) finite &= x[i] - x[i] == 0;
  return finite;
}

}  // namespace
}  // namespace fastlik::FASTLIK_ISA
