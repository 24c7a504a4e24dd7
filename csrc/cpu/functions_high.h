// Elementwise functions with three derivatives; functions.h has them with one.
#pragma once

#include "functions.h"

namespace fastlik::FASTLIK_ISA {
namespace {

template <class T>
struct Derivatives {
  Vector<T> value, first, second, third;
};

// The logistic function s: s' = s (1 - s), s'' = s' (1 - 2 s), s''' = s' (1 - 6 s').
template <class T>
inline Derivatives<T> logistic_high(Vector<T> x) {
  const Dual<T> s = logistic<T>(x);
  return {s.value, s.slope, s.slope * (1 - 2 * s.value), s.slope * (1 - 6 * s.slope)};
}

// x s(x) from the derivatives of s.
template <class T>
inline Derivatives<T> times_x(Vector<T> x, const Derivatives<T>& s) {
  return {x * s.value, s.value + x * s.first, 2 * s.first + x * s.second, 3 * s.second + x * s.third};
}

// s(w(x)) from the derivatives of s at w and those of w.
template <class T>
inline Derivatives<T> composed(const Derivatives<T>& s, const Derivatives<T>& w) {
  return {s.value, s.first * w.first, s.second * w.first * w.first + s.first * w.second,
          s.third * w.first * w.first * w.first + 3 * s.second * w.first * w.second + s.first * w.third};
}

template <MlpFunction kFunction, class T>
inline Derivatives<T> apply_high(Vector<T> x, [[maybe_unused]] T p) {
  using V = Vector<T>;
  const V zero{};
  if constexpr (kFunction == kSilu) {
    const V y = clamp(x, T(-87), T(87));  // beyond, the derivatives of the logistic function are 0
    Derivatives<T> s = times_x<T>(y, logistic_high<T>(y));
    s.value = x > 87 ? x : s.value;
    return s;
  } else if constexpr (kFunction == kGelu) {  // with Phi' = phi, phi' = -x phi
    const Dual<T> y = apply<kGelu, T>(x, p);
    const V z = clamp(x, T(-13), T(13));  // beyond, the density is 0
    const V square = z * z, density = Exponential<T>(square * T(-0.5)).exp() * T(0.39894228040143268);
    return {y.value, y.slope, density * (2 - square), density * z * (square - 4)};
  } else if constexpr (kFunction == kGeluTanh) {
    const T scale = T(1.5957691216057308), cube = T(0.044715);  // 2 sqrt(2 / pi)
    const V y = clamp(x, T(-12), T(12));                        // beyond, the logistic function is 0 or 1
    const V square = y * y;
    const Derivatives<T> w{scale * y * (1 + cube * square), scale * (1 + 3 * cube * square),
                           6 * scale * cube * y, splat(6 * scale * cube)};
    Derivatives<T> s = times_x<T>(y, composed<T>(logistic_high<T>(w.value), w));
    s.value = x > 12 ? x : s.value;
    return s;
  } else if constexpr (kFunction == kTanh) {
    const Dual<T> y = apply<kTanh, T>(x, p);
    return {y.value, y.slope, -2 * y.value * y.slope, y.slope * (4 - 6 * y.slope)};
  } else if constexpr (kFunction == kSigmoid) {
    return logistic_high<T>(x);
  } else if constexpr (kFunction == kSoftplus) {  // whose derivative is the logistic function of p x
    const Dual<T> y = apply<kSoftplus, T>(x, p);
    const Derivatives<T> s = logistic_high<T>(p * x);
    const Integers<T> linear = p * x > 20;
    return {y.value, y.slope, linear ? zero : p * s.first, linear ? zero : p * p * s.second};
  } else if constexpr (kFunction == kElu) {
    const Dual<T> y = apply<kElu, T>(x, p);
    const V high = x > 0 ? zero : y.slope;
    return {y.value, y.slope, high, high};
  } else if constexpr (kFunction == kSin || kFunction == kCos || kFunction == kExp) {
    const Dual<T> y = apply<kFunction, T>(x, p);
    const T sign = kFunction == kExp ? T(1) : T(-1);
    return {y.value, y.slope, sign * y.value, sign * y.slope};
  } else if constexpr (kFunction == kLog) {
    const Dual<T> y = apply<kLog, T>(x, p);
    return {y.value, y.slope, -y.slope * y.slope, 2 * y.slope * y.slope * y.slope};
  } else if constexpr (kFunction == kSqrt) {
    const Dual<T> y = apply<kSqrt, T>(x, p);
    const V inverse = 1 / x;
    return {y.value, y.slope, T(-0.5) * y.slope * inverse, T(0.75) * y.slope * inverse * inverse};
  } else if constexpr (kFunction == kReciprocal) {
    const Dual<T> y = apply<kReciprocal, T>(x, p);
    return {y.value, y.slope, -2 * y.slope * y.value, 6 * y.slope * y.value * y.value};
  } else if constexpr (kFunction == kSquare) {
    return {x * x, 2 * x, splat(T(2)), zero};
  } else {
    static_assert(kFunction == kLeakyRelu);
    const Dual<T> y = apply<kLeakyRelu, T>(x, p);
    return {y.value, y.slope, zero, zero};
  }
}

}  // namespace
}  // namespace fastlik::FASTLIK_ISA
