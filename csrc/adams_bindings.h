// Python's view of the Adams step: fastlik/ops/adams_step/native.py.
#pragma once

#include "fastlik/adams_step.h"
#include "isa.h"
#include "reader.h"

namespace fastlik {
namespace {

AdamsStepArgs read_adams_step(const py::tuple& sizes, const py::tuple& rows, const py::tuple& attempt) {
  Reader size(sizes), row(rows), tried(attempt);
  AdamsStepArgs a{};
  a.rows = size.next<int64_t>();
  a.size = size.next<int64_t>();
  a.order = size.next<int64_t>();
  if (a.order < 1 || a.order >= kMostNodes) throw std::length_error("an order that Adams' method has not");
  a.y = row.address<void>();
  a.t = row.address<double>();
  a.t_end = row.address<const double>();
  a.h = row.address<double>();
  a.tried = row.address<double>();
  a.times = row.address<double>();
  a.slopes = row.address<void>();
  a.followed = row.address<double>();
  a.defect = row.address<double>();
  a.defect_square = row.address<double>();
  a.status = row.address<int32_t>();
  a.nfe = row.address<int64_t>();
  a.steps = row.address<int64_t>();
  a.rejected = row.address<int64_t>();
  a.node = tried.address<int64_t>();
  a.at = tried.address<double>();
  a.predicted = tried.address<void>();
  a.weights = tried.address<double>();
  return a;
}

void run_adams_predict(bool is_double, const py::tuple& sizes, const py::tuple& rows, const py::tuple& attempt,
                       int threads) {
  const AdamsStepArgs a = read_adams_step(sizes, rows, attempt);
  const auto run = is_double ? FASTLIK_CPU(adams_predict<double>) : FASTLIK_CPU(adams_predict<float>);
  py::gil_scoped_release release;
  run(a, threads);
}

void run_adams_correct(bool is_double, const py::tuple& sizes, const py::tuple& rows, const py::tuple& attempt,
                       const py::tuple& found, int64_t columns, const py::tuple& control, int threads) {
  AdamsStepArgs a = read_adams_step(sizes, rows, attempt);
  Reader at(found), number(control);
  a.slope = at.address<const void>();
  a.integrand = at.address<const double>();
  a.sensitivity = at.address<const void>();
  a.columns = columns;
  a.rtol = number.next<double>();
  a.atol = number.next<double>();
  a.q_atol = number.next<double>();
  a.integral_share = number.next<double>();
  a.shrunk = number.next<double>();
  a.missed = number.next<double>();
  a.for_the_state = number.next<double>();
  const auto run = is_double ? FASTLIK_CPU(adams_correct<double>) : FASTLIK_CPU(adams_correct<float>);
  py::gil_scoped_release release;
  run(a, threads);
}

void define_adams_step(py::module_& m) {
  m.def("adams_predict", &run_adams_predict);
  m.def("adams_correct", &run_adams_correct);
}

}  // namespace
}  // namespace fastlik
