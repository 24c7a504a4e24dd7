// Vectors of the instruction set that a file is compiled for, by the compilers' vector extension.
// Everything is internal to a translation unit: see rk_step.h on why.
#pragma once

#include <cstdint>
#include <cstring>

#ifndef FASTLIK_ISA
#define FASTLIK_ISA baseline
#endif

namespace fastlik::FASTLIK_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
struct Simd;

template <>
struct Simd<float> {
  typedef float V __attribute__((vector_size(kVectorBytes)));
  typedef int32_t I __attribute__((vector_size(kVectorBytes)));
};

template <>
struct Simd<double> {
  typedef double V __attribute__((vector_size(kVectorBytes)));
  typedef int64_t I __attribute__((vector_size(kVectorBytes)));
};

template <class T>
using Vector = typename Simd<T>::V;
template <class T>
using Integers = typename Simd<T>::I;
template <class T>
constexpr int kLanes = kVectorBytes / int(sizeof(T));

template <class T>
inline Vector<T> load(const T* from) {
  Vector<T> v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class T>
inline void store(T* to, Vector<T> v) {
  std::memcpy(to, &v, sizeof v);
}

template <class T>
inline Vector<T> splat(T x) {
  return x - Vector<T>{};
}

template <class T>
inline T sum(Vector<T> v) {
  T total = 0;
  for (int i = 0; i < kLanes<T>; ++i) total += v[i];
  return total;
}

// coefficients[0] + coefficients[1] x + ...
template <class T, int kCount>
inline Vector<T> polynomial(Vector<T> x, const T (&coefficients)[kCount]) {
  Vector<T> value = splat(coefficients[kCount - 1]);
#pragma GCC unroll 32
  for (int i = kCount - 2; i >= 0; --i) value = value * x + coefficients[i];
  return value;
}

}  // namespace
}  // namespace fastlik::FASTLIK_ISA
