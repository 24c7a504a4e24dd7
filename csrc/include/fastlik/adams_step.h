// One step of Adams' method for many rows: arguments.  Specification: fastlik/ops/adams_step/reference.py.
#pragma once

#include "fastlik/adams.h"

namespace fastlik {

struct AdamsStepArgs {
  int64_t rows, size, order;
  void* y;                                    // (rows, size)
  double *t, *h, *tried, *defect, *defect_square;  // (rows,)
  const double* t_end;
  double *times, *followed;  // (rows, order)
  void* slopes;              // (rows, order, size)
  int32_t* status;
  int64_t *nfe, *steps, *rejected;
  // the attempt
  int64_t* node;
  double* at;
  void* predicted;   // (rows, size)
  double* weights;   // (rows, 2, order + 1)
  // what was found there
  const void *slope, *sensitivity;  // (rows, size); the latter may be null
  const double* integrand;          // (rows, columns) or null
  int64_t columns;
  double rtol, atol, q_atol, integral_share, shrunk, missed, for_the_state;
};

}  // namespace fastlik
