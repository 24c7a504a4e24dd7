// What a kernel needs of its thread, its warp and its block.  Without nvcc the same names run on the CPU,
// in csrc/cuda/emulation.h: kernels that use nothing else are tested there.
#pragma once

#ifdef __CUDACC__

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#define FASTLIK_DEVICE static __device__ __forceinline__
#define FASTLIK_DEVICE_MEMBER __device__ __forceinline__
#define FASTLIK_SHARED_CODE static __device__ __noinline__

namespace fastlik::cuda {

FASTLIK_DEVICE int thread() { return threadIdx.x; }
FASTLIK_DEVICE int threads() { return blockDim.x; }
FASTLIK_DEVICE int64_t block() { return blockIdx.x; }
FASTLIK_DEVICE void block_barrier() { __syncthreads(); }
FASTLIK_DEVICE bool block_any(bool value) { return __syncthreads_or(value); }

// Lanes 4 g .. 4 g + 3 are a quad.  Quads of a warp may part; the lanes of one never do.
FASTLIK_DEVICE unsigned quad_mask() { return 15u << (threadIdx.x % 32 & ~3); }
FASTLIK_DEVICE double quad_sum(double x) {
  x += __shfl_xor_sync(quad_mask(), x, 1);
  return x + __shfl_xor_sync(quad_mask(), x, 2);
}
FASTLIK_DEVICE int64_t from_quad_leader(int64_t x) {
  return __shfl_sync(quad_mask(), static_cast<long long>(x), threadIdx.x % 32 & ~3);
}

// Its value, which then grows by one.
FASTLIK_DEVICE int64_t fetch_next(int64_t* counter) {
  return atomicAdd(reinterpret_cast<unsigned long long*>(counter), 1ull);
}

// What no thread writes while the kernel runs.
template <class T>
FASTLIK_DEVICE T read_only(const T* from) {
  return __ldg(from);
}

// Two floats rounded to fp16, the first in the low bits; and the way back.
FASTLIK_DEVICE uint32_t to_halves(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
FASTLIK_DEVICE float2 from_halves(uint32_t pair) {
  return __half22float2(*reinterpret_cast<const __half2*>(&pair));
}

// c += a b for a 16 x 16 tile a and a 16 x 8 tile b of fp16, spread over the warp (PTX ISA, mma.m16n8k16).
FASTLIK_DEVICE void mma(float (&c)[4], const uint4& a, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

}  // namespace fastlik::cuda

#else
#include "emulation.h"
#endif
