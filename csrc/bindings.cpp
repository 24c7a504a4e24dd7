// fastlik._native: addresses, sizes and strides in; CUDA functions take a stream as well and return
// a cudaError_t.  No torch headers; checks and allocations belong to the Python callers,
// fastlik/ops/<op>/native.py.
#include <cstring>

#include <pybind11/pybind11.h>

#include "adams_bindings.h"
#include "isa.h"
#include "jet_bindings.h"
#include "mlp_gradient_bindings.h"
#include "quadrature_bindings.h"
#include "reader.h"
#ifdef FASTLIK_CUDA
#include "mlp_chain_bindings.h"
#endif

namespace py = pybind11;

namespace fastlik {
namespace {

CombineArgs combine_args(const py::tuple& sizes, const py::tuple& addresses,
                         const py::tuple& strides, const py::tuple& weights) {
  CombineArgs args{};
  Reader size(sizes), tensor(addresses), stride(strides);
  args.rows = size.next<int64_t>();
  args.size = size.next<int64_t>();
  args.stages = int64_t(weights.size());
  args.y = tensor.address<const void>();
  args.k = tensor.address<const void>();
  args.out = tensor.address<void>();
  args.h = tensor.address<const double>();
  args.y_row = stride.next<int64_t>();
  args.k_stage = stride.next<int64_t>();
  args.k_row = stride.next<int64_t>();
  args.out_row = stride.next<int64_t>();
  read_weights(weights, args.weights);
  return args;
}

AdvanceArgs advance_args(const py::tuple& sizes, const py::tuple& addresses,
                         const py::tuple& strides, const py::tuple& b, const py::tuple& e,
                         const py::tuple& tolerances, const py::tuple& controller, bool fsal) {
  AdvanceArgs args{};
  Reader size(sizes), tensor(addresses), stride(strides);
  args.rows = size.next<int64_t>();
  args.size = size.next<int64_t>();
  args.stages = size.next<int64_t>();
  args.probes = size.next<int64_t>();
  args.y = tensor.address<void>();
  args.k = tensor.address<void>();
  args.sensitivity = tensor.address<const void>();
  args.saved = tensor.address<void>();
  args.q = tensor.address<double>();
  args.kq = tensor.address<double>();
  args.h = tensor.address<double>();
  args.t = tensor.address<double>();
  args.error_prev = tensor.address<double>();
  args.defect = tensor.address<double>();
  args.error = tensor.address<double>();
  args.t_end = tensor.address<const double>();
  args.rejected = tensor.address<bool>();
  args.accepted = tensor.address<bool>();
  args.status = tensor.address<int32_t>();
  args.y_row = stride.next<int64_t>();
  args.k_stage = stride.next<int64_t>();
  args.k_row = stride.next<int64_t>();
  args.sensitivity_row = stride.next<int64_t>();
  args.kq_stage = stride.next<int64_t>();
  args.kq_row = stride.next<int64_t>();
  read_step(args, b, e, tolerances, controller, fsal);
  return args;
}

void rk_combine(bool is_double, const py::tuple& sizes, const py::tuple& addresses,
               const py::tuple& strides, const py::tuple& weights, int threads) {
  const CombineArgs args = combine_args(sizes, addresses, strides, weights);
  const auto run = is_double ? FASTLIK_CPU(combine<double>) : FASTLIK_CPU(combine<float>);
  py::gil_scoped_release release;
  run(args, threads);
}

void rk_advance(bool is_double, const py::tuple& sizes, const py::tuple& addresses,
               const py::tuple& strides, const py::tuple& b, const py::tuple& e,
               const py::tuple& tolerances, const py::tuple& controller, bool fsal, int threads) {
  const AdvanceArgs args =
      advance_args(sizes, addresses, strides, b, e, tolerances, controller, fsal);
  const auto run = is_double ? FASTLIK_CPU(advance<double>) : FASTLIK_CPU(advance<float>);
  py::gil_scoped_release release;
  run(args, threads);
}

#ifdef FASTLIK_CUDA
int rk_combine_cuda(bool is_double, const py::tuple& sizes, const py::tuple& addresses,
                    const py::tuple& strides, const py::tuple& weights, std::uintptr_t stream) {
  const CombineArgs args = combine_args(sizes, addresses, strides, weights);
  const auto run = is_double ? cuda::combine<double> : cuda::combine<float>;
  py::gil_scoped_release release;
  return run(args, reinterpret_cast<void*>(stream));
}

int rk_advance_cuda(bool is_double, const py::tuple& sizes, const py::tuple& addresses,
                    const py::tuple& strides, const py::tuple& b, const py::tuple& e,
                    const py::tuple& tolerances, const py::tuple& controller, bool fsal,
                    std::uintptr_t stream) {
  const AdvanceArgs args =
      advance_args(sizes, addresses, strides, b, e, tolerances, controller, fsal);
  const auto run = is_double ? cuda::advance<double> : cuda::advance<float>;
  py::gil_scoped_release release;
  return run(args, reinterpret_cast<void*>(stream));
}
#endif

// Whether each of some blocks of memory equals the block of the same place in others.
bool same_bytes(const py::tuple& some, const py::tuple& others, const py::tuple& sizes) {
  Reader left(some), right(others), size(sizes);
  for (size_t i = 0; i < sizes.size(); ++i)
    if (std::memcmp(left.address<void>(), right.address<void>(), size.next<size_t>()) != 0) return false;
  return true;
}

py::list isas() {
  py::list names;
  for (Isa isa : supported_isas()) names.append(isa_name(isa));
  return names;
}

}  // namespace
}  // namespace fastlik

PYBIND11_MODULE(_native, m) {
  using namespace fastlik;
  m.doc() = "Native kernels of fastlik; import torch first, so that both share one OpenMP.";
  m.def("isas", &isas, "Instruction sets that this build and this CPU have, best first.");
  m.def("isa", [] { return isa_name(active_isa); }, "The instruction set in use.");
  m.def("select_isa", &select_isa, "Use another instruction set (for tests).");
  define_mlp(m);
  define_mlp_gradient(m);
  define_jet(m);
  define_adams_step(m);
  define_quadrature(m);
  m.def("same_bytes", &same_bytes);
  m.def("rk_combine", &rk_combine);
  m.def("rk_advance", &rk_advance);
#ifdef FASTLIK_CUDA
  m.def("rk_combine_cuda", &rk_combine_cuda);
  m.def("rk_advance_cuda", &rk_advance_cuda);
  define_mlp_chain(m);
#endif
  m.attr("max_stages") = kMaxStages;
}
