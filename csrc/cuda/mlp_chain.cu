// Launches of the MLP's likelihood ODE; the kernel itself is mlp_chain.h.
#include "fastlik/cuda.h"
#include "mlp_chain.h"

namespace fastlik::cuda {
namespace {

template <int kWidth, int kPrecision>
__global__ void __launch_bounds__(32 * kMostWarps, 1) chain_kernel(const __grid_constant__ MlpChainArgs a) {
  extern __shared__ __align__(16) unsigned char shared[];
  ChainWarp<kWidth, kPrecision>(a, shared).integrate();
}

template <int kWidth, int kPrecision>
cudaError_t launch(const MlpChainArgs& a, cudaStream_t stream) {
  int device, processors, most_shared;
  cudaError_t error = cudaGetDevice(&device);
  if (!error) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (!error)
    error = cudaDeviceGetAttribute(&most_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error) return error;
  // small batches spread over all processors, large ones share a block's copy of the weights
  const int64_t groups = (a.rows + kSamples - 1) / kSamples;
  const int64_t each = (groups + processors - 1) / processors;
  int warps = int(each < kMostWarps ? each : kMostWarps);
  while (warps > 1 && chain_shared_bytes(a, warps) > most_shared) --warps;
  const int64_t bytes = chain_shared_bytes(a, warps);
  const auto kernel = chain_kernel<kWidth, kPrecision>;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
  if (error) return error;
  kernel<<<(groups + warps - 1) / warps, 32 * warps, bytes, stream>>>(a);
  return cudaGetLastError();
}

template <int kWidth>
cudaError_t launch(const MlpChainArgs& a, cudaStream_t stream) {
  switch (a.precision) {
    case kHalf: return launch<kWidth, kHalf>(a, stream);
    case kSplit: return launch<kWidth, kSplit>(a, stream);
    default: return launch<kWidth, kFull>(a, stream);
  }
}

}  // namespace

int mlp_chain(const MlpChainArgs& a, void* stream) {
  if (a.rows == 0) return 0;
  const auto queue = static_cast<cudaStream_t>(stream);
  return a.width == 64 ? launch<64>(a, queue) : launch<128>(a, queue);
}

}  // namespace fastlik::cuda
