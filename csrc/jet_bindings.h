// Python's side of the kernels in cpu/jet.cpp.
#pragma once

#include "fastlik/cpu.h"
#include "isa.h"
#include "reader.h"

namespace fastlik {
namespace {

void jet_activation(bool is_double, int function, double parameter, const py::tuple& sizes,
                    const py::tuple& addresses, int threads) {
  Reader size(sizes), tensor(addresses);
  JetActivationArgs a{};
  a.size = size.next<int64_t>();
  a.count = size.next<int64_t>();
  a.x = tensor.address<const void>();
  a.tangents = tensor.address<const void>();
  a.y = tensor.address<void>();
  a.out_tangents = tensor.address<void>();
  a.parameter = parameter;
  if (function < kSilu || function > kSoftplus) throw std::invalid_argument("no such activation");
  const auto run = is_double ? FASTLIK_CPU(jet_activation<double>) : FASTLIK_CPU(jet_activation<float>);
  py::gil_scoped_release release;
  run(MlpFunction(function), a, threads);
}

void jet_group_norm(bool is_double, double eps, bool channels_last, const py::tuple& sizes,
                    const py::tuple& addresses, int threads) {
  Reader size(sizes), tensor(addresses);
  JetGroupNormArgs a{};
  a.rows = size.next<int64_t>();
  a.channels = size.next<int64_t>();
  a.places = size.next<int64_t>();
  a.groups = size.next<int64_t>();
  a.count = size.next<int64_t>();
  a.channels_last = channels_last;
  a.x = tensor.address<const void>();
  a.tangents = tensor.address<const void>();
  a.weight = tensor.address<const void>();
  a.bias = tensor.address<const void>();
  a.y = tensor.address<void>();
  a.out_tangents = tensor.address<void>();
  a.eps = eps;
  const auto run = is_double ? FASTLIK_CPU(jet_group_norm<double>) : FASTLIK_CPU(jet_group_norm<float>);
  py::gil_scoped_release release;
  run(a, threads);
}

void define_jet(py::module_& m) {
  m.def("jet_activation", &jet_activation);
  m.def("jet_group_norm", &jet_group_norm);
}

}  // namespace
}  // namespace fastlik
