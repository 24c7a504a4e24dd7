// How the kernels of plain MLPs are launched.
#pragma once

#include "chain_field.h"

namespace fastlik::cuda {

constexpr int kMostWarps = 8;  // of a block

template <class Method>
__global__ void __launch_bounds__(32 * kMostWarps, 1)
    chain_kernel(const __grid_constant__ MlpChain n, const __grid_constant__ typename Method::Args a, int groups) {
  extern __shared__ __align__(16) unsigned char shared[];
  Method(n, a, groups, shared).run();
}

template <class Method>
cudaError_t launch_chain(const MlpChain& n, const typename Method::Args& a, cudaStream_t stream) {
  int device, processors, most_shared;
  cudaError_t error = cudaGetDevice(&device);
  if (!error) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (!error) error = cudaDeviceGetAttribute(&most_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  // large batches share the weights that a block reads, small ones spread over the processors
  int64_t groups = a.in.rows > 2 * kTogether * kSamples * processors ? 2 * kTogether : kTogether;
  if (chain_shared_bytes(n, groups) > most_shared) groups = kTogether;
  const int64_t bytes = chain_shared_bytes(n, groups), each = groups * kSamples;
  const int64_t wanted = (a.in.rows + each - 1) / each, blocks = wanted < n.blocks ? wanted : n.blocks;
  const auto kernel = chain_kernel<Method>;
  if (!error) error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
  if (!error) error = cudaMemsetAsync(n.queue, 0, sizeof *n.queue, stream);
  if (error) return error;
  kernel<<<blocks, 32 * n.warps, bytes, stream>>>(n, a, int(groups));
  return cudaGetLastError();
}

// By the precisions that the method is compiled for.
template <template <int> class Method, int... kPrecisions, class Args>
int launch_chain(const MlpChain& n, const Args& a, void* stream) {
  if (a.in.rows == 0) return 0;
  cudaError_t error = cudaErrorNotSupported;
  const auto queue = static_cast<cudaStream_t>(stream);
  ((n.precision == kPrecisions ? void(error = launch_chain<Method<kPrecisions>>(n, a, queue)) : void()), ...);
  return error;
}

}  // namespace fastlik::cuda
