"""The Runge-Kutta step in C++ and CUDA: checked tensors as addresses, sizes and strides."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastlik.ops.dispatch import call_native
from fastlik.ops.rk_step.reference import Advance, Controller


def combine(y: Tensor, k: Tensor, weights: Sequence[float], h: Tensor, out: Tensor) -> Tensor:
    """``reference.combine`` into ``out``; every row of y, k and out is contiguous."""
    size = y[0].numel() if len(y) else 0
    call_native(
        "rk_combine",
        y,
        y.dtype == torch.float64,
        (len(y), size),
        (y.data_ptr(), k.data_ptr(), out.data_ptr(), h.data_ptr()),
        (y.stride(0), k.stride(0), k.stride(1), out.stride(0)),
        tuple(weights),
    )
    return out


def advance(
    y: Tensor,
    k: Tensor,
    h: Tensor,
    *,
    b: Sequence[float],
    e: Sequence[float],
    rtol: float,
    atol: float,
    controller: Controller,
    error_prev: Tensor,
    rejected: Tensor,
    t: Tensor,
    t_end: Tensor,
    status: Tensor,
    q: Tensor | None,
    kq: Tensor | None,
    q_atol: float | None,
    sensitivity: Tensor | None,
    defect: Tensor | None,
    fsal: bool,
) -> Advance:
    """``reference.advance``; every row of y, k, q, kq and sensitivity is contiguous."""
    size = y[0].numel() if len(y) else 0
    # the CPU kernel keeps the old row of each thread until the step is accepted
    saved = y.new_empty(torch.get_num_threads() * size if y.is_cpu else 0)
    error = torch.empty_like(h)
    accepted = torch.empty_like(rejected)
    tensors = (y, k, sensitivity, saved, q, kq)
    tensors += (h, t, error_prev, defect, error, t_end, rejected, accepted, status)
    call_native(
        "rk_advance",
        y,
        y.dtype == torch.float64,
        (len(y), size, len(k), 0 if q is None else q.shape[1]),
        tuple(0 if x is None else x.data_ptr() for x in tensors),
        (
            y.stride(0),
            k.stride(0),
            k.stride(1),
            0 if sensitivity is None else sensitivity.stride(0),
            0 if kq is None else kq.stride(0),
            0 if kq is None else kq.stride(1),
        ),
        tuple(b),
        tuple(e),
        (rtol, atol, q_atol or 0.0),
        (
            controller.order,
            controller.safety,
            controller.min_factor,
            controller.max_factor,
            controller.beta,
        ),
        fsal,
    )
    return Advance(accepted, error)
