// Functions that the CPU and the CUDA kernels share.
#pragma once

// Internal linkage on purpose: the CPU sources are compiled once per instruction set, and an inline
// function with external linkage would leave the linker free to keep the AVX-512 copy for everyone.
// FASTLIK_CALLED: on a GPU one copy for all callers, for what is large and seldom.
#ifdef __CUDACC__
#define FASTLIK_MATH static __host__ __device__ inline
#define FASTLIK_METHOD __host__ __device__
#define FASTLIK_CALLED static __host__ __device__ __noinline__
#else
#define FASTLIK_MATH static inline
#define FASTLIK_METHOD
#define FASTLIK_CALLED static inline
#endif
