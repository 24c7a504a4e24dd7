// CPU kernels of the Runge-Kutta step.  A row belongs to one thread from beginning to end, so the
// result does not depend on the number of threads.
#include <algorithm>
#include <cstring>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "fastlik/cpu.h"

namespace fastlik::FASTLIK_ISA {
namespace {

constexpr int64_t kBlock = 256;             // elements whose sums stay in the first-level cache
constexpr int64_t kParallelWork = 1 << 15;  // products below which waking the threads costs more
constexpr int kGroup = 4;                   // stages summed in registers
constexpr int kPadded = kMaxStages + kGroup;

int thread_index() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// The stages in use, in whole groups: the last group repeats its last stage with weight 0, which is
// as finite as that stage is.
template <class T>
struct Tableau {
  int groups;
  int64_t offset[kPadded];
  T b[kPadded], e[kPadded];

  Tableau(const Stages& used, int64_t k_stage, const double* weights, const double* errors) {
    groups = (used.count + kGroup - 1) / kGroup;
    for (int s = 0; s < groups * kGroup; ++s) {
      const int j = used.index[s < used.count ? s : used.count - 1];
      offset[s] = j * k_stage;
      b[s] = s < used.count ? T(weights[j]) : 0;
      e[s] = s < used.count ? T(errors[j]) : 0;
    }
  }
};

// sum (+)= the group's stages, for `count` elements from k on; likewise error, unless it is null.
template <bool kFirst, bool kErrors, class T>
void add_group(const Tableau<T>& tableau, int group, const T* k, int64_t count, T* sum, T* error) {
  const int at = group * kGroup;
  const T *k0 = k + tableau.offset[at], *k1 = k + tableau.offset[at + 1],
          *k2 = k + tableau.offset[at + 2], *k3 = k + tableau.offset[at + 3];
  const T b0 = tableau.b[at], b1 = tableau.b[at + 1], b2 = tableau.b[at + 2],
          b3 = tableau.b[at + 3];
  const T e0 = tableau.e[at], e1 = tableau.e[at + 1], e2 = tableau.e[at + 2],
          e3 = tableau.e[at + 3];
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    sum[i] = (kFirst ? T(0) : sum[i]) + b0 * k0[i] + b1 * k1[i] + b2 * k2[i] + b3 * k3[i];
    if (kErrors)
      error[i] = (kFirst ? T(0) : error[i]) + e0 * k0[i] + e1 * k1[i] + e2 * k2[i] + e3 * k3[i];
  }
}

template <bool kErrors, class T>
void add_stages(const Tableau<T>& tableau, const T* k, int64_t count, T* sum, T* error) {
  if (tableau.groups == 0) std::fill_n(sum, count, T(0));
  if (tableau.groups == 0 && kErrors) std::fill_n(error, count, T(0));
  for (int group = 0; group < tableau.groups; ++group) {
    if (group == 0)
      add_group<true, kErrors>(tableau, group, k, count, sum, error);
    else
      add_group<false, kErrors>(tableau, group, k, count, sum, error);
  }
}

// One sweep over a row: y <- y_new (the old row goes to `saved`), and the two float64 sums of its
// error: squares of the scaled coordinates, and the product with the sensitivity.
template <class T>
void sweep(const AdvanceArgs& a, const Tableau<T>& tableau, int64_t row, T* saved,
           double& squares, double& dot) {
  T* y = static_cast<T*>(a.y) + row * a.y_row;
  const T* k = static_cast<const T*>(a.k) + row * a.k_row;
  const T* sensitivity = static_cast<const T*>(a.sensitivity);
  if (sensitivity) sensitivity += row * a.sensitivity_row;
  const T h = T(a.h[row]), rtol = T(a.rtol), atol = T(a.atol);
  double sum = 0, product = 0;
  for (int64_t start = 0; start < a.size; start += kBlock) {
    const int64_t count = a.size - start < kBlock ? a.size - start : kBlock;
    T step[kBlock], error[kBlock];
    add_stages<true>(tableau, k + start, count, step, error);
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; ++i) {
      const T old = y[start + i];
      const T y_new = old + h * step[i];
      saved[start + i] = old;
      y[start + i] = y_new;
      const double scaled = scaled_error(h * error[i], old, y_new, rtol, atol);
      sum += scaled * scaled;
    }
    if (sensitivity) {
#pragma omp simd reduction(+ : product)
      for (int64_t i = 0; i < count; ++i)
        product += double(sensitivity[start + i]) * double(h * error[i]);
    }
  }
  squares = sum;
  dot = product;
}

template <class T>
void advance_row(const AdvanceArgs& a, const Stages& used, const Tableau<T>& tableau, int64_t row,
                 T* saved) {
  double squares, dot;
  sweep(a, tableau, row, saved, squares, dot);
  const double gap = integral_error(a, used, row, dot);
  const double error = row_error(squares, a.size, gap, a.q_atol);
  a.error[row] = error;
  T* y = static_cast<T*>(a.y) + row * a.y_row;
  T* k = static_cast<T*>(a.k) + row * a.k_row;
  if (!(error <= 1)) {
    std::memcpy(y, saved, a.size * sizeof(T));
  } else {
    if (a.q) commit_integral(a, used, row);
    if (a.defect) a.defect[row] += std::fabs(gap);
    if (a.fsal) std::memmove(k, k + (a.stages - 1) * a.k_stage, a.size * sizeof(T));
  }
  control(a, row, error);
}

}  // namespace

template <class T>
void combine(const CombineArgs& a, int threads) {
  const Stages used = used_stages(a.weights, a.weights, a.stages);
  const Tableau<T> tableau(used, a.k_stage, a.weights, a.weights);
  const int64_t blocks = (a.size + kBlock - 1) / kBlock;
  const bool parallel = a.rows * a.size * (used.count + 1) > kParallelWork;
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads) if (parallel)
  for (int64_t row = 0; row < a.rows; ++row) {
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t start = block * kBlock;
      const int64_t count = a.size - start < kBlock ? a.size - start : kBlock;
      const T* k = static_cast<const T*>(a.k) + row * a.k_row + start;
      const T* y = static_cast<const T*>(a.y) + row * a.y_row + start;
      T* out = static_cast<T*>(a.out) + row * a.out_row + start;
      const T h = T(a.h[row]);
      T sum[kBlock];
      add_stages<false, T>(tableau, k, count, sum, nullptr);
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) out[i] = y[i] + h * sum[i];
    }
  }
}

template <class T>
void advance(const AdvanceArgs& a, int threads) {
  const Stages used = used_stages(a.b, a.e, a.stages);
  const Tableau<T> tableau(used, a.k_stage, a.b, a.e);
  const bool parallel = a.rows * a.size * (used.count + 1) > kParallelWork;
#pragma omp parallel for schedule(static, 4) num_threads(threads) if (parallel)
  for (int64_t row = 0; row < a.rows; ++row) {
    a.accepted[row] = false;
    a.error[row] = 0;
    if (a.status[row] == kRunning)
      advance_row(a, used, tableau, row, static_cast<T*>(a.saved) + thread_index() * a.size);
  }
}

template void combine<float>(const CombineArgs&, int);
template void combine<double>(const CombineArgs&, int);
template void advance<float>(const AdvanceArgs&, int);
template void advance<double>(const AdvanceArgs&, int);

}  // namespace fastlik::FASTLIK_ISA
