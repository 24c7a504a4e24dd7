// The CUDA kernels.  They are queued on `stream` and return a cudaError_t: 0, or why they were not.
#pragma once

#include "fastlik/mlp_chain.h"
#include "fastlik/rk_step.h"

namespace fastlik::cuda {

template <class T>
int combine(const CombineArgs&, void* stream);
template <class T>
int advance(const AdvanceArgs&, void* stream);

// Likelihood ODEs of plain MLPs, and the bytes of memory that they need for each warp.
int chain(const MlpChain&, const MlpGridArgs&, void* stream);
int chain(const MlpChain&, const MlpAdaptiveArgs&, void* stream);
int chain(const MlpChain&, const MlpAdamsArgs&, void* stream);
int64_t chain_bytes(const MlpChain&, const MlpGridArgs&);
int64_t chain_bytes(const MlpChain&, const MlpAdaptiveArgs&);
int64_t chain_bytes(const MlpChain&, const MlpAdamsArgs&);

}  // namespace fastlik::cuda
