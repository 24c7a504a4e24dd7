// A multilayer perceptron's values and derivatives, and its likelihood ODE.  A tile of rows stays with
// one thread, and in its caches, from beginning to end; no row's numbers depend on another's.
#include "fastlik/cpu.h"
#include "mlp_adams.h"
#include "mlp_adaptive.h"
#include "mlp_grid.h"

namespace fastlik::FASTLIK_ISA {
namespace {

// Values and derivatives of the network for one tile.
template <class T>
void evaluate_tile(const MlpNetwork& net, const MlpEvaluateArgs& a, MlpEvaluator<T>& evaluator,
                   int64_t first, int64_t rows, int64_t group) {
  const int64_t d = net.dim;
  const bool closed = a.divergence && net.trace.buffer >= 0;
  const int64_t exact = a.divergence && !closed ? d : 0, all = std::max(a.tangents, exact);
  for (int64_t r = 0; r < rows; ++r) {
    *evaluator.time(r) = T(a.times[first + r]);
    for (int c = 0; c < net.condition_count; ++c) {
      const int64_t width = net.buffers[net.conditions[c]].width;
      std::memcpy(evaluator.condition(c, r),
                  static_cast<const T*>(a.in.conditions[c]) + (first + r) * width, width * sizeof(T));
    }
  }
  evaluator.run_conditions(rows);
  evaluator.run_times(rows);
  if (exact) std::fill_n(a.divergence + first, rows, 0.0);
  for (int64_t at = 0; at == 0 || at < all; at += group) {
    const int64_t count = std::min(group, all - at);
    for (int64_t r = 0; r < rows; ++r)
      std::memcpy(evaluator.input(r), static_cast<const T*>(a.in.state) + (first + r) * d, d * sizeof(T));
    for (int64_t k = 0; k < count; ++k) {
      for (int64_t r = 0; r < rows; ++r) {
        T* line = evaluator.input((1 + k) * rows + r);
        if (exact) {
          std::fill_n(line, d, T(0));
          line[at + k] = 1;
        } else {
          std::memcpy(line, static_cast<const T*>(a.vectors) + ((at + k) * a.in.rows + first + r) * d,
                      d * sizeof(T));
        }
      }
    }
    evaluator.run(rows, count, closed);
    for (int64_t r = 0; r < rows; ++r) {
      if (at == 0) std::memcpy(static_cast<T*>(a.value) + (first + r) * d, evaluator.output(r), d * sizeof(T));
      if (closed) a.divergence[first + r] = evaluator.trace(r);
      for (int64_t k = 0; k < count; ++k) {
        const int64_t line = (1 + k) * rows + r;
        const T *v = evaluator.input(line), *product = evaluator.output(line);
        if (exact) a.divergence[first + r] += product[at + k];
        if (a.products)
          std::memcpy(static_cast<T*>(a.products) + ((at + k) * a.in.rows + first + r) * d, product,
                      d * sizeof(T));
        if (a.quadratic) {
          double total = 0;
          for (int64_t i = 0; i < d; ++i) total += double(v[i]) * double(product[i]);
          a.quadratic[(first + r) * a.tangents + at + k] = total;
        }
      }
    }
  }
}

}  // namespace

template <class T>
void mlp_evaluate(const MlpNetwork& net, const MlpEvaluateArgs& a, int threads) {
  if (a.in.rows == 0) return;
  const bool tangents = a.divergence && net.trace.buffer < 0;
  const Tile tile(a.in.rows, tangents ? net.dim : a.tangents, threads);
  const Workspace workspace(MlpEvaluator<T>::bytes(net, tile.rows, tile.tangents, false), threads);
#pragma omp parallel num_threads(threads) if (tile.count > 1)
  {
    MlpEvaluator<T> evaluator(net, tile.rows, tile.tangents, false, workspace.of_thread());
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < tile.count; ++i) {
      const int64_t first = i * tile.rows, rows = std::min(tile.rows, a.in.rows - first);
      evaluate_tile(net, a, evaluator, first, rows, std::max<int64_t>(1, tile.tangents));
    }
  }
}

template <class T>
void mlp_grid(const MlpNetwork& net, const MlpGridArgs& a, int threads) {
  if (a.in.rows == 0) return;
  const Tile tile(a.in.rows, a.trace.tangents(net.dim), threads);
  // everything that depends on the time alone, once for all rows
  const Workspace table(MlpEvaluator<T>::table_size(net) * a.evaluations * int64_t(sizeof(T)), 1);
  T* times = reinterpret_cast<T*>(table.of_thread());
  const Workspace workspace(GridTile<T>::bytes(net, a, tile), threads);
  {
    MlpEvaluator<T> evaluator(net, tile.rows, tile.tangents, true, workspace.of_thread());
    evaluator.tabulate(times, a.time, a.evaluations);
  }
#pragma omp parallel num_threads(threads) if (tile.count > 1)
  {
    GridTile<T> work(net, a, tile, times, workspace.of_thread());
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < tile.count; ++i)
      work.run(i * tile.rows, std::min(tile.rows, a.in.rows - i * tile.rows));
  }
}

template <class T>
void mlp_adaptive(const MlpNetwork& net, const MlpAdaptiveArgs& a, int threads) {
  if (a.in.rows == 0) return;
  const Tile tile(a.in.rows, a.trace.tangents(net.dim), threads);
  const Workspace workspace(AdaptiveTile<T>::bytes(net, a, tile), threads);
  Queue queue(a.in.rows);
#pragma omp parallel num_threads(threads) if (tile.count > 1)
  AdaptiveTile<T>(net, a, tile, workspace.of_thread()).run(queue);
}

template <class T>
void mlp_adams(const MlpNetwork& net, const MlpAdamsArgs& a, int threads) {
  if (a.in.rows == 0) return;
  const Tile tile(a.in.rows, a.trace.tangents(net.dim), threads);
  const Workspace workspace(AdamsTile<T>::bytes(net, a, tile), threads);
  Queue queue(a.in.rows);
#pragma omp parallel num_threads(threads) if (tile.count > 1)
  AdamsTile<T>(net, a, tile, workspace.of_thread()).run(queue);
}

template void mlp_evaluate<float>(const MlpNetwork&, const MlpEvaluateArgs&, int);
template void mlp_evaluate<double>(const MlpNetwork&, const MlpEvaluateArgs&, int);
template void mlp_grid<float>(const MlpNetwork&, const MlpGridArgs&, int);
template void mlp_grid<double>(const MlpNetwork&, const MlpGridArgs&, int);
template void mlp_adaptive<float>(const MlpNetwork&, const MlpAdaptiveArgs&, int);
template void mlp_adaptive<double>(const MlpNetwork&, const MlpAdaptiveArgs&, int);
template void mlp_adams<float>(const MlpNetwork&, const MlpAdamsArgs&, int);
template void mlp_adams<double>(const MlpNetwork&, const MlpAdamsArgs&, int);

}  // namespace fastlik::FASTLIK_ISA
