// Quadrature over the nodes of many rows: arguments.  Specification: fastlik/ops/quadrature/reference.py.
#pragma once

#include <cstdint>

namespace fastlik {

struct NodeQuadratureArgs {
  int64_t rows, nodes;
  int points;             // at most kMostNodes
  const double* t;        // (rows, nodes)
  const int64_t* count;   // (rows,)
  const double* values;   // (rows, nodes)
  double* out;            // (rows, nodes)
};

}  // namespace fastlik
