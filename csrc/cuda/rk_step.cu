// CUDA kernels of the Runge-Kutta step: one block per row, the same mathematics as the CPU's.
#include "fastlik/cuda.h"

namespace fastlik::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// sum_j weights[j] k[j, row, i] over the stages in use.
template <class T>
__device__ T stage_sum(const T* k, int64_t k_stage, const double* weights, const Stages& used) {
  T sum = 0;
  for (int s = 0; s < used.count; ++s) {
    const int j = used.index[s];
    sum += T(weights[j]) * k[j * k_stage];
  }
  return sum;
}

// Sum over the block, in an order that does not vary; valid in thread 0.
__device__ double block_sum(double value, double* shared) {
  for (int lane = 16; lane > 0; lane /= 2) value += __shfl_down_sync(~0u, value, lane);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  double sum = 0;
  if (threadIdx.x == 0)
    for (int warp = 0; warp < kWarps; ++warp) sum += shared[warp];
  return sum;
}

template <class T>
__global__ void __launch_bounds__(kThreads) combine_kernel(CombineArgs a, Stages used) {
  const int64_t row = blockIdx.x;
  const T* y = static_cast<const T*>(a.y) + row * a.y_row;
  const T* k = static_cast<const T*>(a.k) + row * a.k_row;
  T* out = static_cast<T*>(a.out) + row * a.out_row;
  const T h = T(a.h[row]);
  for (int64_t i = threadIdx.x; i < a.size; i += kThreads)
    out[i] = y[i] + h * stage_sum(k + i, a.k_stage, a.weights, used);
}

template <class T>
__global__ void __launch_bounds__(kThreads) advance_kernel(AdvanceArgs a, Stages used) {
  const int64_t row = blockIdx.x;
  if (a.status[row] != kRunning) {
    if (threadIdx.x == 0) {
      a.accepted[row] = false;
      a.error[row] = 0;
    }
    return;
  }
  T* y = static_cast<T*>(a.y) + row * a.y_row;
  T* k = static_cast<T*>(a.k) + row * a.k_row;
  const T* sensitivity = static_cast<const T*>(a.sensitivity) + row * a.sensitivity_row;
  const T h = T(a.h[row]);

  double squares = 0, dot = 0;
  for (int64_t i = threadIdx.x; i < a.size; i += kThreads) {
    const T y_new = y[i] + h * stage_sum(k + i, a.k_stage, a.b, used);
    const T error = h * stage_sum(k + i, a.k_stage, a.e, used);
    const double scaled = scaled_error(error, y[i], y_new, T(a.rtol), T(a.atol));
    squares += scaled * scaled;
    if (a.sensitivity) dot += double(sensitivity[i]) * double(error);
  }

  __shared__ double square_sums[kWarps], dot_sums[kWarps];
  __shared__ bool accepted;
  squares = block_sum(squares, square_sums);
  dot = block_sum(dot, dot_sums);
  if (threadIdx.x == 0) {
    const double gap = integral_error(a, used, row, dot);
    const double error = row_error(squares, a.size, gap, a.q_atol);
    a.error[row] = error;
    accepted = error <= 1;
    if (accepted && a.q) commit_integral(a, used, row);
    if (accepted && a.defect) a.defect[row] += fabs(gap);
    control(a, row, error);
  }
  __syncthreads();
  if (!accepted) return;
  const T* last = k + (a.stages - 1) * a.k_stage;
  for (int64_t i = threadIdx.x; i < a.size; i += kThreads) {
    y[i] += h * stage_sum(k + i, a.k_stage, a.b, used);
    if (a.fsal) k[i] = last[i];
  }
}

}  // namespace

template <class T>
int combine(const CombineArgs& a, void* stream) {
  const Stages used = used_stages(a.weights, a.weights, a.stages);
  if (a.rows > 0)
    combine_kernel<T><<<a.rows, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a, used);
  return cudaGetLastError();
}

template <class T>
int advance(const AdvanceArgs& a, void* stream) {
  const Stages used = used_stages(a.b, a.e, a.stages);
  if (a.rows > 0)
    advance_kernel<T><<<a.rows, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a, used);
  return cudaGetLastError();
}

template int combine<float>(const CombineArgs&, void*);
template int combine<double>(const CombineArgs&, void*);
template int advance<float>(const AdvanceArgs&, void*);
template int advance<double>(const AdvanceArgs&, void*);

}  // namespace fastlik::cuda
