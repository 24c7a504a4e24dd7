// The counter-based random numbers of fastlik/derivatives/probes.py, bit for bit: Philox 4x32-10
// (Salmon et al. 2011) keyed by (seed, stream), counted by (block, row, draw, node).
#pragma once

#include <cmath>
#include <cstdint>

#ifndef FASTLIK_MATH
#ifdef __CUDACC__
#define FASTLIK_MATH static __host__ __device__ inline
#else
#define FASTLIK_MATH static inline
#endif
#endif

namespace fastlik {

enum ProbeKind : int32_t { kRademacher = 0, kGaussian = 1 };

struct Words {
  uint32_t at[4];
};

FASTLIK_MATH Words philox(Words counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t(0xD2511F53u) * counter.at[0];
    const uint64_t product1 = uint64_t(0xCD9E8D57u) * counter.at[2];
    counter = {{uint32_t(product1 >> 32) ^ counter.at[1] ^ key0, uint32_t(product1),
                uint32_t(product0 >> 32) ^ counter.at[3] ^ key1, uint32_t(product0)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// Four words for trace probes (stream 0) of a row (an id below 2^48).
FASTLIK_MATH Words probe_words(uint64_t seed, int64_t row, int64_t draw, int64_t node,
                               int64_t block) {
  const uint32_t high = (uint32_t(row >> 32) & 0xFFFFu) | (uint32_t(draw) << 16);
  return philox({{uint32_t(block), uint32_t(row), high, uint32_t(node)}}, uint32_t(seed),
                uint32_t(seed >> 32));
}

// Coordinates 0 .. size-1 of one probe.
template <class T>
FASTLIK_MATH void draw_probe(ProbeKind kind, uint64_t seed, int64_t row, int64_t draw, int64_t node,
                             int64_t size, T* out) {
  if (kind == kRademacher) {  // bit c mod 32 of word c div 32
    for (int64_t start = 0; start < size; start += 128) {
      const Words words = probe_words(seed, row, draw, node, start / 128);
      for (int64_t c = start; c < size && c < start + 128; ++c)
        out[c] = (words.at[(c - start) / 32] >> (c % 32)) & 1 ? T(-1) : T(1);
    }
    return;
  }
  for (int64_t start = 0; start < size; start += 4) {  // Box-Muller on pairs of words
    const Words words = probe_words(seed, row, draw, node, start / 4);
    for (int pair = 0; pair < 4; pair += 2) {
      const double u = (words.at[pair] + 0.5) * 0x1p-32, v = (words.at[pair + 1] + 0.5) * 0x1p-32;
      const double radius = std::sqrt(-2 * std::log(u)), turn = 6.283185307179586 * v;
      if (start + pair < size) out[start + pair] = T(radius * std::cos(turn));
      if (start + pair + 1 < size) out[start + pair + 1] = T(radius * std::sin(turn));
    }
  }
}

}  // namespace fastlik
