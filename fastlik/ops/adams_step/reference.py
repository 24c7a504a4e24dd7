"""The Adams step in plain PyTorch: the specification."""

from __future__ import annotations

import torch
from torch import Tensor

from ..quadrature.lagrange import lagrange_weights
from ..rk_step.status import Status
from .history import Attempt, Control, History

# a step may grow no faster: variable-step Adams methods stay stable below a ratio of about 2
_GROWTH, _SHRINK, _SAFETY = 2.0, 0.1, 0.75


def predict(rows: History) -> Attempt:
    """See ``fastlik.ops.adams_step``."""
    running = rows.status == Status.RUNNING
    t = rows.t + torch.where(running, rows.h, 0.0)
    t = torch.where((rows.t_end - t).abs() <= _resolution(t, rows.t_end), rows.t_end, t)
    known = _known(rows)
    predict = lagrange_weights(rows.times, known, rows.t, t)
    nodes = torch.cat((rows.times, t[:, None]), 1)
    correct = lagrange_weights(nodes, torch.cat((known, known[:, :1]), 1), rows.t, t)
    rows.nfe.add_(running)
    weights = torch.stack((torch.nn.functional.pad(predict, (0, 1)), correct), 1)
    weights = torch.where(running[:, None, None], weights, 0.0)  # no way to go leaves 0 / 0
    y = rows.y + _combine(rows, weights[:, 0, :-1])
    return Attempt(rows.steps + 1, t, y, weights)


def correct(
    rows: History,
    attempt: Attempt,
    slope: Tensor,
    integrand: Tensor | None,
    sensitivity: Tensor | None,
    control: Control,
) -> None:
    """See ``fastlik.ops.adams_step``."""
    _, t, y, weights = attempt
    running = rows.status == Status.RUNNING
    predict, correct = weights[:, 0], weights[:, 1]
    gap = correct[:, -1:].to(y.dtype) * slope.flatten(1)
    gap = _combine(rows, (correct - predict)[:, :-1]) + gap.reshape(y.shape)
    defect, error = _error(rows, y, gap, sensitivity, control)
    jump = torch.zeros_like(running)
    if integrand is not None and rows.order > 1:
        jump = _jump(rows, t, slope, gap, error, control) & _known(rows).all(1)
    if integrand is not None:
        error = torch.maximum(error, _integral_error(rows, integrand, predict, correct, control))
    accepted = running & (error <= 1)
    known = _known(rows).sum(1)
    _put(rows.y, accepted, y + gap)
    _put(rows.t, accepted, t)
    _put(rows.defect, accepted, rows.defect + defect)
    _put(rows.defect_square, accepted, rows.defect_square + defect.square())
    rows.steps.add_(accepted)
    rows.rejected.add_(running & ~accepted)
    _remember(rows, accepted, t, slope, integrand)
    _choose_step(rows, running, accepted, error, known)
    rows.status.masked_fill_(accepted & jump, int(Status.DISCONTINUOUS))


def _known(rows: History) -> Tensor:
    """(B, order) which places of the ring buffers hold slopes."""
    return torch.arange(rows.order, device=rows.t.device) <= rows.steps[:, None]


def _combine(rows: History, weights: Tensor) -> Tensor:
    """sum_j weights[b, j] slopes[b, j], like y."""
    total = torch.einsum("bk,bkd->bd", weights.to(rows.slopes.dtype), rows.slopes)
    return total.reshape(rows.y.shape)


def _error(
    rows: History, y: Tensor, gap: Tensor, sensitivity: Tensor | None, control: Control
) -> tuple[Tensor, Tensor]:
    """What the gap changes in the answer, and the error in units of the tolerance; both (B,)."""
    scale = control.atol + control.rtol * torch.maximum(y.abs(), rows.y.abs())
    error = (gap / scale).flatten(1).double().square().mean(1).sqrt()
    if sensitivity is None or control.q_atol is None:
        return torch.zeros_like(error), error
    defect = (sensitivity.double() * gap.double()).flatten(1).sum(1)
    return defect, torch.maximum(error, defect.abs() / control.q_atol)


def _jump(rows: History, t: Tensor, slope: Tensor, gap: Tensor, error: Tensor, control: Control) -> Tensor:
    """(B,) whether the slope jumps in this step, as far as the state is concerned."""
    h = (t - rows.t).abs()
    change = slope.flatten(1) - rows.slopes[_numbers(rows), rows.steps % rows.order]
    missed = gap.flatten(1).norm(dim=1) > control.jump_missed * h * change.norm(dim=1)
    return missed & (rows.tried >= control.jump_shrunk * h) & (error > control.jump_error)


def _integral_error(
    rows: History, integrand: Tensor, predict: Tensor, correct: Tensor, control: Control
) -> Tensor:
    """The same difference for the integrand that the steps follow; NaN where any is not finite."""
    finite = (integrand - integrand).sum(1)
    if control.q_atol is None:
        return finite
    gap = ((correct - predict)[:, :-1] * rows.followed).sum(1) + correct[:, -1] * integrand[:, -1]
    return control.integral_share * gap.abs() / control.q_atol + finite


def _remember(rows: History, accepted: Tensor, t: Tensor, slope: Tensor, integrand: Tensor | None) -> None:
    # steps was raised for the accepted rows; the others write back what is there
    place = _numbers(rows), rows.steps % rows.order
    rows.times[place] = torch.where(accepted, t, rows.times[place])
    rows.slopes[place] = torch.where(accepted[:, None], slope.flatten(1), rows.slopes[place])
    if integrand is not None:
        rows.followed[place] = torch.where(accepted, integrand[:, -1], rows.followed[place])


def _choose_step(rows: History, running: Tensor, accepted: Tensor, error: Tensor, known: Tensor) -> None:
    factor = _SAFETY * error ** (-1.0 / (known + 1).double())
    factor = torch.where(accepted, factor.clamp(0.3, _GROWTH), factor.clamp(_SHRINK, 0.7))
    factor = factor.where(error.isfinite(), _SHRINK)
    left = rows.t_end - rows.t
    h = rows.h * factor
    # no sliver at the end: what is left is taken in one step, or in two equal ones
    h = torch.where(h.abs() >= left.abs(), left, torch.where(2 * h.abs() > left.abs(), 0.5 * left, h))
    _put(rows.h, running, h)
    _put(rows.tried, accepted, torch.maximum(h.abs(), 0.5 * rows.tried))
    last = accepted & (rows.t == rows.t_end)
    stuck = running & ~last & (rows.h.abs() < _resolution(rows.t, rows.t_end))
    rows.status.masked_fill_(last, int(Status.DONE))
    rows.status.masked_fill_(stuck & error.isfinite(), int(Status.UNDERFLOW))
    rows.status.masked_fill_(stuck & ~error.isfinite(), int(Status.NON_FINITE))


def _numbers(rows: History) -> Tensor:
    return torch.arange(len(rows.t), device=rows.t.device)


def _put(target: Tensor, rows: Tensor, values: Tensor) -> None:
    """target[rows] = values[rows], without asking the device which rows."""
    target.copy_(torch.where(rows.reshape(-1, *(1,) * (target.dim() - 1)), values, target))


def _resolution(t: Tensor, t_end: Tensor) -> Tensor:
    """The smallest step that still moves t reliably."""
    return 16 * torch.finfo(torch.float64).eps * torch.maximum(t.abs(), t_end.abs())
