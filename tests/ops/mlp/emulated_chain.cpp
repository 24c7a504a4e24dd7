// The CUDA kernels' own source, run on the CPU by csrc/cuda/emulation.h.
#include <pybind11/pybind11.h>

#include "cuda/chain_adams.h"
#include "cuda/chain_adaptive.h"
#include "cuda/chain_grid.h"
#include "mlp_chain_bindings.h"

namespace fastlik::cuda {
namespace {

int64_t groups = kTogether;  // of a block

template <class Method>
int launch(const MlpChain& n, const typename Method::Args& a) {
  *n.queue = 0;
  Emulator::launch(a.in.rows ? n.blocks : 0, int(32 * n.warps), [&] {
    static std::vector<uint4> shared;  // of the block that runs
    if (thread() == 0) shared.assign(chain_shared_bytes(n, groups) / 16 + 1, uint4{});
    block_barrier();
    Method(n, a, int(groups), reinterpret_cast<unsigned char*>(shared.data())).run();
  });
  return 0;
}

template <template <int> class Method, int... kPrecisions, class Args>
int launch(const MlpChain& n, const Args& a) {
  int error = -1;
  ((n.precision == kPrecisions ? void(error = launch<Method<kPrecisions>>(n, a)) : void()), ...);
  return error;
}

}  // namespace

int chain(const MlpChain& n, const MlpGridArgs& a, void*) {
  return launch<ChainGrid, kHalf, kSplit, kFull>(n, a);
}
int64_t chain_bytes(const MlpChain& n, const MlpGridArgs& a) {
  return ChainGrid<kSplit>::bytes(n, a);
}
int chain(const MlpChain& n, const MlpAdaptiveArgs& a, void*) {
  return launch<ChainAdaptive, kSplit>(n, a);
}
int64_t chain_bytes(const MlpChain& n, const MlpAdaptiveArgs& a) {
  return ChainAdaptive<kSplit>::bytes(n, a);
}
int chain(const MlpChain& n, const MlpAdamsArgs& a, void*) {
  return launch<ChainAdams, kHalf, kSplit>(n, a);
}
int64_t chain_bytes(const MlpChain& n, const MlpAdamsArgs& a) {
  return ChainAdams<kSplit>::bytes(n, a);
}

}  // namespace fastlik::cuda

PYBIND11_MODULE(emulated_chain, m) {
  fastlik::define_mlp_chain(m);
  m.def("set_groups", [](int64_t groups) { fastlik::cuda::groups = groups; });
}
