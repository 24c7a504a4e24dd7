// Values and tangents of a multilayer perceptron, and their gradients by inputs, weights and constants.
#include "fastlik/cpu.h"
#include "mlp_field.h"
#include "mlp_reverse.h"

namespace fastlik::FASTLIK_ISA {
namespace {

// One tile's lines of `dim` features from or to rows of tensors: values (rows, dim), tangents (K, rows, dim).
struct TileLines {
  int64_t all, first, rows, tangents, dim;

  // go(line of the tile, where its features are among values, or -1, where among tangents)
  template <class Go>
  void each(Go go) const {
    for (int64_t r = 0; r < rows; ++r) {
      go(r, (first + r) * dim, int64_t(-1));
      for (int64_t k = 0; k < tangents; ++k) go((1 + k) * rows + r, int64_t(-1), (k * all + first + r) * dim);
    }
  }
};

template <class T>
void record_tile(const MlpNetwork& net, const MlpEvaluateArgs& a, MlpEvaluator<T>& evaluator,
                 const TileLines& tile) {
  for (int64_t r = 0; r < tile.rows; ++r) {
    *evaluator.time(r) = T(a.times[tile.first + r]);
    for (int c = 0; c < net.condition_count; ++c) {
      const int64_t width = net.buffers[net.conditions[c]].width;
      std::memcpy(evaluator.condition(c, r),
                  static_cast<const T*>(a.in.conditions[c]) + (tile.first + r) * width, width * sizeof(T));
    }
  }
  const T *state = static_cast<const T*>(a.in.state), *vectors = static_cast<const T*>(a.vectors);
  tile.each([&](int64_t line, int64_t value, int64_t tangent) {
    std::copy_n(value < 0 ? vectors + tangent : state + value, net.dim, evaluator.input(line));
  });
  evaluator.run_conditions(tile.rows);
  evaluator.run_times(tile.rows);
  evaluator.run(tile.rows, tile.tangents, false);
  T *values = static_cast<T*>(a.value), *products = static_cast<T*>(a.products);
  tile.each([&](int64_t line, int64_t value, int64_t tangent) {
    std::copy_n(evaluator.output(line), net.dim, value < 0 ? products + tangent : values + value);
  });
}

template <class T>
void reverse_tile(const MlpReverseArgs& a, MlpReverse<T>& reverse, char* tape, const TileLines& tile) {
  reverse.start(tape, tile.rows);
  const T *values = static_cast<const T*>(a.value), *products = static_cast<const T*>(a.products);
  tile.each([&](int64_t line, int64_t value, int64_t tangent) {
    std::copy_n(value < 0 ? products + tangent : values + value, tile.dim, reverse.output_gradient(line));
  });
  reverse.run();
  T *state = static_cast<T*>(a.state), *vectors = static_cast<T*>(a.vectors);
  tile.each([&](int64_t line, int64_t value, int64_t tangent) {
    std::copy_n(reverse.input_gradient(line), tile.dim, value < 0 ? vectors + tangent : state + value);
  });
}

TileLines tile_lines(const MlpTape& tape, int64_t index, int64_t rows, int64_t tangents, int64_t dim) {
  const int64_t first = index * tape.rows;
  return {rows, first, std::min(tape.rows, rows - first), tangents, dim};
}

}  // namespace

template <class T>
MlpTape mlp_tape(const MlpNetwork& net, int64_t rows, int64_t tangents, int threads) {
  const Tile tile(std::max<int64_t>(1, rows), tangents, threads);
  return {tile.rows, tile.count, padded(MlpEvaluator<T>::bytes(net, tile.rows, tangents, false)), nullptr};
}

template <class T>
void mlp_record(const MlpNetwork& net, const MlpEvaluateArgs& a, const MlpTape& tape, int threads) {
  if (a.in.rows == 0) return;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (tape.tiles > 1)
  for (int64_t i = 0; i < tape.tiles; ++i) {
    MlpEvaluator<T> evaluator(net, tape.rows, a.tangents, false, static_cast<char*>(tape.at) + i * tape.bytes);
    record_tile(net, a, evaluator, tile_lines(tape, i, a.in.rows, a.tangents, net.dim));
  }
}

template <class T>
void mlp_reverse(const MlpNetwork& net, const MlpReverseArgs& a, int threads) {
  if (a.rows == 0) return;
  const Workspace workspace(MlpReverse<T>::bytes(net, a.tape.rows, a.tangents), threads);
#pragma omp parallel num_threads(threads) if (a.tape.tiles > 1)
  {
#ifdef _OPENMP
    const int64_t thread = omp_get_thread_num();
#else
    const int64_t thread = 0;
#endif
    MlpReverse<T> reverse(net, a.tape.rows, a.tangents, workspace.of_thread(),
                          static_cast<T*>(a.of_numbers) + thread * a.numbers, a.of_weights);
    // a thread's tiles are always the same ones, so that sums of gradients are too
#pragma omp for schedule(static)
    for (int64_t i = 0; i < a.tape.tiles; ++i)
      reverse_tile(a, reverse, static_cast<char*>(a.tape.at) + i * a.tape.bytes,
                   tile_lines(a.tape, i, a.rows, a.tangents, net.dim));
  }
}

template MlpTape mlp_tape<float>(const MlpNetwork&, int64_t, int64_t, int);
template MlpTape mlp_tape<double>(const MlpNetwork&, int64_t, int64_t, int);
template void mlp_record<float>(const MlpNetwork&, const MlpEvaluateArgs&, const MlpTape&, int);
template void mlp_record<double>(const MlpNetwork&, const MlpEvaluateArgs&, const MlpTape&, int);
template void mlp_reverse<float>(const MlpNetwork&, const MlpReverseArgs&, int);
template void mlp_reverse<double>(const MlpNetwork&, const MlpReverseArgs&, int);

}  // namespace fastlik::FASTLIK_ISA
