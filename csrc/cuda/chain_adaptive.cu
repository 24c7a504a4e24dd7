#include "chain_adaptive.h"

#include "chain_launch.h"
#include "fastlik/cuda.h"

namespace fastlik::cuda {

int chain(const MlpChain& n, const MlpAdaptiveArgs& a, void* stream) {
  return launch_chain<ChainAdaptive, kSplit>(n, a, stream);
}

int64_t chain_bytes(const MlpChain& n, const MlpAdaptiveArgs& a) {
  return ChainAdaptive<kSplit>::bytes(n, a);
}

}  // namespace fastlik::cuda
