// Which of the compiled instruction sets runs: the best that this CPU has, unless a test picks another.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "fastlik/cpu.h"

namespace fastlik {

enum class Isa { avx512, avx2, baseline };  // by preference

inline const char* isa_name(Isa isa) {
  return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "baseline";
}

inline std::vector<Isa> supported_isas() {
  std::vector<Isa> found;
#ifdef FASTLIK_X86
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw"))
    found.push_back(Isa::avx512);
  if (avx2) found.push_back(Isa::avx2);
#endif
  found.push_back(Isa::baseline);
  return found;
}

inline Isa active_isa = supported_isas().front();

inline void select_isa(const std::string& name) {
  for (Isa isa : supported_isas()) {
    if (name == isa_name(isa)) {
      active_isa = isa;
      return;
    }
  }
  throw std::invalid_argument("this CPU or build has no instruction set " + name);
}

// FASTLIK_CPU(combine<float>) is that function, compiled for the active instruction set.
#ifdef FASTLIK_X86
#define FASTLIK_CPU(function)                                            \
  (::fastlik::active_isa == ::fastlik::Isa::avx512 ? avx512::function    \
   : ::fastlik::active_isa == ::fastlik::Isa::avx2 ? avx2::function      \
                                                   : baseline::function)
#else
#define FASTLIK_CPU(function) baseline::function
#endif

}  // namespace fastlik
