"""One step of an adaptive Runge-Kutta method, with a step size, a verdict and a clock per row.

``combine`` forms the state of the next stage; ``advance`` ends the step: new state, error norm,
acceptance and next step size in one pass over memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastlik.ops.dispatch import choose
from fastlik.ops.rk_step import native, reference
from fastlik.ops.rk_step.reference import Advance, Controller
from fastlik.ops.rk_step.status import Status

__all__ = ["Advance", "Controller", "Status", "advance", "combine"]

MAX_STAGES = 32


def combine(
    y: Tensor,
    k: Tensor,
    weights: Sequence[float],
    h: Tensor,
    out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """The state of the next stage: out[b] = y[b] + h[b] * sum_j weights[j] k[j, b].

    Args:
        y: (B, *event), float32 or float64.
        k: (S, B, *event), dtype of ``y``: the stages so far, S >= len(weights).
        weights: one row of the tableau; a stage of weight 0 is not read.
        h: (B,) float64, steps.
        out: (B, *event), where to write; may be ``y``.  Contiguous within each row.
        backend: "auto", "native" or "torch".

    Returns:
        ``out``, or a new tensor.  Differentiable with backend "auto" or "torch".

    Raises:
        TypeError: a dtype other than the above.
        ValueError: shapes that do not fit, or an ``out`` that is not contiguous within its rows.
        RuntimeError: a backend asked for by name that cannot run.
    """
    _check_state(y, k, h, weights)
    if out is not None:
        _check("out", out, y, y.shape, y.dtype, lead=1, written=True)
    chosen = choose("rk_step", backend, y, k, h)
    if chosen == "torch":
        return reference.combine(y, k, weights, h, out)
    if out is None:
        out = torch.empty_like(y, memory_format=torch.contiguous_format)
    y = y if _rows_contiguous(y, 1) else y.contiguous()
    k = k if _rows_contiguous(k, 2) else k.contiguous()
    return native.combine(y, k, weights, h.contiguous(), out)


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
    backend: str = "auto",
) -> Advance:
    """Finish an attempted step of every RUNNING row, in place; leave every other row untouched.

    The new state is y + h sum_j b_j k_j, its error h sum_j e_j k_j.  A row's scaled error is the
    root mean square of error / (atol + rtol max(|y|, |y_new|)) over the event; with ``q_atol``, at
    least |gap| / q_atol, where gap = <sensitivity, error> + mean over K of h sum_j e_j kq_j is the
    error of the integral in nats.  The step is accepted if that is at most 1.

    * Accepted: y, q, t advance (t exactly to ``t_end`` with the last step, status DONE),
      error_prev = max(error, 1e-4), defect += |gap|, k[0] = k[-1] and kq[0] = kq[-1] if ``fsal``.
    * Either way: h is multiplied by the controller's factor (at most 1 right after a rejection,
      ``min_factor`` where the error is not finite) and cut so as not to pass ``t_end``; h = 0 at
      DONE.  A row whose |h| falls below 16 eps max(|t|, |t_end|) becomes UNDERFLOW, or NON_FINITE
      if its error is not finite.

    Args:
        y: (B, *event), float32 or float64, state; B may be 0.
        k: (S, B, *event), dtype of ``y``, slopes at the stages.
        h: (B,) float64, signed step attempted; must not pass ``t_end``.
        b, e: weights of the solution and of its error, at most S numbers each.
        rtol, atol: tolerances per coordinate; atol > 0.
        controller: step-size controller.
        error_prev: (B,) float64, error of the last accepted step; start with 1e-4.
        rejected: (B,) bool, whether the row's last attempt was rejected; start with False.
        t, t_end: (B,) float64, clock and goal; t_end < t integrates backwards.
        status: (B,) int32, see ``Status``.
        q, kq: (B, K) and (S, B, K) float64, integrals that ride along and their slopes.
        q_atol: tolerance of the integral in nats for one step; None: it does not steer the step.
        sensitivity: (B, *event), dtype of ``y``: derivative of the integral by the state.
        defect: (B,) float64, accumulates |gap| in nats.
        fsal: the last stage is the first of the next step.
        backend: "auto", "native" or "torch".

    Raises:
        TypeError: a dtype other than the above.
        ValueError: shapes that do not fit, or a tensor that is not contiguous within its rows.
        RuntimeError: a backend asked for by name that cannot run.
    """
    _check_state(y, k, h, b, e)
    if not (rtol >= 0 and atol > 0 and (q_atol is None or q_atol > 0)):
        raise ValueError(f"rtol must be >= 0, atol and q_atol > 0, got {rtol=}, {atol=}, {q_atol=}")
    _check("y", y, y, y.shape, y.dtype, lead=1, written=True)
    _check("k", k, y, k.shape, y.dtype, lead=2, written=True)
    rows = y.shape[:1]
    clocks = {"h": h, "error_prev": error_prev, "t": t, "t_end": t_end, "defect": defect}
    for name, values in clocks.items():
        if values is not None:
            _check(name, values, y, rows, torch.float64, lead=0)
    _check("rejected", rejected, y, rows, torch.bool, lead=0)
    _check("status", status, y, rows, torch.int32, lead=0)
    if sensitivity is not None:
        _check("sensitivity", sensitivity, y, y.shape, y.dtype, lead=1)
    if (q is None) != (kq is None):
        raise ValueError("q and kq go together: pass both or neither")
    if q is not None:
        _check("q", q, y, (len(y), q.shape[-1]), torch.float64, lead=0)
        _check("kq", kq, y, (len(k), *q.shape), torch.float64, lead=2, written=True)
    run = native if choose("rk_step", backend, y, k) == "native" else reference
    return run.advance(
        y,
        k,
        h,
        b=b,
        e=e,
        rtol=rtol,
        atol=atol,
        controller=controller,
        error_prev=error_prev,
        rejected=rejected,
        t=t,
        t_end=t_end,
        status=status,
        q=q,
        kq=kq,
        q_atol=q_atol,
        sensitivity=sensitivity,
        defect=defect,
        fsal=fsal,
    )


def _check_state(y: Tensor, k: Tensor, h: Tensor, *weights: Sequence[float]) -> None:
    if y.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"y must be float32 or float64, got {y.dtype}; convert it with y.float()")
    if y.dim() < 2 or 0 in y.shape[1:]:
        raise ValueError(f"y must have shape (B, *event) with an event, got {tuple(y.shape)}")
    if k.shape[1:] != y.shape or max(map(len, weights)) > min(len(k), MAX_STAGES):
        raise ValueError(
            f"k must have shape (stages, *{tuple(y.shape)}) with a stage for each weight, "
            f"{max(map(len, weights))}, and at most {MAX_STAGES}, got {tuple(k.shape)}"
        )
    _check("k", k, y, k.shape, y.dtype)
    _check("h", h, y, y.shape[:1], torch.float64)


def _check(
    name: str,
    x: Tensor,
    y: Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    lead: int | None = None,
    written: bool = False,
) -> None:
    """Check everything about ``x`` that a kernel, which reads raw addresses, takes for granted.

    With ``lead``, ``x`` must be contiguous once that many dimensions are indexed; if ``written``,
    what those dimensions index must not overlap either (as it does in an expanded tensor).
    """
    if x.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {x.dtype}")
    if x.shape != shape:
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(x.shape)}")
    if x.get_device() != y.get_device():
        raise ValueError(f"{name} is on {x.device}, y on {y.device}; they must be together")
    if lead is None or x.is_contiguous():
        return
    size = x[(0,) * lead].numel()
    overlap = any(x.shape[i] > 1 and x.stride(i) < size for i in range(lead))
    if not _rows_contiguous(x, lead) or (written and overlap):
        raise ValueError(
            f"{name} of shape {tuple(x.shape)} and strides {x.stride()} must be contiguous "
            f"after its first {lead} dimension(s); pass {name}.contiguous()"
        )


def _rows_contiguous(x: Tensor, lead: int) -> bool:
    """Whether ``x`` is contiguous once its first ``lead`` dimensions are indexed."""
    return x.is_contiguous() or x[(0,) * lead].is_contiguous()
