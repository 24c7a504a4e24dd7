"""One step of an adaptive Runge-Kutta method, all rows at once: the specification.

Shapes: y (B, *event) and k (S, B, *event) in float32 or float64; what is one number per row is
(B,) float64, flags are bool and ``status`` is int32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fastlik.ops.rk_step.status import Status


@dataclass(frozen=True)
class Controller:
    """PI step-size controller (Hairer, Norsett, Wanner: Solving ODEs I, section IV.2, dopri5.f).

    Attributes:
        order: order of the local error, 1 + the lower order of the embedded pair (5 for 5(4)).
        safety, min_factor, max_factor: h is multiplied by safety * (...) within these bounds.
        beta: weight of the previous error; 0 gives the plain I controller.
    """

    order: int
    safety: float = 0.9
    min_factor: float = 0.2
    max_factor: float = 10.0
    beta: float = 0.04

    def __post_init__(self) -> None:
        if self.alpha <= 0 or not 0 < self.min_factor < 1 < self.max_factor:
            raise ValueError(
                f"a controller needs 1 / order > 0.75 beta and min_factor < 1 < max_factor: {self}"
            )

    @property
    def alpha(self) -> float:
        """Exponent of the present error."""
        return 1 / self.order - 0.75 * self.beta


class Advance(NamedTuple):
    """Outcome of one attempted step.

    Attributes:
        accepted: (B,) bool.
        error: (B,) float64, in units of the tolerance; 0 for rows that were not RUNNING.
    """

    accepted: Tensor
    error: Tensor


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """``values`` (B,) shaped to broadcast against ``like`` (B, *event)."""
    return values.view(-1, *[1] * (like.dim() - 1))


def weighted_stages(k: Tensor, weights: Sequence[float]) -> Tensor:
    """sum_j weights[j] k[j]; a stage of weight 0 is not read, it may hold anything."""
    total = k.new_zeros(k.shape[1:])
    for stage, weight in zip(k, weights, strict=False):
        if weight != 0:
            total = total + weight * stage
    return total


def combine(y: Tensor, k: Tensor, weights: Sequence[float], h: Tensor, out: Tensor | None = None) -> Tensor:
    """out[b] = y[b] + h[b] * sum_j weights[j] k[j, b]."""
    return torch.add(y, per_row(h.to(y.dtype), y) * weighted_stages(k, weights), out=out)


def scaled_norm(error: Tensor, y: Tensor, y_new: Tensor, rtol: float, atol: float) -> Tensor:
    """Root mean square (B,) over the event of error / (atol + rtol max(|y|, |y_new|)).

    NaN where ``y_new`` is not finite: an infinite state would otherwise hide its error.
    """
    scaled = error / (atol + rtol * torch.maximum(y.abs(), y_new.abs())) + (y_new - y_new)
    return scaled.flatten(1).double().square().mean(1).sqrt()


def step_factor(controller: Controller, error: Tensor, error_prev: Tensor) -> Tensor:
    """Factor (B,) by which h should change; ``min_factor`` where the error is not finite."""
    factor = controller.safety * error**-controller.alpha * error_prev**controller.beta
    factor = factor.clamp(controller.min_factor, controller.max_factor)
    return factor.where(error.isfinite(), controller.min_factor)


def resolution(t: Tensor, t_end: Tensor) -> Tensor:
    """The smallest step that still moves t reliably."""
    return 16 * torch.finfo(torch.float64).eps * torch.maximum(t.abs(), t_end.abs())


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
    q: Tensor | None = None,
    kq: Tensor | None = None,
    q_atol: float | None = None,
    sensitivity: Tensor | None = None,
    defect: Tensor | None = None,
    fsal: bool = True,
) -> Advance:
    """Attempt the step; see ``fastlik.ops.rk_step.advance``, which checks the arguments."""
    y_new = combine(y, k, b, h)
    state_error = per_row(h.to(y.dtype), y) * weighted_stages(k, e)
    norm = scaled_norm(state_error, y, y_new, rtol, atol)

    gap = torch.zeros_like(h)  # error of the integral: through the state, and its own
    if sensitivity is not None:
        gap = (sensitivity.double() * state_error.double()).flatten(1).sum(1)
    if q is not None:
        q_new = combine(q, kq, b, h)
        gap = gap + (h[:, None] * weighted_stages(kq, e) + (q_new - q_new)).mean(1)
    share = gap.abs() / q_atol if q_atol is not None else torch.zeros_like(h)
    error = torch.maximum(norm, share) + (norm - norm) + (share - share)  # NaN unless both finite

    running = status == Status.RUNNING
    accepted = running & (error <= 1)
    _replace(y, accepted, y_new)
    if q is not None:
        _replace(q, accepted, q_new)
    if defect is not None:
        _replace(defect, accepted, defect + gap.abs())
    if fsal:
        _replace(k[0], accepted, k[-1])
        if kq is not None:
            _replace(kq[0], accepted, kq[-1])
    _control(controller, error, running, accepted, error_prev, rejected, t, t_end, h, status)
    return Advance(accepted, error.where(running, 0.0))


def _replace(target: Tensor, rows: Tensor, values: Tensor) -> None:
    """target[rows] = values[rows], without asking the device which rows."""
    target.copy_(torch.where(per_row(rows, target), values, target))


def _control(
    controller: Controller,
    error: Tensor,
    running: Tensor,
    accepted: Tensor,
    error_prev: Tensor,
    rejected: Tensor,
    t: Tensor,
    t_end: Tensor,
    h: Tensor,
    status: Tensor,
) -> None:
    """Set t, h, status, error_prev and rejected of the running rows."""
    factor = step_factor(controller, error, error_prev)
    factor = torch.where(accepted & rejected, factor.clamp(max=1.0), factor)
    last = accepted & ((t_end - t).abs() <= h.abs() + resolution(t, t_end))
    _replace(t, accepted, torch.where(last, t_end, t + h))
    left = t_end - t
    proposed = h * factor
    _replace(h, running, torch.where(proposed.abs() > left.abs(), left, proposed))
    _replace(error_prev, accepted, error.clamp(min=1e-4))
    _replace(rejected, running, ~accepted)
    underflow = running & ~last & (h.abs() < resolution(t, t_end))
    status.masked_fill_(last, int(Status.DONE))
    status.masked_fill_(underflow & error.isfinite(), int(Status.UNDERFLOW))
    status.masked_fill_(underflow & ~error.isfinite(), int(Status.NON_FINITE))
