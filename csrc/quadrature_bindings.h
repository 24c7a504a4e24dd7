// Python's view of the quadrature over nodes: fastlik/ops/quadrature/native.py.
#pragma once

#include "fastlik/node_quadrature.h"
#include "fastlik/quadrature.h"
#include "isa.h"
#include "reader.h"

namespace fastlik {
namespace {

NodeQuadratureArgs read_quadrature(const py::tuple& sizes) {
  Reader size(sizes);
  NodeQuadratureArgs a{};
  a.rows = size.next<int64_t>();
  a.nodes = size.next<int64_t>();
  a.points = size.next<int>();
  if (a.points < 1 || a.points > kMostNodes) throw std::length_error("polynomials take 1 to 6 nodes");
  return a;
}

void run_node_weights(const py::tuple& sizes, const py::tuple& addresses, int threads) {
  NodeQuadratureArgs a = read_quadrature(sizes);
  Reader at(addresses);
  a.t = at.address<const double>();
  a.count = at.address<const int64_t>();
  a.out = at.address<double>();
  py::gil_scoped_release release;
  FASTLIK_CPU(node_weights)(a, threads);
}

void run_node_residuals(const py::tuple& sizes, const py::tuple& addresses, int threads) {
  NodeQuadratureArgs a = read_quadrature(sizes);
  Reader at(addresses);
  a.t = at.address<const double>();
  a.count = at.address<const int64_t>();
  a.values = at.address<const double>();
  a.out = at.address<double>();
  py::gil_scoped_release release;
  FASTLIK_CPU(node_residuals)(a, threads);
}

void define_quadrature(py::module_& m) {
  m.def("node_weights", &run_node_weights);
  m.def("node_residuals", &run_node_residuals);
}

}  // namespace
}  // namespace fastlik
