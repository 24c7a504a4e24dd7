// A block of threads on the CPU: each thread is a fibre that runs until it has to wait for the others, at
// a barrier, a shuffle or a matrix product.  Slow and exact; for tests.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

#define FASTLIK_DEVICE static inline
#define FASTLIK_DEVICE_MEMBER inline
#define FASTLIK_SHARED_CODE static

struct float2 {
  float x, y;
};
struct uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

namespace fastlik::cuda {

// Threads that wait for each other, a warp or the block, and what the lanes of a warp bring along.
struct Meeting {
  int size = 0, arrived = 0;
  int64_t generation = 0;
  float values[32][4];
  uint32_t words[32][6];
};

struct Fibre {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool done = false;
};

class Emulator {
 public:
  static constexpr int kStack = 1 << 18;
  static inline Emulator* running = nullptr;

  // Runs body() in every thread of every block.
  static void launch(int64_t blocks, int threads, const std::function<void()>& body) {
    for (int64_t b = 0; b < blocks; ++b) Emulator(b, threads, body).run();
  }

  int thread() const { return current_; }
  int threads() const { return int(fibres_.size()); }
  int64_t block() const { return block_; }

  // Returns once every thread of the warp (or block) has come here; the last one does `last` first.
  template <class F>
  void meet(Meeting& meeting, F last) {
    const int64_t generation = meeting.generation;
    if (++meeting.arrived == meeting.size) {
      last();
      meeting.arrived = 0;
      ++meeting.generation;
      progress_ = true;
      return;
    }
    while (meeting.generation == generation) yield();
  }

  Meeting& all() { return block_meeting_; }
  Meeting& warp() { return warps_[current_ / 32]; }

 private:
  Emulator(int64_t block, int threads, const std::function<void()>& body)
      : block_(block), body_(body), fibres_(threads), warps_(threads / 32) {
    block_meeting_.size = threads;
    for (Meeting& warp : warps_) warp.size = 32;
  }

  void run() {
    running = this;
    for (Fibre& fibre : fibres_) {
      fibre.stack = std::make_unique<char[]>(kStack);
      getcontext(&fibre.context);
      fibre.context.uc_stack.ss_sp = fibre.stack.get();
      fibre.context.uc_stack.ss_size = kStack;
      fibre.context.uc_link = &scheduler_;
      makecontext(&fibre.context, &Emulator::enter, 0);
    }
    for (bool alive = true; alive;) {
      alive = progress_ = false;
      for (current_ = 0; current_ < threads(); ++current_) {
        if (fibres_[current_].done) continue;
        alive = true;
        swapcontext(&scheduler_, &fibres_[current_].context);
        progress_ |= fibres_[current_].done;
      }
      if (alive && !progress_) {
        std::fputs("threads of a warp or block wait for different things\n", stderr);
        std::abort();
      }
    }
    running = nullptr;
  }

  static void enter() {
    Emulator& e = *running;
    e.body_();
    e.fibres_[e.current_].done = true;
  }

  void yield() { swapcontext(&fibres_[current_].context, &scheduler_); }

  int64_t block_;
  const std::function<void()>& body_;
  std::vector<Fibre> fibres_;
  std::vector<Meeting> warps_;
  Meeting block_meeting_;
  ucontext_t scheduler_;
  int current_ = 0;
  bool progress_ = false;
};

FASTLIK_DEVICE int thread() { return Emulator::running->thread(); }
FASTLIK_DEVICE int threads() { return Emulator::running->threads(); }
FASTLIK_DEVICE int64_t block() { return Emulator::running->block(); }
FASTLIK_DEVICE void block_barrier() {
  Emulator::running->meet(Emulator::running->all(), [] {});
}
FASTLIK_DEVICE void warp_barrier() {
  Emulator::running->meet(Emulator::running->warp(), [] {});
}

FASTLIK_DEVICE float from_lane_xor(float value, int mask) {
  Emulator& e = *Emulator::running;
  Meeting& warp = e.warp();
  const int lane = e.thread() % 32;
  warp.values[lane][0] = value;
  e.meet(warp, [&] {
    for (int i = 0; i < 32; ++i) warp.values[i][1] = warp.values[i ^ mask][0];
  });
  const float received = warp.values[lane][1];
  warp_barrier();  // before anyone brings something new
  return received;
}

FASTLIK_DEVICE uint32_t to_halves(float low, float high) {
  const _Float16 pair[2] = {_Float16(low), _Float16(high)};
  uint32_t bits;
  __builtin_memcpy(&bits, pair, 4);
  return bits;
}
FASTLIK_DEVICE float2 from_halves(uint32_t bits) {
  _Float16 pair[2];
  __builtin_memcpy(pair, &bits, 4);
  return {float(pair[0]), float(pair[1])};
}

FASTLIK_DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Emulator& e = *Emulator::running;
  Meeting& warp = e.warp();
  const int lane = e.thread() % 32;
  for (int i = 0; i < 4; ++i) {
    warp.values[lane][i] = c[i];
    warp.words[lane][i] = a[i];
  }
  warp.words[lane][4] = b0;
  warp.words[lane][5] = b1;
  e.meet(warp, [&] {
    float x[16][16], y[16][8];
    for (int l = 0; l < 32; ++l) {
      const int row = l / 4, column = l % 4 * 2;
      for (int i = 0; i < 4; ++i) {  // rows row, row + 8; columns and columns + 8
        const float2 pair = from_halves(warp.words[l][i]);
        x[row + i % 2 * 8][column + i / 2 * 8] = pair.x;
        x[row + i % 2 * 8][column + i / 2 * 8 + 1] = pair.y;
      }
      for (int i = 0; i < 2; ++i) {
        const float2 pair = from_halves(warp.words[l][4 + i]);
        y[column + i * 8][row] = pair.x;
        y[column + i * 8 + 1][row] = pair.y;
      }
    }
    for (int l = 0; l < 32; ++l)
      for (int i = 0; i < 4; ++i) {
        const int row = l / 4 + i / 2 * 8, column = l % 4 * 2 + i % 2;
        for (int k = 0; k < 16; ++k) warp.values[l][i] += x[row][k] * y[k][column];
      }
  });
  for (int i = 0; i < 4; ++i) c[i] = warp.values[lane][i];
  warp_barrier();
}

}  // namespace fastlik::cuda
