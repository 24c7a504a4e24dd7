"""What an Adams step starts from and leaves behind, row by row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class History:
    """The rows on their way, with their last slopes in ring buffers of ``order`` places; written in place.

    y (B, *event) float32 or float64; slopes (B, order, d) of its dtype, d = numbers of an event; float64:
    t, t_end, h (signed, next), tried (length of the longest attempt lately), defect, defect_square (B,),
    times, followed (B, order); status (B,) int32; nfe, steps, rejected (B,) int64.  All contiguous.
    The slope at t of a row with n accepted steps is in place n % order.
    """

    y: Tensor
    t: Tensor
    t_end: Tensor
    h: Tensor
    tried: Tensor
    times: Tensor
    slopes: Tensor
    followed: Tensor
    defect: Tensor
    defect_square: Tensor
    status: Tensor
    nfe: Tensor
    steps: Tensor
    rejected: Tensor

    @property
    def order(self) -> int:
        return self.times.shape[1]


class Attempt(NamedTuple):
    """Where each row is evaluated next: its node's number (B,) int64, t (B,) float64, y (B, *event), and
    weights (B, 2, order + 1) float64 of its slopes and of the new one that predict and that correct y."""

    node: Tensor
    t: Tensor
    y: Tensor
    weights: Tensor


class Control(NamedTuple):
    """What errors are measured by: rtol and atol of the state (root mean square over the event), q_atol of
    the answer (None: it does not steer), the share at which the integrand's error counts, and what tells a
    jump (``fastlik.solvers.adams``)."""

    rtol: float
    atol: float
    q_atol: float | None
    integral_share: float
    jump_shrunk: float
    jump_missed: float
    jump_error: float
