// A multilayer perceptron's value with its derivatives of up to third order along directions.
#include "fastlik/cpu.h"
#include "mlp_field.h"
#include "mlp_taylor.h"

namespace fastlik::FASTLIK_ISA {
namespace {

template <class T>
class JetTile {
 public:
  JetTile(const MlpNetwork& net, const MlpJetArgs& a, const Tile& tile, char* memory)
      : net_(net), a_(a), group_(std::max<int64_t>(1, tile.tangents / a.order)),
        taylor_(net, tile.rows, tile.tangents, int(a.order), memory) {}

  void run(int64_t first, int64_t rows) {
    load(first, rows);
    for (int64_t at = 0; at == 0 || at < a_.directions; at += group_) {
      const int64_t count = std::min(group_, a_.directions - at);
      put(first, rows, at, count);
      taylor_.run();
      take(first, rows, at, count);
    }
  }

 private:
  void load(int64_t first, int64_t rows) {
    for (int64_t r = 0; r < rows; ++r) {
      *taylor_.time(r) = T(a_.times[first + r]);
      for (int c = 0; c < net_.condition_count; ++c) {
        const int64_t width = net_.buffers[net_.conditions[c]].width;
        std::memcpy(taylor_.condition(c, r),
                    static_cast<const T*>(a_.in.conditions[c]) + (first + r) * width, width * sizeof(T));
      }
    }
    taylor_.run_conditions(rows);
    taylor_.run_times(rows);
  }

  // The line x + s v of each direction: its first derivative is v, and there are no higher ones.
  void put(int64_t first, int64_t rows, int64_t at, int64_t count) {
    const int64_t d = net_.dim, bytes = d * sizeof(T);
    const T* directions = static_cast<const T*>(a_.vectors);
    taylor_.arrange(rows, count);
    for (int64_t r = 0; r < rows; ++r) {
      std::memcpy(taylor_.input(r), static_cast<const T*>(a_.in.state) + (first + r) * d, bytes);
      for (int64_t k = 0; k < count; ++k) {
        std::memcpy(taylor_.input(taylor_.line(1, k, r)),
                    directions + ((at + k) * a_.in.rows + first + r) * d, bytes);
        for (int m = 2; m <= a_.order; ++m) std::memset(taylor_.input(taylor_.line(m, k, r)), 0, bytes);
      }
    }
  }

  void take(int64_t first, int64_t rows, int64_t at, int64_t count) const {
    const int64_t d = net_.dim, bytes = d * sizeof(T);
    T* derivatives = static_cast<T*>(a_.derivatives);
    for (int64_t r = 0; r < rows; ++r) {
      if (at == 0) std::memcpy(static_cast<T*>(a_.value) + (first + r) * d, taylor_.output(r), bytes);
      for (int m = 1; m <= a_.order; ++m)
        for (int64_t k = 0; k < count; ++k)
          std::memcpy(derivatives + (((m - 1) * a_.directions + at + k) * a_.in.rows + first + r) * d,
                      taylor_.output(taylor_.line(m, k, r)), bytes);
    }
  }

  const MlpNetwork& net_;
  const MlpJetArgs& a_;
  const int64_t group_;
  MlpTaylor<T> taylor_;
};

}  // namespace

template <class T>
void mlp_jet(const MlpNetwork& net, const MlpJetArgs& a, int threads) {
  if (a.in.rows == 0) return;
  const Tile tile(a.in.rows, std::min(a.directions, kTangentsTogether / a.order) * a.order, threads);
  const Workspace workspace(MlpEvaluator<T>::bytes(net, tile.rows, tile.tangents, false), threads);
#pragma omp parallel num_threads(threads) if (tile.count > 1)
  {
    JetTile<T> work(net, a, tile, workspace.of_thread());
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < tile.count; ++i)
      work.run(i * tile.rows, std::min(tile.rows, a.in.rows - i * tile.rows));
  }
}

template void mlp_jet<float>(const MlpNetwork&, const MlpJetArgs&, int);
template void mlp_jet<double>(const MlpNetwork&, const MlpJetArgs&, int);

}  // namespace fastlik::FASTLIK_ISA
