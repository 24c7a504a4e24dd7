// Arguments of the kernels that act on a tensor and its first derivatives at once.
#pragma once

#include <cstdint>

namespace fastlik {

// x and y have `size` elements; the derivatives, tangents and out_tangents, follow one another.
struct JetActivationArgs {
  int64_t size, count;
  const void *x, *tangents;
  void *y, *out_tangents;
  double parameter;
};

// x is (rows, channels, places), or (rows, places, channels) where channels come last.
struct JetGroupNormArgs {
  int64_t rows, channels, places, groups, count;
  bool channels_last;
  const void *x, *tangents;
  const void *weight, *bias;  // of a channel; null for 1 and 0
  void *y, *out_tangents;
  double eps;
};

}  // namespace fastlik
