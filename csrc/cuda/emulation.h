// A block of threads on the CPU: each thread is a fibre that runs until it has to wait for the others, at
// a barrier, a shuffle or a matrix product.  Slow and exact; for tests.
#pragma once

#include <csetjmp>

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
struct float4 {
  float x, y, z, w;
};
struct uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

namespace fastlik::cuda {

// Threads that wait for each other, a quad, a warp or the block, and what the lanes bring along.
struct Meeting {
  int size = 0, arrived = 0;
  int64_t generation = 0;
  float values[32][4];
  uint32_t words[32][6];
  double numbers[4];
  int64_t of_leader;
};

// Switches by setjmp: swapcontext calls the system each time.
struct Fibre {
  ucontext_t context;
  std::jmp_buf place;
  std::unique_ptr<char[]> stack;
  bool begun = false, done = false;
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
  Meeting& quad() { return quads_[current_ / 4]; }
  bool& any() { return any_; }

 private:
  Emulator(int64_t block, int threads, const std::function<void()>& body)
      : block_(block), body_(body), fibres_(threads), warps_(threads / 32), quads_(threads / 4) {
    block_meeting_.size = threads;
    for (Meeting& warp : warps_) warp.size = 32;
    for (Meeting& quad : quads_) quad.size = 4;
  }

  void run() {
    running = this;
    for (Fibre& fibre : fibres_) {
      fibre.stack = std::make_unique<char[]>(kStack);
      getcontext(&fibre.context);
      fibre.context.uc_stack.ss_sp = fibre.stack.get();
      fibre.context.uc_stack.ss_size = kStack;
      fibre.context.uc_link = nullptr;
      makecontext(&fibre.context, &Emulator::enter, 0);
    }
    for (bool alive = true; alive;) {
      alive = progress_ = false;
      for (current_ = 0; current_ < threads(); ++current_) {
        if (fibres_[current_].done) continue;
        alive = true;
        resume(fibres_[current_]);
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
    _longjmp(e.scheduler_, 1);
  }

  void resume(Fibre& fibre) {
    if (_setjmp(scheduler_)) return;
    if (fibre.begun) _longjmp(fibre.place, 1);
    fibre.begun = true;
    setcontext(&fibre.context);
  }

  void yield() {
    if (!_setjmp(fibres_[current_].place)) _longjmp(scheduler_, 1);
  }

  int64_t block_;
  const std::function<void()>& body_;
  std::vector<Fibre> fibres_;
  std::vector<Meeting> warps_, quads_;
  Meeting block_meeting_;
  std::jmp_buf scheduler_;
  int current_ = 0;
  bool progress_ = false, any_ = false;
};

FASTLIK_DEVICE int thread() { return Emulator::running->thread(); }
FASTLIK_DEVICE int threads() { return Emulator::running->threads(); }
FASTLIK_DEVICE int64_t block() { return Emulator::running->block(); }
FASTLIK_DEVICE void block_barrier() {
  Emulator::running->meet(Emulator::running->all(), [] {});
}
FASTLIK_DEVICE bool block_any(bool value) {
  Emulator& e = *Emulator::running;
  bool& any = e.any();
  any |= value;
  block_barrier();
  const bool result = any;
  e.meet(e.all(), [&] { any = false; });
  return result;
}

FASTLIK_DEVICE double quad_sum(double x) {
  Emulator& e = *Emulator::running;
  Meeting& quad = e.quad();
  const int lane = e.thread() % 4;
  quad.numbers[lane] = x;
  e.meet(quad, [] {});
  const double* all = quad.numbers;
  const double sum = (all[lane] + all[lane ^ 1]) + (all[lane ^ 2] + all[lane ^ 3]);
  e.meet(quad, [] {});  // before anyone brings something new
  return sum;
}

FASTLIK_DEVICE int64_t from_quad_leader(int64_t x) {
  Emulator& e = *Emulator::running;
  Meeting& quad = e.quad();
  if (e.thread() % 4 == 0) quad.of_leader = x;
  e.meet(quad, [] {});
  const int64_t result = quad.of_leader;
  e.meet(quad, [] {});
  return result;
}

FASTLIK_DEVICE int64_t fetch_next(int64_t* counter) { return (*counter)++; }

template <class T>
FASTLIK_DEVICE T read_only(const T* from) {
  return *from;
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

FASTLIK_DEVICE void mma(float (&c)[4], const uint4& a, uint32_t b0, uint32_t b1) {
  Emulator& e = *Emulator::running;
  Meeting& warp = e.warp();
  const int lane = e.thread() % 32;
  const uint32_t words[] = {a.x, a.y, a.z, a.w, b0, b1};
  for (int i = 0; i < 4; ++i) warp.values[lane][i] = c[i];
  for (int i = 0; i < 6; ++i) warp.words[lane][i] = words[i];
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
  e.meet(warp, [] {});  // before anyone brings something new
}

}  // namespace fastlik::cuda
