// Arguments that Python packs into tuples.
#pragma once

#include <cstdint>
#include <stdexcept>

#include <pybind11/pybind11.h>

#include "fastlik/rk_step.h"

namespace py = pybind11;

namespace fastlik {
namespace {

// Reads a tuple from left to right.
class Reader {
 public:
  explicit Reader(const py::tuple& items) : items_(items) {}
  template <class T>
  T next() {
    return items_[at_++].cast<T>();
  }
  // A tensor's address; 0 stands for a tensor that is left out.
  template <class T>
  T* address() {
    return reinterpret_cast<T*>(next<std::uintptr_t>());
  }

 private:
  const py::tuple& items_;
  size_t at_ = 0;
};

void read_weights(const py::tuple& weights, double (&target)[kMaxStages]) {
  if (weights.size() > size_t(kMaxStages)) throw std::length_error("too many stages");
  for (size_t j = 0; j < weights.size(); ++j) target[j] = weights[j].cast<double>();
}

// The parts of a step that are the method's own.
void read_step(AdvanceArgs& step, const py::tuple& b, const py::tuple& e, const py::tuple& tolerances,
               const py::tuple& controller, bool fsal) {
  Reader tolerance(tolerances), pi(controller);
  read_weights(b, step.b);
  read_weights(e, step.e);
  step.rtol = tolerance.next<double>();
  step.atol = tolerance.next<double>();
  step.q_atol = tolerance.next<double>();
  step.controller.order = pi.next<double>();
  step.controller.safety = pi.next<double>();
  step.controller.min_factor = pi.next<double>();
  step.controller.max_factor = pi.next<double>();
  step.controller.beta = pi.next<double>();
  step.fsal = fsal;
}

}  // namespace
}  // namespace fastlik
