// Pointwise functions and group normalisation of a tensor with its first derivatives: one exponential
// serves the value and all derivatives, and a row stays in the cache between its passes.
#include <algorithm>
#include <cmath>
#include <vector>

#include "fastlik/cpu.h"
#include "functions.h"

namespace fastlik::FASTLIK_ISA {
namespace {

constexpr int64_t kBlock = 1024;            // elements a thread takes at a time
constexpr int64_t kParallelWork = 1 << 15;  // elements below which waking the threads costs more
constexpr int64_t kRun = 256;               // terms summed in T before they go to float64

// `count` elements of which the others read as zero.
template <class T>
inline Vector<T> load_some(const T* from, int64_t count) {
  Vector<T> v{};
  std::memcpy(&v, from, count * sizeof(T));
  return v;
}

template <class T>
inline void store_some(T* to, Vector<T> v, int64_t count) {
  std::memcpy(to, &v, count * sizeof(T));
}

// The sum of a vector's elements in few dependent steps.
template <class T>
inline T sum_of(Vector<T> v) {
  T lanes[kLanes<T>];
  std::memcpy(lanes, &v, sizeof v);
#pragma GCC unroll 8
  for (int width = kLanes<T> / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

template <class T, class Body>
inline void in_vectors(int64_t size, Body body) {
  int64_t i = 0;
  for (; i + kLanes<T> <= size; i += kLanes<T>)
    body(i, [](const T* from) { return load(from); }, [](T* to, Vector<T> v) { store(to, v); });
  if (i < size) {
    const int64_t rest = size - i;
    body(i, [=](const T* from) { return load_some(from, rest); },
         [=](T* to, Vector<T> v) { store_some(to, v, rest); });
  }
}

template <MlpFunction kFunction, class T>
void activate(const JetActivationArgs& a, int threads) {
  const T *x = static_cast<const T*>(a.x), *t = static_cast<const T*>(a.tangents);
  T *y = static_cast<T*>(a.y), *s = static_cast<T*>(a.out_tangents);
#pragma omp parallel for schedule(static) num_threads(threads) if (a.size > kParallelWork)
  for (int64_t start = 0; start < a.size; start += kBlock) {
    const int64_t size = a.size - start < kBlock ? a.size - start : kBlock;
    in_vectors<T>(size, [&](int64_t i, auto read, auto write) {
      i += start;
      const Dual<T> f = apply<kFunction, T>(read(x + i), T(a.parameter));
      write(y + i, f.value);
      for (int64_t k = 0; k < a.count; ++k) write(s + k * a.size + i, f.slope * read(t + k * a.size + i));
    });
  }
}

// Vectors at start + i * step whose first `lanes` elements belong to one channel, or to as many channels from
// `channel` on where channels come last.
struct Strip {
  int64_t start, step, count, channel;
  int lanes;
};

// Group normalisation, a row at a time.
template <class T, bool kLast>
class GroupNorm {
  using V = Vector<T>;

 public:
  explicit GroupNorm(const JetGroupNormArgs& a)
      : a_(a),
        total_(double(a.channels / a.groups * a.places)),
        group_(a.channels),
        sums_(a.groups),
        products_(a.groups),
        mean_(a.channels),
        scale_(a.channels),
        shift_(a.channels),
        tangent_mean_(a.channels),
        slope_(a.channels) {
    for (int64_t c = 0; c < a.channels; ++c) group_[c] = int(c / (a.channels / a.groups));
    const T* bias = static_cast<const T*>(a.bias);
    if (bias) shift_.assign(bias, bias + a.channels);
    if constexpr (kLast) {
      for (int64_t c = 0; c < a.channels; c += kLanes<T>)
        strips_.push_back({c, a.channels, a.places, c, int(std::min<int64_t>(kLanes<T>, a.channels - c))});
    } else {
      const int64_t whole = a.places / kLanes<T>, rest = a.places % kLanes<T>;
      for (int64_t c = 0; c < a.channels; ++c) {
        if (whole) strips_.push_back({c * a.places, kLanes<T>, whole, c, kLanes<T>});
        if (rest) strips_.push_back({c * a.places + whole * kLanes<T>, 0, 1, c, int(rest)});
      }
    }
  }

  void run(int64_t row) {
    const int64_t size = a_.channels * a_.places;
    const T *x = static_cast<const T*>(a_.x) + row * size, *weight = static_cast<const T*>(a_.weight);
    T* y = static_cast<T*>(a_.y) + row * size;
    for (int64_t k = 0; k < a_.count; ++k) {
      const T* t = static_cast<const T*>(a_.tangents) + (k * a_.rows + row) * size;
      T* s = static_cast<T*>(a_.out_tangents) + (k * a_.rows + row) * size;
      accumulate<false>(x, t);
      for (int64_t c = 0; c < a_.channels; ++c) {
        mean_[c] = T(sums_[group_[c]] / total_);
        tangent_mean_[c] = T(products_[group_[c]] / total_);
      }
      accumulate<true>(x, t);
      for (int64_t c = 0; c < a_.channels; ++c) {
        const double variance = sums_[group_[c]] / total_ + a_.eps;
        scale_[c] = T((weight ? double(weight[c]) : 1.0) / std::sqrt(variance));
        slope_[c] = T(products_[group_[c]] / (total_ * variance));
      }
      for (const Strip& strip : strips_) {
        if (strip.lanes == kLanes<T>)
          finish<true>(strip, x, t, k ? nullptr : y, s);
        else
          finish<false>(strip, x, t, k ? nullptr : y, s);
      }
    }
  }

 private:
  template <bool kWhole>
  static V read(const T* from, int lanes) {
    return kWhole ? load(from) : load_some(from, lanes);
  }

  // The channel's, or the channels', value; 0 in lanes that are not used.
  template <bool kWhole>
  static V own(const std::vector<T>& values, const Strip& strip) {
    if constexpr (kLast) return read<kWhole>(values.data() + strip.channel, strip.lanes);
    const V value = splat(values[strip.channel]);
    T lanes[kLanes<T>];
    store(lanes, value);
    return read<kWhole>(lanes, strip.lanes);
  }

  // Per group, the sums of x and t; or, centred, those of x^2 and x t.
  template <bool kCentred>
  void accumulate(const T* x, const T* t) {
    std::fill(sums_.begin(), sums_.end(), 0.0);
    std::fill(products_.begin(), products_.end(), 0.0);
    for (const Strip& strip : strips_) {
      for (int64_t start = 0; start < strip.count; start += kRun) {
        const int64_t count = std::min(kRun, strip.count - start);
        const int64_t offset = strip.start + start * strip.step;
        if (strip.lanes == kLanes<T>)
          add<kCentred, true>(strip, x + offset, t + offset, count);
        else
          add<kCentred, false>(strip, x + offset, t + offset, count);
      }
    }
  }

  template <bool kCentred, bool kWhole>
  void add(const Strip& strip, const T* x, const T* t, int64_t count) {
    constexpr int kChains = 4;  // independent sums, which hide the latency of an addition
    const V mean = own<kWhole>(mean_, strip), tangent_mean = own<kWhole>(tangent_mean_, strip);
    const int64_t step = strip.step;
    const int lanes = strip.lanes;
    V sum[kChains] = {}, product[kChains] = {};
    const auto take = [&](int chain, int64_t i) {
      V value = read<kWhole>(x + i * step, lanes), moved = read<kWhole>(t + i * step, lanes);
      if constexpr (kCentred) {
        value -= mean;
        sum[chain] += value * value;
        product[chain] += value * (moved - tangent_mean);
      } else {
        sum[chain] += value;
        product[chain] += moved;
      }
    };
    int64_t i = 0;
    for (; i + kChains <= count; i += kChains) {
#pragma GCC unroll 4
      for (int chain = 0; chain < kChains; ++chain) take(chain, i + chain);
    }
    for (; i < count; ++i) take(0, i);
    const V sums = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    const V products = (product[0] + product[1]) + (product[2] + product[3]);
    if constexpr (kLast) {
      for (int lane = 0; lane < lanes; ++lane) {
        sums_[group_[strip.channel + lane]] += double(sums[lane]);
        products_[group_[strip.channel + lane]] += double(products[lane]);
      }
    } else {
      sums_[group_[strip.channel]] += double(sum_of<T>(sums));
      products_[group_[strip.channel]] += double(sum_of<T>(products));
    }
  }

  template <bool kWhole>
  void finish(const Strip& strip, const T* x, const T* t, T* y, T* s) const {
    const V mean = own<kWhole>(mean_, strip), tangent_mean = own<kWhole>(tangent_mean_, strip);
    const V scale = own<kWhole>(scale_, strip), slope = own<kWhole>(slope_, strip);
    const V shift = own<kWhole>(shift_, strip);
    const int64_t step = strip.step, count = strip.count;
    const int lanes = strip.lanes;
    x += strip.start, t += strip.start, s += strip.start;
    if (y) y += strip.start;
    for (int64_t i = 0; i < count; ++i) {
      const V centred = read<kWhole>(x + i * step, lanes) - mean;
      const V moved = read<kWhole>(t + i * step, lanes) - tangent_mean;
      write<kWhole>(s + i * step, (moved - centred * slope) * scale, lanes);
      if (y) write<kWhole>(y + i * step, centred * scale + shift, lanes);
    }
  }

  template <bool kWhole>
  static void write(T* to, V v, int lanes) {
    if constexpr (kWhole)
      store(to, v);
    else
      store_some(to, v, lanes);
  }

  const JetGroupNormArgs& a_;
  const double total_;  // numbers in a group
  std::vector<Strip> strips_;
  std::vector<int> group_;
  std::vector<double> sums_, products_;
  std::vector<T> mean_, scale_, shift_, tangent_mean_, slope_;
};

template <class T, bool kLast>
void group_norm(const JetGroupNormArgs& a, int threads) {
  const bool parallel = a.rows * a.channels * a.places > kParallelWork;
#pragma omp parallel num_threads(threads) if (parallel)
  {
    GroupNorm<T, kLast> norm(a);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < a.rows; ++row) norm.run(row);
  }
}

}  // namespace

template <class T>
void jet_activation(MlpFunction function, const JetActivationArgs& a, int threads) {
  with_function(function, [&](auto f) { activate<f, T>(a, threads); });
}

template <class T>
void jet_group_norm(const JetGroupNormArgs& a, int threads) {
  a.channels_last ? group_norm<T, true>(a, threads) : group_norm<T, false>(a, threads);
}

template void jet_activation<float>(MlpFunction, const JetActivationArgs&, int);
template void jet_activation<double>(MlpFunction, const JetActivationArgs&, int);
template void jet_group_norm<float>(const JetGroupNormArgs&, int);
template void jet_group_norm<double>(const JetGroupNormArgs&, int);

}  // namespace fastlik::FASTLIK_ISA
