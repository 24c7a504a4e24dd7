// What the integrations of a multilayer perceptron's ODE are told, on the CPU as on a GPU.
#pragma once

#include <stdexcept>
#include <utility>

#include "fastlik/mlp.h"
#include "fastlik/quadrature.h"
#include "reader.h"

namespace fastlik {
namespace {

MlpTrace read_trace(const py::tuple& values) {
  Reader r(values);
  MlpTrace trace{};
  trace.mode = r.next<int32_t>();
  trace.kind = r.next<int32_t>();
  trace.probes = r.next<int64_t>();
  trace.first_draw = r.next<int64_t>();
  trace.seed = r.next<uint64_t>();
  trace.fresh = r.next<bool>();
  return trace;
}

MlpRows read_rows(int64_t rows, Reader& tensor, const py::tuple& conditions) {
  MlpRows in{};
  in.rows = rows;
  in.state = tensor.address<const void>();
  in.ids = tensor.address<const int64_t>();
  Reader condition(conditions);
  for (size_t c = 0; c < conditions.size(); ++c) in.conditions[c] = condition.address<const void>();
  return in;
}

MlpGridArgs read_grid(const py::tuple& sizes, const py::tuple& addresses, const py::tuple& conditions,
                      const py::tuple& trace) {
  Reader size(sizes), tensor(addresses);
  MlpGridArgs a{};
  a.in = read_rows(size.next<int64_t>(), tensor, conditions);
  a.trace = read_trace(trace);
  a.evaluations = size.next<int64_t>();
  a.slots = size.next<int64_t>();
  a.quadratures = size.next<int64_t>();
  if (a.slots > kMaxStages) throw std::length_error("too many slots");
  a.time = tensor.address<const double>();
  a.input_scale = tensor.address<const double>();
  a.of_state = tensor.address<const double>();
  a.of_output = tensor.address<const double>();
  a.stage = tensor.address<const double>();
  a.update = tensor.address<const double>();
  a.weight = tensor.address<const double>();
  a.slot = tensor.address<const int64_t>();
  a.node = tensor.address<const int64_t>();
  a.commit = tensor.address<const bool>();
  a.latent = tensor.address<void>();
  a.q = tensor.address<double>();
  a.first_bad = tensor.address<int64_t>();
  return a;
}

MlpAdaptiveArgs read_adaptive(const py::tuple& sizes, const py::tuple& addresses, const py::tuple& conditions,
                              const py::tuple& trace, const py::tuple& span, const py::tuple& b,
                              const py::tuple& e, const py::tuple& tolerances, const py::tuple& controller,
                              bool fsal) {
  Reader size(sizes), tensor(addresses), clock(span);
  MlpAdaptiveArgs a{};
  a.in = read_rows(size.next<int64_t>(), tensor, conditions);
  a.trace = read_trace(trace);
  a.stages = size.next<int64_t>();
  a.max_steps = size.next<int64_t>();
  a.clock.panels = size.next<int64_t>();
  a.clock.coefficients = size.next<int64_t>();
  a.a = tensor.address<const double>();
  a.c = tensor.address<const double>();
  a.clock.breaks = tensor.address<const double>();
  a.clock.values = tensor.address<const double>();
  a.y = tensor.address<void>();
  a.q = tensor.address<double>();
  a.t = tensor.address<double>();
  a.defect = tensor.address<double>();
  a.status = tensor.address<int32_t>();
  a.nfe = tensor.address<int64_t>();
  a.steps = tensor.address<int64_t>();
  a.rejected = tensor.address<int64_t>();
  a.t0 = clock.next<double>();
  a.t1 = clock.next<double>();
  a.first_step = clock.next<double>();
  read_step(a.step, b, e, tolerances, controller, fsal);
  return a;
}

MlpAdamsArgs read_adams(const py::tuple& sizes, const py::tuple& addresses, const py::tuple& conditions,
                        const py::tuple& trace, const py::tuple& span, const py::tuple& tolerances) {
  Reader size(sizes), tensor(addresses), clock(span), tolerance(tolerances);
  MlpAdamsArgs a{};
  a.in = read_rows(size.next<int64_t>(), tensor, conditions);
  a.trace = read_trace(trace);
  a.order = size.next<int64_t>();
  a.max_steps = size.next<int64_t>();
  if (a.order < 1 || a.order >= kMostNodes) throw std::length_error("an order that Adams' method has not");
  a.clock.panels = size.next<int64_t>();
  a.clock.coefficients = size.next<int64_t>();
  a.clock.breaks = tensor.address<const double>();
  a.clock.values = tensor.address<const double>();
  a.y = tensor.address<void>();
  double* numbers = tensor.address<double>();  // (6, rows)
  for (double** target : {&a.t, &a.defect, &a.defect_square, &a.change, &a.variance, &a.quadrature})
    *target = std::exchange(numbers, numbers + a.in.rows);
  a.status = tensor.address<int32_t>();
  int64_t* counts = tensor.address<int64_t>();  // (3, rows)
  for (int64_t** target : {&a.nfe, &a.steps, &a.rejected}) *target = std::exchange(counts, counts + a.in.rows);
  a.t0 = clock.next<double>();
  a.t1 = clock.next<double>();
  a.first_step = clock.next<double>();
  a.rtol = tolerance.next<double>();
  a.atol = tolerance.next<double>();
  a.q_atol = tolerance.next<double>();
  a.integral_share = tolerance.next<double>();
  a.shrunk = tolerance.next<double>();
  a.missed = tolerance.next<double>();
  a.for_the_state = tolerance.next<double>();
  return a;
}

}  // namespace
}  // namespace fastlik
