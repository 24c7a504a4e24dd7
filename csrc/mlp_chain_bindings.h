// The arguments of the CUDA kernel for plain MLPs.
#pragma once

#include <stdexcept>

#include "fastlik/mlp_chain.h"
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

MlpChainArgs read_chain(const py::tuple& sizes, double parameter, const py::tuple& weights,
                        const py::tuple& addresses, const py::tuple& trace) {
  MlpChainArgs a{};
  Reader size(sizes), weight(weights), tensor(addresses);
  a.rows = size.next<int64_t>();
  a.dim = size.next<int64_t>();
  a.width = size.next<int64_t>();
  a.hidden = size.next<int64_t>();
  a.precision = size.next<int32_t>();
  a.function = size.next<int32_t>();
  a.evaluations = size.next<int64_t>();
  a.slots = size.next<int64_t>();
  a.quadratures = size.next<int64_t>();
  a.parameter = float(parameter);
  if (a.hidden < 1 || a.hidden >= kChainLayers || int64_t(weights.size()) != a.hidden + 1)
    throw std::length_error("too many layers");
  for (int64_t l = 0; l <= a.hidden; ++l) a.weights[l] = weight.address<const void>();
  a.time_shift = tensor.address<const float>();
  a.row_shift = tensor.address<const float>();
  a.state = tensor.address<const float>();
  a.ids = tensor.address<const int64_t>();
  a.input_scale = tensor.address<const double>();
  a.of_state = tensor.address<const double>();
  a.of_output = tensor.address<const double>();
  a.stage = tensor.address<const double>();
  a.update = tensor.address<const double>();
  a.weight = tensor.address<const double>();
  a.slot = tensor.address<const int64_t>();
  a.node = tensor.address<const int64_t>();
  a.commit = tensor.address<const bool>();
  a.latent = tensor.address<float>();
  a.q = tensor.address<double>();
  a.first_bad = tensor.address<int64_t>();
  a.trace = read_trace(trace);
  return a;
}

}  // namespace
}  // namespace fastlik
