// Elementwise functions with their derivatives, on vectors: a few ulp in float32, below 1e-14 in
// float64, NaN for NaN.  The polynomials interpolate at Chebyshev nodes, computed in 60 digits; the
// tests compare them with PyTorch's functions in float64.
#pragma once

#include <cmath>
#include <type_traits>

#include "fastlik/mlp.h"
#include "simd.h"

namespace fastlik::FASTLIK_ISA {
namespace {

template <class T>
struct Constants;

template <>
struct Constants<float> {
  static constexpr float round = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr int mantissa = 23, bias = 127;
  static constexpr float exp_low = -87.3f, exp_high = 88.3f;
  static constexpr float log2_e = 1.44269504f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  // (e^r - 1 - r) / r^2 on |r| <= log(2) / 2
  static constexpr float exp[] = {0.5f, 0.16666577f, 0.0416665546f, 0.00836317905f, 0.00139261836f};
  // (atanh(s) / s - 1) / s^2 in s^2 <= 1/9
  static constexpr float atanh[] = {0.333333337f, 0.199998532f, 0.14296179f, 0.108532879f,
                                    0.116121646f};
  // (1 + a) Phi(-a) / phi(a) in (a - pole) / (a + pole), a >= 0
  static constexpr float mills_pole = 3;
  static constexpr float mills[] = {1.2183612f,       -0.241956694f,   -0.0411894187f,
                                    0.113208486f,     -0.0569746331f,  0.00292119463f,
                                    0.00757048585f,   -0.00092128591f, -0.00152520654f,
                                    -0.000323416181f};
  // pi / 2 in parts of few bits, so that products with a quadrant's number are exact
  static constexpr float quarter[] = {1.5703125f, 4.837512969970703125e-4f, 7.54978995489188e-8f};
  static constexpr float trigonometric_limit = 8192;
  // (sin(r) - r) / r^3 and (cos(r) - 1 + r^2 / 2) / r^4 in r^2, |r| <= pi / 4
  static constexpr float sine[] = {-0.166666647f, 0.0083327471f, -0.000195876391f};
  static constexpr float cosine[] = {0.0416666647f, -0.00138883019f, 2.45476898e-5f};
};

template <>
struct Constants<double> {
  static constexpr double round = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr double exp_low = -708, exp_high = 709;
  static constexpr double log2_e = 1.4426950408889634, ln2_high = 6.93147180369123816490e-01,
                          ln2_low = 1.90821492927058770002e-10;
  static constexpr double exp[] = {0.5,
                                   0.16666666666666671,
                                   0.0416666666666666698,
                                   0.00833333333332613513,
                                   0.00138888888888837483,
                                   0.000198412698748206253,
                                   0.0000248015873255477412,
                                   2.75572554002064244e-6,
                                   2.75572736431102953e-7,
                                   2.51052170047207452e-8,
                                   2.09146869680868772e-9};
  static constexpr double atanh[] = {0.333333333333333334, 0.199999999999997613,
                                     0.142857142858000496, 0.111111110991183853,
                                     0.0909090994898135719, 0.0769227198243027464,
                                     0.0666758931572462792, 0.0586713953065159873,
                                     0.0542258919744000741, 0.0374607189777538365,
                                     0.0781528890046142522};
  static constexpr double mills_pole = 5;
  static constexpr double mills[] = {1.15684862829189458,      -0.229487538252112284,
                                     0.0777815988687437678,    0.0250721793014803116,
                                     -0.0661776007801422228,   0.0615050458477573913,
                                     -0.0380265921235980902,   0.0163482311993828413,
                                     -0.00420129188927805023,  0.0000195282881703500886,
                                     0.00045705796099987506,   -0.000134317630943656637,
                                     -0.0000247740259238921364, 0.0000224585563236056798,
                                     -9.28752676000119567e-7,  -4.27883903240229344e-6,
                                     -3.37177872444554057e-7,  4.05162516861592255e-7,
                                     9.05768957726635489e-8};
  static constexpr double quarter[] = {1.57079632673412561417e+00, 6.07710050630396597660e-11,
                                       2.02226624879595063154e-21};
  static constexpr double trigonometric_limit = 1e6;
  static constexpr double sine[] = {-0.166666666666666646, 0.00833333333333093655,
                                    -0.000198412698367405321, 2.75573160931984052e-6,
                                    -2.50511298964501863e-8, 1.59179889793974333e-10};
  static constexpr double cosine[] = {0.0416666666666666654, -0.00138888888888873898,
                                      0.0000248015872987544012, -2.755731726587808e-7,
                                      2.08761450494131791e-9, -1.13825446453492504e-11};
};

template <class T>
inline Vector<T> clamp(Vector<T> x, T low, T high) {  // NaN stays
  x = x < low ? splat(low) : x;
  return x > high ? splat(high) : x;
}

template <class T>
inline Vector<T> absolute(Vector<T> x) {
  return x < 0 ? -x : x;
}

// e^x = power * (1 + rest), rest accurate for small |x|.
template <class T>
struct Exponential {
  Vector<T> power, rest;

