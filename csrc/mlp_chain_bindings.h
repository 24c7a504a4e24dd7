// The CUDA kernels for plain MLPs: as those for the CPU, but with a chain for the network and a stream for the
// threads.
#pragma once

#include <stdexcept>
#include <string>

#include "fastlik/cuda.h"
#include "mlp_arguments.h"

namespace fastlik {
namespace {

static_assert(sizeof(ChainOp) == 15 * sizeof(int64_t), "Python makes an operation of 15 numbers");

// (sizes, addresses)
MlpChain read_chain(const py::tuple& chain) {
  MlpChain n{};
  const auto sizes = chain[0].cast<py::tuple>(), addresses = chain[1].cast<py::tuple>();
  Reader size(sizes), tensor(addresses);
  for (int64_t* to : {&n.dim, &n.inputs, &n.outputs, &n.op_count, &n.tiles, &n.trace_chunks})
    *to = size.next<int64_t>();
  n.precision = size.next<int32_t>();
  for (int64_t* to : {&n.panels, &n.features, &n.coefficients, &n.row_features, &n.warps, &n.blocks})
    *to = size.next<int64_t>();
  n.ops = tensor.address<const ChainOp>();
  n.breaks = tensor.address<const double>();
  n.times = tensor.address<const float>();
  n.rows = tensor.address<const float>();
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
int64_t mlp_chain_shared_bytes(int64_t tiles, int64_t outputs, int64_t trace_chunks, int32_t precision) {
  MlpChain n{};
  n.tiles = tiles;
  n.outputs = outputs;
  n.trace_chunks = trace_chunks;
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
