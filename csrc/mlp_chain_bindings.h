// The CUDA kernels for plain MLPs: as those for the CPU, but with a chain for the network and a stream for the
// threads.
#pragma once

#include <stdexcept>
#include <string>

#include "fastlik/cuda.h"
#include "mlp_arguments.h"

namespace fastlik {
namespace {

// (sizes, the activation function's parameter, addresses of the weights, addresses of the rest)
MlpChain read_chain(const py::tuple& chain) {
  MlpChain n{};
  const auto sizes = chain[0].cast<py::tuple>(), weights = chain[2].cast<py::tuple>(),
             addresses = chain[3].cast<py::tuple>();
  Reader size(sizes), weight(weights), tensor(addresses);
  for (int64_t* to : {&n.dim, &n.inputs, &n.width, &n.outputs, &n.hidden}) *to = size.next<int64_t>();
  for (int32_t* to : {&n.precision, &n.function}) *to = size.next<int32_t>();
  for (int64_t* to : {&n.panels, &n.coefficients, &n.warps, &n.blocks}) *to = size.next<int64_t>();
  n.parameter = chain[1].cast<float>();
  if (n.hidden < 1 || n.hidden >= kChainLayers || int64_t(weights.size()) != n.hidden + 1)
    throw std::length_error("too many layers");
  for (int64_t l = 0; l <= n.hidden; ++l) n.weights[l] = weight.address<const void>();
  n.breaks = tensor.address<const double>();
  n.shifts = tensor.address<const float>();
  n.row_shifts = tensor.address<const float>();
  n.memory = tensor.address<void>();
  n.queue = tensor.address<int64_t>();
  return n;
}

// Bytes of memory for each warp, with `count` slots, stages or slopes.
int64_t mlp_chain_bytes(const std::string& method, int64_t inputs, int64_t count, const py::tuple& trace) {
  MlpChain n{};
  n.inputs = inputs;
  if (method == "mlp_grid") {
    MlpGridArgs a{};
    a.slots = count;
    return cuda::chain_bytes(n, a);
  }
  if (method == "mlp_adaptive") {
    MlpAdaptiveArgs a{};
    a.stages = count;
    a.trace = read_trace(trace);
    return cuda::chain_bytes(n, a);
  }
  MlpAdamsArgs a{};
  a.order = count;
  a.trace = read_trace(trace);
  return cuda::chain_bytes(n, a);
}

// Bytes of shared memory that a block needs at least.
int64_t mlp_chain_shared_bytes(int64_t inputs, int64_t width, int64_t outputs, int32_t precision) {
  MlpChain n{};
  n.inputs = inputs;
  n.width = width;
  n.outputs = outputs;
  n.precision = precision;
  return cuda::chain_shared_bytes(n, cuda::kTogether);
}

int mlp_grid_cuda(const py::tuple& chain, const py::tuple& sizes, const py::tuple& addresses,
                  const py::tuple& conditions, const py::tuple& trace, std::uintptr_t stream) {
  const MlpChain n = read_chain(chain);
  const MlpGridArgs a = read_grid(sizes, addresses, conditions, trace);
  py::gil_scoped_release release;
  return cuda::chain(n, a, reinterpret_cast<void*>(stream));
}

int mlp_adaptive_cuda(const py::tuple& chain, const py::tuple& sizes, const py::tuple& addresses,
                      const py::tuple& conditions, const py::tuple& trace, const py::tuple& span,
                      const py::tuple& b, const py::tuple& e, const py::tuple& tolerances,
                      const py::tuple& controller, bool fsal, std::uintptr_t stream) {
  const MlpChain n = read_chain(chain);
  const MlpAdaptiveArgs a =
      read_adaptive(sizes, addresses, conditions, trace, span, b, e, tolerances, controller, fsal);
  py::gil_scoped_release release;
  return cuda::chain(n, a, reinterpret_cast<void*>(stream));
}

int mlp_adams_cuda(const py::tuple& chain, const py::tuple& sizes, const py::tuple& addresses,
                   const py::tuple& conditions, const py::tuple& trace, const py::tuple& span,
                   const py::tuple& tolerances, std::uintptr_t stream) {
  const MlpChain n = read_chain(chain);
  const MlpAdamsArgs a = read_adams(sizes, addresses, conditions, trace, span, tolerances);
  py::gil_scoped_release release;
  return cuda::chain(n, a, reinterpret_cast<void*>(stream));
}

void define_mlp_chain(py::module_& m) {
  m.def("mlp_chain_bytes", &mlp_chain_bytes);
  m.def("mlp_chain_shared_bytes", &mlp_chain_shared_bytes);
  m.def("mlp_grid_cuda", &mlp_grid_cuda);
  m.def("mlp_adaptive_cuda", &mlp_adaptive_cuda);
  m.def("mlp_adams_cuda", &mlp_adams_cuda);
}

}  // namespace
}  // namespace fastlik
