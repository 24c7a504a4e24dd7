// fastlik._native's gradients of multilayer perceptrons: see csrc/cpu/mlp_gradient.cpp.
#pragma once

#include "mlp_bindings.h"

namespace fastlik {
namespace {

// (rows of a tile, tiles, bytes of a tile) of a tape with as many lines beside the values.
py::tuple mlp_tape(const PackedMlp& packed, int64_t rows, int64_t lines, int threads) {
  const auto run = packed.is_double ? FASTLIK_CPU(mlp_tape<double>) : FASTLIK_CPU(mlp_tape<float>);
  const MlpTape tape = run(packed.net, rows, lines, threads);
  return py::make_tuple(tape.rows, tape.tiles, tape.bytes);
}

// Terms (a, b, out) of the lines of second order, which follow the tangents.
struct SecondOrder {
  std::vector<MlpTerm> terms;
  int64_t lines;

  SecondOrder(int64_t tangents, int64_t lines, const py::tuple& values) : lines(lines) {
    for (const auto& item : values) {
      const auto numbers = item.cast<py::tuple>();
      Reader r(numbers);
      MlpTerm term{};
      term.a = r.next<int32_t>();
      term.b = r.next<int32_t>();
      term.out = r.next<int32_t>();
      const auto tangent = [&](int32_t line) { return 1 <= line && line <= tangents; };
      if (!tangent(term.a) || !tangent(term.b) || term.out <= tangents || term.out > tangents + lines)
        throw std::length_error("a term of lines that there are not");
      terms.push_back(term);
    }
  }
};

MlpTape read_tape(const py::tuple& values, const SecondOrder& second) {
  Reader r(values);
  MlpTape tape{};
  tape.rows = r.next<int64_t>();
  tape.tiles = r.next<int64_t>();
  tape.bytes = r.next<int64_t>();
  tape.at = r.address<void>();
  tape.second = {second.lines, int64_t(second.terms.size()), second.terms.data()};
  return tape;
}

void mlp_record(const PackedMlp& packed, const py::tuple& sizes, const py::tuple& addresses,
                const py::tuple& conditions, const py::tuple& tape_values, const py::tuple& terms, int threads) {
  Reader size(sizes), tensor(addresses);
  MlpEvaluateArgs a{};
  a.in = read_rows(size.next<int64_t>(), tensor, conditions);
  a.tangents = size.next<int64_t>();
  const SecondOrder second(a.tangents, size.next<int64_t>(), terms);
  a.times = tensor.address<const double>();
  a.vectors = tensor.address<const void>();
  a.value = tensor.address<void>();
  a.products = tensor.address<void>();
  const MlpTape tape = read_tape(tape_values, second);
  const auto run = packed.is_double ? FASTLIK_CPU(mlp_record<double>) : FASTLIK_CPU(mlp_record<float>);
  py::gil_scoped_release release;
  run(packed.net, a, tape, threads);
}

void mlp_reverse(const PackedMlp& packed, const py::tuple& sizes, const py::tuple& addresses,
                 const py::tuple& tape_values, const py::tuple& terms, bool of_weights, int threads) {
  Reader size(sizes), tensor(addresses);
  MlpReverseArgs a{};
  a.rows = size.next<int64_t>();
  a.tangents = size.next<int64_t>();
  const SecondOrder second(a.tangents, size.next<int64_t>(), terms);
  a.tape = read_tape(tape_values, second);
  a.numbers = size.next<int64_t>();
  a.value = tensor.address<const void>();
  a.products = tensor.address<const void>();
  a.state = tensor.address<void>();
  a.vectors = tensor.address<void>();
  a.of_numbers = tensor.address<void>();
  a.of_weights = of_weights;
  const auto run = packed.is_double ? FASTLIK_CPU(mlp_reverse<double>) : FASTLIK_CPU(mlp_reverse<float>);
  py::gil_scoped_release release;
  run(packed.net, a, threads);
}

// Where a matrix or a vector lies: its address, and the distances of its rows and columns.
template <class T>
struct Strided {
  const T* at;
  int64_t row, column;
  explicit Strided(const py::tuple& values) {
    Reader r(values);
    at = r.address<const T>();
    row = r.next<int64_t>();
    column = r.next<int64_t>();
  }
};

template <class T>
void pack_weight(const MlpWeight& weight, T* numbers, const T* from, int64_t row, int64_t column) {
  constexpr int64_t panel = kMlpPanelBytes / int64_t(sizeof(T));
  for (int64_t start = 0; start < weight.outputs; start += panel) {
    T* to = numbers + weight.offset + start * weight.inputs;
    const int64_t count = std::min<int64_t>(panel, weight.outputs - start);
    for (int64_t i = 0; i < weight.inputs; ++i)
      for (int64_t o = 0; o < count; ++o) to[i * panel + o] = from[(start + o) * row + i * column];
  }
}

template <class T>
void pack(const PackedMlp& packed, const py::tuple& weights, const py::tuple& constants) {
  const MlpNetwork& net = packed.net;
  T* numbers = static_cast<T*>(const_cast<void*>(net.numbers));
  for (int32_t w = 0; w < net.weight_count; ++w) {
    const Strided<T> from(weights[w].cast<py::tuple>());
    pack_weight(net.weights[w], numbers, from.at, from.row, from.column);
    pack_weight(net.weights[w + net.weight_count], numbers, from.at, from.column, from.row);
  }
  size_t next = 0;
  for (int b = 0; b < net.buffer_count; ++b) {
    if (net.buffers[b].depends != 0) continue;
    const Strided<T> from(constants[next++].cast<py::tuple>());
    for (int64_t i = 0; i < net.buffers[b].width; ++i) numbers[net.buffers[b].constant + i] = from.at[i * from.row];
  }
}

// Fills the numbers anew from the tensors that they are copies of; transposed weights have to be there.
void mlp_pack(const PackedMlp& packed, const py::tuple& weights, const py::tuple& constants) {
  if (packed.weights.size() != 2 * size_t(packed.net.weight_count)) throw std::length_error("no transposed weights");
  packed.is_double ? pack<double>(packed, weights, constants) : pack<float>(packed, weights, constants);
}

void define_mlp_gradient(py::module_& m) {
  m.def("mlp_tape", &mlp_tape);
  m.def("mlp_record", &mlp_record);
  m.def("mlp_reverse", &mlp_reverse);
  m.def("mlp_pack", &mlp_pack);
}

}  // namespace
}  // namespace fastlik
