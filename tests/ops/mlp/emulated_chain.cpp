// The CUDA kernel's own source, run on the CPU by csrc/cuda/emulation.h.
#include <pybind11/pybind11.h>

#include "cuda/mlp_chain.h"
#include "mlp_chain_bindings.h"

namespace fastlik {
namespace {

template <int kWidth, int kPrecision>
void launch(const MlpChainArgs& a, int warps) {
  const int64_t samples = warps * cuda::kSamples;
  cuda::Emulator::launch((a.rows + samples - 1) / samples, 32 * warps, [&] {
    static std::vector<uint4> shared;  // of the block that runs
    if (cuda::thread() == 0) shared.assign(cuda::chain_shared_bytes(a, warps) / 16 + 1, uint4{});
    cuda::block_barrier();
    cuda::ChainWarp<kWidth, kPrecision>(a, reinterpret_cast<unsigned char*>(shared.data())).integrate();
  });
}

template <int kWidth>
void launch(const MlpChainArgs& a, int warps) {
  if (a.precision == kHalf) launch<kWidth, kHalf>(a, warps);
  else if (a.precision == kSplit) launch<kWidth, kSplit>(a, warps);
  else launch<kWidth, kFull>(a, warps);
}

void mlp_chain(const py::tuple& sizes, double parameter, const py::tuple& weights,
               const py::tuple& addresses, const py::tuple& trace, int warps) {
  const MlpChainArgs a = read_chain(sizes, parameter, weights, addresses, trace);
  a.width == 64 ? launch<64>(a, warps) : launch<128>(a, warps);
}

}  // namespace
}  // namespace fastlik

PYBIND11_MODULE(emulated_chain, m) { m.def("mlp_chain", &fastlik::mlp_chain); }
