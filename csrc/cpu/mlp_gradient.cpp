// Values, tangents and second derivatives of a multilayer perceptron, and their gradients by inputs, weights and
// constants.
#include "fastlik/cpu.h"
#include "mlp_field.h"
#include "mlp_reverse.h"

namespace fastlik::FASTLIK_ISA {
namespace {

// The rows of one tile, and where their lines of `dim` features lie in tensors: values (all, dim), others
// (lines, all, dim).
struct TileRows {
  int64_t all, first, rows, dim;

  TileRows(const MlpTape& tape, int64_t index, int64_t batch, int64_t dim)
      : all(batch), first(index * tape.rows), rows(std::min(tape.rows, batch - first)), dim(dim) {}

  // go(line of the tile, its features) for the values and as many other lines.
  template <class U, class Go>
  void each(int64_t lines, U* values, U* others, Go go) const {
    for (int64_t r = 0; r < rows; ++r) {
      go(r, values + (first + r) * dim);
      for (int64_t t = 0; t < lines; ++t) go((1 + t) * rows + r, others + (t * all + first + r) * dim);
    }
  }
};

template <class T>
void record_tile(const MlpNetwork& net, const MlpEvaluateArgs& a, int64_t second, MlpSecondOrder<T>& evaluator,
                 const TileRows& tile) {
  for (int64_t r = 0; r < tile.rows; ++r) {
    *evaluator.time(r) = T(a.times[tile.first + r]);
    for (int c = 0; c < net.condition_count; ++c) {
      const int64_t width = net.buffers[net.conditions[c]].width;
      std::memcpy(evaluator.condition(c, r),
                  static_cast<const T*>(a.in.conditions[c]) + (tile.first + r) * width, width * sizeof(T));
    }
  }
  const T *state = static_cast<const T*>(a.in.state), *vectors = static_cast<const T*>(a.vectors);
  tile.each(a.tangents, state, vectors,
            [&](int64_t line, const T* from) { std::copy_n(from, net.dim, evaluator.input(line)); });
  // the state moves along straight lines
  for (int64_t line = (1 + a.tangents) * tile.rows; line < (1 + a.tangents + second) * tile.rows; ++line)
    std::fill_n(evaluator.input(line), net.dim, T(0));
  evaluator.run_conditions(tile.rows);
  evaluator.run_times(tile.rows);
  evaluator.run(tile.rows);
  tile.each(a.tangents + second, static_cast<T*>(a.value), static_cast<T*>(a.products),
            [&](int64_t line, T* to) { std::copy_n(evaluator.output(line), net.dim, to); });
}

template <class T>
void reverse_tile(const MlpReverseArgs& a, MlpReverse<T>& reverse, char* tape, const TileRows& tile) {
  reverse.start(tape, tile.rows);
  tile.each(a.tangents + a.tape.second.lines, static_cast<const T*>(a.value), static_cast<const T*>(a.products),
            [&](int64_t line, const T* from) { std::copy_n(from, tile.dim, reverse.output_gradient(line)); });
  reverse.run();
  tile.each(a.tangents, static_cast<T*>(a.state), static_cast<T*>(a.vectors),
            [&](int64_t line, T* to) { std::copy_n(reverse.input_gradient(line), tile.dim, to); });
}

}  // namespace

template <class T>
MlpTape mlp_tape(const MlpNetwork& net, int64_t rows, int64_t lines, int threads) {
  const Tile tile(std::max<int64_t>(1, rows), lines, threads);
  return {tile.rows, tile.count, padded(MlpEvaluator<T>::bytes(net, tile.rows, lines, false)), nullptr, {}};
}

template <class T>
void mlp_record(const MlpNetwork& net, const MlpEvaluateArgs& a, const MlpTape& tape, int threads) {
  if (a.in.rows == 0) return;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (tape.tiles > 1)
  for (int64_t i = 0; i < tape.tiles; ++i) {
    char* memory = static_cast<char*>(tape.at) + i * tape.bytes;
    MlpSecondOrder<T> evaluator(net, tape.rows, a.tangents, tape.second, memory);
    record_tile(net, a, tape.second.lines, evaluator, TileRows(tape, i, a.in.rows, net.dim));
  }
}

template <class T>
void mlp_reverse(const MlpNetwork& net, const MlpReverseArgs& a, int threads) {
  if (a.rows == 0) return;
  const int64_t lines = a.tangents + a.tape.second.lines;
  const Workspace workspace(MlpReverse<T>::bytes(net, a.tape.rows, lines), threads);
#pragma omp parallel num_threads(threads) if (a.tape.tiles > 1)
  {
#ifdef _OPENMP
    const int64_t thread = omp_get_thread_num();
#else
    const int64_t thread = 0;
#endif
    MlpReverse<T> reverse(net, a.tape.rows, a.tangents, a.tape.second, workspace.of_thread(),
                          static_cast<T*>(a.of_numbers) + thread * a.numbers, a.of_weights);
    // a thread's tiles are always the same ones, so that sums of gradients are too
#pragma omp for schedule(static)
    for (int64_t i = 0; i < a.tape.tiles; ++i)
      reverse_tile(a, reverse, static_cast<char*>(a.tape.at) + i * a.tape.bytes,
                   TileRows(a.tape, i, a.rows, net.dim));
  }
}

template MlpTape mlp_tape<float>(const MlpNetwork&, int64_t, int64_t, int);
template MlpTape mlp_tape<double>(const MlpNetwork&, int64_t, int64_t, int);
template void mlp_record<float>(const MlpNetwork&, const MlpEvaluateArgs&, const MlpTape&, int);
template void mlp_record<double>(const MlpNetwork&, const MlpEvaluateArgs&, const MlpTape&, int);
template void mlp_reverse<float>(const MlpNetwork&, const MlpReverseArgs&, int);
template void mlp_reverse<double>(const MlpNetwork&, const MlpReverseArgs&, int);

}  // namespace fastlik::FASTLIK_ISA
