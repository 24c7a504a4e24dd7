// out[m, n] += sum_k a[m, k] w[k, n] for a few dozen rows of a tile, with w in panels (MlpWeight).
// Every entry is summed in the order of k whatever the number of rows, so that a row's result does not
// depend on the rows beside it.
#pragma once

#include "simd.h"

namespace fastlik::FASTLIK_ISA {
namespace {

// Rows of a block that make full use of the registers with two vectors of outputs.
#if defined(__AVX512F__)
constexpr int kGemmRows = 12;
#else
constexpr int kGemmRows = 6;
#endif

// Not inlined: among other code, compilers run out of registers for the sums.
template <class T, int kRows, int kVectors>
__attribute__((noinline)) void gemm_block(int64_t inputs, const T* a, int64_t a_row, const T* w, T* out,
                       int64_t out_row) {
  constexpr int lanes = kLanes<T>, panel = 64 / int(sizeof(T)), per_panel = panel / lanes;
  const int64_t panel_size = inputs * panel;
  Vector<T> total[kRows][kVectors];
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) total[m][v] = load(out + m * out_row + v * lanes);
  for (int64_t k = 0; k < inputs; ++k) {
    Vector<T> column[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v)
      column[v] = load(w + (v / per_panel) * panel_size + (v % per_panel) * lanes + k * panel);
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
      const T x = a[m * a_row + k];
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) total[m][v] += x * column[v];
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) store(out + m * out_row + v * lanes, total[m][v]);
}

// All outputs of kRows rows, or of as many blocks of kRows as there are.
template <class T, int kRows, int kVectors>
inline void gemm_rows(int64_t blocks, int64_t vectors, int64_t inputs, const T* a, int64_t a_row,
                      const T* w, T* out, int64_t out_row) {
  constexpr int lanes = kLanes<T>, panel = 64 / int(sizeof(T));
  int64_t v = 0;
  const auto start = [&](int64_t v) {
    return w + v * lanes / panel * (inputs * panel) + v * lanes % panel;
  };
  const auto run = [&](auto block, int64_t width) {
    for (; v + width <= vectors; v += width)
      for (int64_t b = 0; b < blocks; ++b)
        block(inputs, a + b * kRows * a_row, a_row, start(v), out + b * kRows * out_row + v * lanes,
              out_row);
  };
  run(gemm_block<T, kRows, kVectors>, kVectors);
  if constexpr (kVectors > 2) run(gemm_block<T, kRows, 2>, 2);
  run(gemm_block<T, kRows, 1>, 1);
}

template <class T>
void gemm(int64_t rows, int64_t outputs, int64_t inputs, const T* a, int64_t a_row, const T* w,
          T* out, int64_t out_row) {
  const int64_t vectors = (outputs + kLanes<T> - 1) / kLanes<T>;
  const auto advance = [&](int64_t count) {
    a += count * a_row;
    out += count * out_row;
    rows -= count;
  };
  const int64_t blocks = rows / kGemmRows;
  gemm_rows<T, kGemmRows, 2>(blocks, vectors, inputs, a, a_row, w, out, out_row);
  advance(blocks * kGemmRows);
#if defined(__AVX512F__)
  if (rows >= 6) {
    gemm_rows<T, 6, 4>(1, vectors, inputs, a, a_row, w, out, out_row);
    advance(6);
  }
#endif
  if (rows >= 4) {
    gemm_rows<T, 4, 2>(1, vectors, inputs, a, a_row, w, out, out_row);
    advance(4);
  }
  if (rows == 3) gemm_rows<T, 3, 4>(1, vectors, inputs, a, a_row, w, out, out_row);
  if (rows == 2) gemm_rows<T, 2, 4>(1, vectors, inputs, a, a_row, w, out, out_row);
  if (rows == 1) gemm_rows<T, 1, 8>(1, vectors, inputs, a, a_row, w, out, out_row);
}

}  // namespace
}  // namespace fastlik::FASTLIK_ISA
