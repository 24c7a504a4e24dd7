// The CUDA kernels.  They are queued on `stream` and return a cudaError_t: 0, or why they were not.
#pragma once

#include "fastlik/mlp_chain.h"
#include "fastlik/rk_step.h"

namespace fastlik::cuda {

template <class T>
int combine(const CombineArgs&, void* stream);
template <class T>
int advance(const AdvanceArgs&, void* stream);

int mlp_chain(const MlpChainArgs&, void* stream);

}  // namespace fastlik::cuda
