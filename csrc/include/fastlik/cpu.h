// The CPU kernels.  Every file in csrc/cpu is compiled once per instruction set, with FASTLIK_ISA
// naming the namespace that its functions go to; bindings.cpp picks one at run time.
#pragma once

#include "fastlik/adams_step.h"
#include "fastlik/jet.h"
#include "fastlik/mlp.h"
#include "fastlik/node_quadrature.h"
#include "fastlik/rk_step.h"

#ifndef FASTLIK_ISA
#define FASTLIK_ISA baseline
#endif

#define FASTLIK_DECLARE(isa)                                              \
  namespace fastlik::isa {                                                \
  void node_weights(const NodeQuadratureArgs&, int threads);              \
  void node_residuals(const NodeQuadratureArgs&, int threads);            \
  template <class T>                                                      \
  void combine(const CombineArgs&, int threads);                          \
  template <class T>                                                      \
  void advance(const AdvanceArgs&, int threads);                          \
  template <class T>                                                      \
  void adams_predict(const AdamsStepArgs&, int threads);                  \
  template <class T>                                                      \
  void adams_correct(const AdamsStepArgs&, int threads);                  \
  template <class T>                                                      \
  void mlp_evaluate(const MlpNetwork&, const MlpEvaluateArgs&, int threads); \
  template <class T>                                                      \
  MlpTape mlp_tape(const MlpNetwork&, int64_t rows, int64_t lines, int threads);    \
  template <class T>                                                      \
  void mlp_record(const MlpNetwork&, const MlpEvaluateArgs&, const MlpTape&, int threads); \
  template <class T>                                                      \
  void mlp_reverse(const MlpNetwork&, const MlpReverseArgs&, int threads); \
  template <class T>                                                      \
  void mlp_jet(const MlpNetwork&, const MlpJetArgs&, int threads);        \
  template <class T>                                                      \
  void mlp_grid(const MlpNetwork&, const MlpGridArgs&, int threads);      \
  template <class T>                                                      \
  void mlp_adaptive(const MlpNetwork&, const MlpAdaptiveArgs&, int threads); \
  template <class T>                                                      \
  void mlp_adams(const MlpNetwork&, const MlpAdamsArgs&, int threads);    \
  template <class T>                                                      \
  void jet_activation(MlpFunction, const JetActivationArgs&, int threads); \
  template <class T>                                                      \
  void jet_group_norm(const JetGroupNormArgs&, int threads);              \
  }
FASTLIK_DECLARE(baseline)
FASTLIK_DECLARE(avx2)
FASTLIK_DECLARE(avx512)
#undef FASTLIK_DECLARE
