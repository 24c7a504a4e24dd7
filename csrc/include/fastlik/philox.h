// The counter-based random numbers of fastlik/derivatives/probes.py, bit for bit: Philox 4x32-10
// (Salmon et al. 2011) keyed by (seed, stream), counted by (block, row, draw, node).
#pragma once

#include <cmath>
#include <cstdint>

#include "fastlik/host_device.h"

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

// Coordinates c and c + 1 of one probe, c even.
template <class T>
FASTLIK_CALLED void draw_pair(ProbeKind kind, uint64_t seed, int64_t row, int64_t draw, int64_t node,
                            int64_t c, T* out) {
  if (kind == kRademacher) {  // bit c mod 32 of word c div 32
    const Words words = probe_words(seed, row, draw, node, c / 128);
    const int word = int(c % 128 / 32);
    const uint32_t bits = word < 2 ? word ? words.at[1] : words.at[0] : word == 2 ? words.at[2] : words.at[3];
    out[0] = bits >> c % 32 & 1 ? T(-1) : T(1);
    out[1] = bits >> (c + 1) % 32 & 1 ? T(-1) : T(1);
    return;
  }
  const Words words = probe_words(seed, row, draw, node, c / 4);  // Box-Muller on pairs of words
  const bool second = c % 4 == 2;
  const double u = ((second ? words.at[2] : words.at[0]) + 0.5) * 0x1p-32;
  const double v = ((second ? words.at[3] : words.at[1]) + 0.5) * 0x1p-32;
  const double radius = std::sqrt(-2 * std::log(u)), turn = 6.283185307179586 * v;
  out[0] = T(radius * std::cos(turn));
  out[1] = T(radius * std::sin(turn));
}

// Coordinates 0 .. size-1 of one probe.
template <class T>
FASTLIK_MATH void draw_probe(ProbeKind kind, uint64_t seed, int64_t row, int64_t draw, int64_t node,
                             int64_t size, T* out) {
  if (kind == kRademacher) {  // four words serve 128 coordinates
    for (int64_t start = 0; start < size; start += 128) {
      const Words words = probe_words(seed, row, draw, node, start / 128);
      for (int64_t c = start; c < size && c < start + 128; ++c)
        out[c] = (words.at[(c - start) / 32] >> (c % 32)) & 1 ? T(-1) : T(1);
    }
    return;
  }
  for (int64_t c = 0; c < size; c += 2) {
    T pair[2];
    draw_pair(kind, seed, row, draw, node, c, pair);
    out[c] = pair[0];
    if (c + 1 < size) out[c + 1] = pair[1];
  }
}

}  // namespace fastlik
