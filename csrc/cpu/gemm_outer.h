// out[i, j] += sum_l a[l, i] b[l, j] over the lines l of a tile: the gradient of a weight.
#pragma once

#include "gemm.h"

namespace fastlik::FASTLIK_ISA {
namespace {

template <class T, int kRows, int kVectors>
__attribute__((noinline)) void outer_block(int64_t lines, const T* a, int64_t a_line, const T* b, int64_t b_line,
                                           T* out, int64_t out_row) {
  constexpr int lanes = kLanes<T>;
  Vector<T> total[kRows][kVectors];
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) total[m][v] = load(out + m * out_row + v * lanes);
  for (int64_t l = 0; l < lines; ++l, a += a_line, b += b_line) {
    Vector<T> row[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) row[v] = load(b + v * lanes);
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) total[m][v] += a[m] * row[v];
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) store(out + m * out_row + v * lanes, total[m][v]);
}

// a (lines, rows), b (lines, columns); `out` has rows of `columns` padded to panels, of which the padding is
// garbage afterwards.
template <class T>
void gemm_outer(int64_t lines, int64_t rows, int64_t columns, const T* a, int64_t a_line, const T* b,
                int64_t b_line, T* out) {
  constexpr int lanes = kLanes<T>, panel = kMlpPanelBytes / int(sizeof(T));
  const int64_t out_row = (columns + panel - 1) / panel * panel, vectors = (columns + lanes - 1) / lanes;
  for (int64_t v = 0; v < vectors;) {
    const bool pair = v + 2 <= vectors;
    const auto run = [&](auto two, auto one, int64_t m) {
      (pair ? two : one)(lines, a + m, a_line, b + v * lanes, b_line, out + m * out_row + v * lanes, out_row);
    };
    int64_t m = 0;
    for (; m + kGemmRows <= rows; m += kGemmRows)
      run(outer_block<T, kGemmRows, 2>, outer_block<T, kGemmRows, 1>, m);
    for (; m + 4 <= rows; m += 4) run(outer_block<T, 4, 2>, outer_block<T, 4, 1>, m);
    for (; m < rows; ++m) run(outer_block<T, 1, 2>, outer_block<T, 1, 1>, m);
    v += pair ? 2 : 1;
  }
}

}  // namespace
}  // namespace fastlik::FASTLIK_ISA
