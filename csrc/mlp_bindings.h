// fastlik._native's multilayer perceptrons: a network is an object, made once; its numbers stay in the
// tensor that Python keeps.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <utility>
#include <vector>

#include "isa.h"
#include "mlp_arguments.h"

namespace fastlik {
namespace {

struct PackedMlp {
  std::vector<MlpOp> ops;
  std::vector<MlpBuffer> buffers;
  std::vector<MlpWeight> weights;
  MlpNetwork net{};
  bool is_double = false;

  PackedMlp(const PackedMlp&) = delete;  // net points into the vectors
  PackedMlp(bool is_double, std::uintptr_t numbers, const py::tuple& sizes, const py::list& op_list,
            const py::list& buffer_list, const py::list& weight_list, const py::tuple& conditions,
            const py::tuple& output, const py::tuple& trace)
      : is_double(is_double) {
    for (const auto& item : op_list) ops.push_back(read_op(item.cast<py::tuple>()));
    for (const auto& item : buffer_list) {
      const auto values = item.cast<py::tuple>();
      Reader r(values);
      MlpBuffer buffer{};
      buffer.width = r.next<int32_t>();
      buffer.depends = r.next<int32_t>();
      buffer.constant = r.next<int64_t>();
      buffers.push_back(buffer);
    }
    for (const auto& item : weight_list) {
      const auto values = item.cast<py::tuple>();
      Reader r(values);
      MlpWeight weight{};
      weight.offset = r.next<int64_t>();
      weight.outputs = r.next<int32_t>();
      weight.inputs = r.next<int32_t>();
      weights.push_back(weight);
    }
    if (buffers.size() > size_t(kMlpMaxBuffers) || conditions.size() > size_t(kMlpMaxConditions))
      throw std::length_error("too many buffers or conditions");
    Reader size(sizes);
    net.value_ops = size.next<int32_t>();
    net.dim = size.next<int32_t>();
    net.input = size.next<int32_t>();
    net.time = size.next<int32_t>();
    net.ops = ops.data();
    net.buffers = buffers.data();
    net.weights = weights.data();
    net.numbers = reinterpret_cast<const void*>(numbers);
    net.op_count = int32_t(ops.size());
    net.buffer_count = int32_t(buffers.size());
    net.condition_count = int32_t(conditions.size());
    for (const MlpOp& op : ops) net.weight_count = std::max(net.weight_count, op.weight + 1);
    for (int c = 0; c < net.condition_count; ++c) net.conditions[c] = conditions[c].cast<int32_t>();
    Reader out(output), closed(trace);
    net.output = read_view(out);
    net.trace = read_view(closed);
  }

 private:
  static MlpView read_view(Reader& r) {
    MlpView view{};
    view.buffer = r.next<int32_t>();
    view.offset = r.next<int32_t>();
    view.width = r.next<int32_t>();
    return view;
  }
  static MlpOp read_op(const py::tuple& item) {
    Reader r(item);
    MlpOp op{};
    op.code = r.next<int32_t>();
    op.function = r.next<int32_t>();
    op.weight = r.next<int32_t>();
    op.depends = r.next<int32_t>();
    op.out = read_view(r);
    op.a = read_view(r);
    op.b = read_view(r);
    op.parameter = r.next<double>();
    return op;
  }
};

void mlp_evaluate(const PackedMlp& packed, const py::tuple& sizes, const py::tuple& addresses,
                  const py::tuple& conditions, int threads) {
  Reader size(sizes), tensor(addresses);
  MlpEvaluateArgs a{};
  a.in = read_rows(size.next<int64_t>(), tensor, conditions);
  a.tangents = size.next<int64_t>();
  a.times = tensor.address<const double>();
  a.vectors = tensor.address<const void>();
  a.value = tensor.address<void>();
  a.products = tensor.address<void>();
  a.quadratic = tensor.address<double>();
  a.divergence = tensor.address<double>();
  const auto run =
      packed.is_double ? FASTLIK_CPU(mlp_evaluate<double>) : FASTLIK_CPU(mlp_evaluate<float>);
  py::gil_scoped_release release;
  run(packed.net, a, threads);
}

void mlp_jet(const PackedMlp& packed, const py::tuple& sizes, const py::tuple& addresses,
             const py::tuple& conditions, int threads) {
  Reader size(sizes), tensor(addresses);
  MlpJetArgs a{};
  a.in = read_rows(size.next<int64_t>(), tensor, conditions);
  a.directions = size.next<int64_t>();
  a.order = size.next<int64_t>();
  a.times = tensor.address<const double>();
  a.vectors = tensor.address<const void>();
  a.value = tensor.address<void>();
  a.derivatives = tensor.address<void>();
  const auto run = packed.is_double ? FASTLIK_CPU(mlp_jet<double>) : FASTLIK_CPU(mlp_jet<float>);
  py::gil_scoped_release release;
  run(packed.net, a, threads);
}

void mlp_grid(const PackedMlp& packed, const py::tuple& sizes, const py::tuple& addresses,
              const py::tuple& conditions, const py::tuple& trace, int threads) {
  const MlpGridArgs a = read_grid(sizes, addresses, conditions, trace);
  const auto run = packed.is_double ? FASTLIK_CPU(mlp_grid<double>) : FASTLIK_CPU(mlp_grid<float>);
  py::gil_scoped_release release;
  run(packed.net, a, threads);
}

void mlp_adaptive(const PackedMlp& packed, const py::tuple& sizes, const py::tuple& addresses,
                  const py::tuple& conditions, const py::tuple& trace, const py::tuple& span,
                  const py::tuple& b, const py::tuple& e, const py::tuple& tolerances,
                  const py::tuple& controller, bool fsal, int threads) {
  const MlpAdaptiveArgs a =
      read_adaptive(sizes, addresses, conditions, trace, span, b, e, tolerances, controller, fsal);
  const auto run =
      packed.is_double ? FASTLIK_CPU(mlp_adaptive<double>) : FASTLIK_CPU(mlp_adaptive<float>);
  py::gil_scoped_release release;
  run(packed.net, a, threads);
}

void mlp_adams(const PackedMlp& packed, const py::tuple& sizes, const py::tuple& addresses,
               const py::tuple& conditions, const py::tuple& trace, const py::tuple& span,
               const py::tuple& tolerances, int threads) {
  const MlpAdamsArgs a = read_adams(sizes, addresses, conditions, trace, span, tolerances);
  const auto run = packed.is_double ? FASTLIK_CPU(mlp_adams<double>) : FASTLIK_CPU(mlp_adams<float>);
  py::gil_scoped_release release;
  run(packed.net, a, threads);
}

void define_mlp(py::module_& m) {
  py::class_<PackedMlp>(m, "Mlp")
      .def(py::init<bool, std::uintptr_t, const py::tuple&, const py::list&, const py::list&,
                    const py::list&, const py::tuple&, const py::tuple&, const py::tuple&>());
  m.def("mlp_evaluate", &mlp_evaluate);
  m.def("mlp_jet", &mlp_jet);
  m.def("mlp_grid", &mlp_grid);
  m.def("mlp_adaptive", &mlp_adaptive);
  m.def("mlp_adams", &mlp_adams);
}

}  // namespace
}  // namespace fastlik
