#include "chain_grid.h"

#include "chain_launch.h"
#include "fastlik/cuda.h"

namespace fastlik::cuda {

int chain(const MlpChain& n, const MlpGridArgs& a, void* stream) {
  return launch_chain<ChainGrid, kHalf, kSplit, kFull>(n, a, stream);
}

int64_t chain_bytes(const MlpChain& n, const MlpGridArgs& a) {
  return ChainGrid<kSplit>::bytes(n, a);
}

}  // namespace fastlik::cuda