  explicit Exponential(Vector<T> x) {
    using C = Constants<T>;
    x = clamp(x, C::exp_low, C::exp_high);
    const Vector<T> shifted = x * C::log2_e + C::round;
    const Vector<T> n = shifted - C::round;
    const Vector<T> r = (x - n * C::ln2_high) - n * C::ln2_low;
    rest = r + r * r * polynomial<T>(r, C::exp);
    const Integers<T> bits = (Integers<T>)shifted - (Integers<T>)splat(C::round) + C::bias;
    power = (Vector<T>)(bits << C::mantissa);
  }

  Vector<T> exp() const { return power * rest + power; }
  Vector<T> expm1() const { return power * rest + (power - 1); }
};

// Value and derivative of one function.
template <class T>
struct Dual {
  Vector<T> value, slope;
};

template <class T>
inline Dual<T> logistic(Vector<T> x) {
  const Vector<T> e = Exponential<T>(clamp(-x, T(-87), T(87))).exp();
  const Vector<T> s = 1 / (1 + e);
  return {s, e * s * s};
}

template <class T>
inline Vector<T> by_lane(Vector<T> x, T (*f)(T)) {
  Vector<T> y;
  for (int i = 0; i < kLanes<T>; ++i) y[i] = f(x[i]);
  return y;
}

template <class T>
inline bool any(Integers<T> mask) {
  bool found = false;
  for (int i = 0; i < kLanes<T>; ++i) found |= mask[i] != 0;
  return found;
}

template <class T>
inline void sine_cosine(Vector<T> x, Vector<T>& sine, Vector<T>& cosine) {
  using C = Constants<T>;
  const Vector<T> shifted = x * T(0.63661977236758134) + C::round;
  const Vector<T> n = shifted - C::round;
  const Vector<T> r = ((x - n * C::quarter[0]) - n * C::quarter[1]) - n * C::quarter[2];
  const Vector<T> square = r * r;
  const Vector<T> s = r + r * square * polynomial<T>(square, C::sine);
  const Vector<T> c = (1 - square / 2) + square * square * polynomial<T>(square, C::cosine);
  const Integers<T> quadrant = (Integers<T>)shifted - (Integers<T>)splat(C::round);
  const Integers<T> odd = (quadrant & 1) != 0;
  sine = odd ? c : s;
  cosine = odd ? s : c;
  sine = (quadrant & 2) != 0 ? -sine : sine;
  cosine = ((quadrant + 1) & 2) != 0 ? -cosine : cosine;
  const Integers<T> far = absolute<T>(x) > C::trigonometric_limit;
  if (!any<T>(far)) return;
  // in these lanes alone: no result may depend on what lies beyond the end of a line
  sine = far ? by_lane<T>(x, [](T v) { return T(std::sin(v)); }) : sine;
  cosine = far ? by_lane<T>(x, [](T v) { return T(std::cos(v)); }) : cosine;
}

// One specialisation for each MlpFunction; `p` is its parameter.
template <MlpFunction kFunction, class T>
inline Dual<T> apply(Vector<T> x, [[maybe_unused]] T p) {
  using V = Vector<T>;
  using C = Constants<T>;
  if constexpr (kFunction == kSilu) {
    x = x < -87 ? splat(T(-87)) : x;
    const V e = Exponential<T>(x > 87 ? splat(T(-87)) : -x).exp();
    const V s = 1 / (1 + e);
    return {x * s, s + x * s * (e * s)};
  } else if constexpr (kFunction == kGelu) {
    const V density = Exponential<T>(x * x * T(-0.5)).exp() * T(0.39894228040143268);
    const V a = absolute<T>(x);
    const V tail = density * polynomial<T>((a - C::mills_pole) / (a + C::mills_pole), C::mills) / (1 + a);
    const V mass = x > 0 ? 1 - tail : tail;
    return {x * mass, mass + x * density};
  } else if constexpr (kFunction == kGeluTanh) {
    const T scale = T(1.5957691216057308);  // 2 sqrt(2 / pi)
    const T cube = T(0.044715);
    const V y = clamp(x, T(-12), T(12));  // beyond, the logistic function is 0 or 1
    const V square = y * y;
    const Dual<T> s = logistic<T>(scale * y * (1 + cube * square));
    return {(x < -12 ? y : x) * s.value, s.value + y * s.slope * (scale * (1 + 3 * cube * square))};
  } else if constexpr (kFunction == kTanh) {
    const V e = Exponential<T>(clamp(2 * x, T(-40), T(40))).expm1();
    const V q = 1 / (e + 2);
    return {e * q, 4 * (e + 1) * q * q};
  } else if constexpr (kFunction == kSigmoid) {
    return logistic<T>(x);
  } else if constexpr (kFunction == kSoftplus) {  // log(1 + e^(p x)) / p, linear above p x = 20
    const V z = p * x;
    const V e = Exponential<T>(-absolute<T>(z)).exp();
    const V s = e / (2 + e);
    const V log1p = 2 * (s + s * s * s * polynomial<T>(s * s, C::atanh));
    const V value = ((z > 0 ? z : V{}) + log1p) / p;
    const V slope = (z > 0 ? splat(T(1)) : e) / (1 + e);
    const Integers<T> linear = z > 20;
    return {linear ? x : value, linear ? splat(T(1)) : slope};
  } else if constexpr (kFunction == kElu) {
    const Exponential<T> e(x);
    const Integers<T> positive = x > 0;
    return {positive ? x : p * e.expm1(), positive ? splat(T(1)) : p * e.exp()};
  } else if constexpr (kFunction == kLeakyRelu) {  // and ReLU, p = 0
    const Integers<T> positive = x > 0;
    return {positive ? x : p * x, positive ? splat(T(1)) : splat(p)};
  } else if constexpr (kFunction == kSin) {
    V sine, cosine;
    sine_cosine<T>(x, sine, cosine);
    return {sine, cosine};
  } else if constexpr (kFunction == kCos) {
    V sine, cosine;
    sine_cosine<T>(x, sine, cosine);
    return {cosine, -sine};
  } else if constexpr (kFunction == kExp) {
    V e = Exponential<T>(x).exp();
    e = x > C::exp_high ? splat(T(INFINITY)) : e;
    e = x < C::exp_low ? V{} : e;
    return {e, e};
  } else if constexpr (kFunction == kLog) {
    return {by_lane<T>(x, [](T v) { return T(std::log(v)); }), 1 / x};
  } else if constexpr (kFunction == kSqrt) {
    const V root = by_lane<T>(x, [](T v) { return T(std::sqrt(v)); });
    return {root, T(0.5) / root};
  } else if constexpr (kFunction == kReciprocal) {
    const V q = 1 / x;
    return {q, -q * q};
  } else {
    static_assert(kFunction == kSquare);
    return {x * x, 2 * x};
  }
}

// go(f), f the constant that `function` equals: a template's argument.
template <int kFrom = 0, class Go>
inline void with_function(int32_t function, Go go) {
  if (function == kFrom) return go(std::integral_constant<MlpFunction, MlpFunction(kFrom)>());
  if constexpr (kFrom < kSquare) with_function<kFrom + 1>(function, go);
}

}  // namespace
}  // namespace fastlik::FASTLIK_ISA
