#include "chain_adams.h"

#include "chain_launch.h"
#include "fastlik/cuda.h"

namespace fastlik::cuda {

int chain(const MlpChain& n, const MlpAdamsArgs& a, void* stream) {
  return launch_chain<ChainAdams, kHalf, kSplit>(n, a, stream);
}

int64_t chain_bytes(const MlpChain& n, const MlpAdamsArgs& a) {
  return ChainAdams<kSplit>::bytes(n, a);
}

}  // namespace fastlik::cuda
