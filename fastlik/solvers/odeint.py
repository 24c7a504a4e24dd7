"""``fastlik.odeint``: ordinary differential equations, every row with its own steps."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import checks
from ..ops.rk_step.reference import per_row
from .adaptive import Tolerance, integrate
from .dense import Interpolant, Path, Samples
from .grid import integrate_grid
from .status import Status
from .system import Integration
from .tableau import tableau_named

# in units of the dtype's eps: below a few roundings of the state, no step can meet a tolerance
_LEAST_RTOL = 8


@dataclass(frozen=True)
class Solution:
    """y (T, B, *event) at the times t (T,) or (B, T); NaN where a row had failed before.

    status (B,) int32 codes of :class:`fastlik.solvers.status.Status`, stopped_at (B,) float64 the time
    reached; nfe, steps, rejected (B,) int64: evaluations of f, steps taken, attempts that were not;
    interpolant the solution as a function of time, if ``dense=True`` asked for it.
    """

    y: Tensor
    t: Tensor
    status: Tensor
    stopped_at: Tensor
    nfe: Tensor
    steps: Tensor
    rejected: Tensor
    interpolant: Interpolant | None = None

    @property
    def converged(self) -> Tensor:
        """(B,) bool: rows that reached their last time within the tolerance."""
        return self.status == Status.DONE

    def evaluate(self, t: Tensor | float) -> Tensor:
        """The solution (T, B, *event) at any times t (T,) or (B, T), or (B, *event) at a single one.

        Accurate to the method's dense output (order 4 for rk45 and tsit5, 3 for rk4); NaN outside what a
        row's integration has covered.

        Raises:
            RuntimeError: without ``odeint(..., dense=True)``.
        """
        if self.interpolant is None:
            raise RuntimeError("the steps were not kept; solve with odeint(..., dense=True)")
        return self.interpolant(t)


class _Function:
    """A plain function f(t, y) as a System."""

    def __init__(self, f: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.f = f

    def __call__(self, t: Tensor, y: Tensor, node: Tensor) -> tuple[Tensor, None]:
        slope = self.f(t, y.detach())  # f may call requires_grad_() on what it is given
        if not isinstance(slope, Tensor) or slope.shape != y.shape:
            got = tuple(slope.shape) if isinstance(slope, Tensor) else type(slope).__name__
            raise ValueError(f"f(t, y) must return dy/dt of y's shape {tuple(y.shape)}, got {got}")
        return slope.detach(), None

    def take(self, index: Tensor) -> _Function:
        return self

    def sensitivity(self, t: Tensor, y: Tensor, dy: Tensor) -> None:
        return None


def odeint(
    f: Callable[[Tensor, Tensor], Tensor],
    y0: Tensor,
    t: Tensor,
    *,
    method: str = "rk45",
    rtol: float = 1e-6,
    atol: float = 1e-8,
    first_step: float | None = None,
    max_step: float | None = None,
    max_steps: int = 10_000,
    dense: bool = False,
    backend: str = "auto",
) -> Solution:
    """Solve dy/dt = f(t, y) for a batch of independent rows.

    Args:
        f: called with t (b,) float64 and y (b, *event), of y0's dtype, for whichever b rows are still on
            their way; rows must not depend on each other.  Never called outside a row's time span.
        y0: (B, *event) float32 or float64, the state at the first time.
        t: (T,) times for all rows or (B, T) for each, from the first to the last in either direction;
            equal times are allowed.  Where a method is adaptive they do not change its steps and cost no
            evaluations: the states between two steps are interpolated.
        method: "rk45" and "tsit5" adapt each row's steps to rtol and atol; "rk4", "heun" and "euler" take
            one step from each time to the next.
        rtol, atol: local error of each step, root mean square over the event.  Below the precision of f
            itself, the steps follow its rounding errors and multiply (for a bfloat16 f, below 4e-3).
        first_step: first step of the adaptive methods; chosen by Hairer's rule where None.
        max_step: largest step.  With a fixed method, every interval of t (T,) is divided into the fewest
            equal steps that are not larger.
        max_steps: attempted steps after which a row of an adaptive method is given up; with a first step
            to choose, f is evaluated at most 2 + 6 max_steps times.
        dense: keep the steps, for :meth:`Solution.evaluate`.
        backend: implementation of the Runge-Kutta step, "auto", "native" or "torch".

    Returns:
        :class:`Solution`.  Rows that failed are NaN from there on, flagged in ``status`` and named in a
        warning; every other row is what it would be alone.

    Raises:
        TypeError, ValueError: wrong shapes, times that are not monotone, unknown method, a tolerance that
            y0's dtype cannot resolve.
    """
    tableau = tableau_named(method)
    checks.check_batch(y0, "y0")
    if y0.requires_grad and torch.is_grad_enabled():
        raise ValueError("odeint does not differentiate through its solution; pass y0.detach()")
    _check_tolerance(rtol, atol, y0.dtype)
    checks.check_count("max_steps", max_steps)
    for name, size in (("first_step", first_step), ("max_step", max_step)):
        if size is not None:
            checks.check_positive(name, size)
    t = torch.as_tensor(t, dtype=torch.float64, device=y0.device)
    _check_times(t, len(y0))
    y0 = y0.detach()
    start, goal = t.expand(len(y0), -1)[:, [0, -1]].unbind(1)
    path = Path(start, goal, y0, tableau.degree) if dense else None
    samples = Samples(t, y0)
    if tableau.adaptive:
        end = integrate(
            _Function(f),
            y0,
            start,
            goal,
            tableau,
            Tolerance(rtol, atol),
            first_step=first_step,
            max_step=max_step or torch.inf,
            max_steps=max_steps,
            recorder=path or (samples if t.shape[-1] > 2 else None),
            backend=backend,
        )
    else:
        grid = t if max_step is None else _divided(t, max_step)
        end = integrate_grid(_Function(f), y0, grid, tableau, recorder=path or samples, backend=backend)
    interpolant = path.interpolant() if path else None
    y = interpolant(t) if interpolant else samples.y
    y[-1] = torch.where(per_row(end.status == Status.DONE, y0), end.y, torch.nan)
    _warn_of_failures(end)
    return Solution(y, t, end.status, end.t, end.nfe, end.steps, end.rejected, interpolant)


def _check_tolerance(rtol: float, atol: float, dtype: torch.dtype) -> None:
    checks.check_positive("rtol", rtol)
    checks.check_positive("atol", atol)
    least = _LEAST_RTOL * torch.finfo(dtype).eps
    if rtol < least:
        remedy = "pass y0.double() or a larger rtol" if dtype == torch.float32 else "pass a larger rtol"
        raise ValueError(f"rtol={rtol:g} is below what {dtype} resolves, {least:.2g}; {remedy}")


def _check_times(t: Tensor, batch: int) -> None:
    if t.dim() not in (1, 2) or t.shape[-1] < 2 or (t.dim() == 2 and len(t) != batch):
        raise ValueError(
            f"t must have shape (T,) or ({batch}, T) with at least two times, got {tuple(t.shape)}"
        )
    gaps = t.diff(dim=-1)
    if not bool(t.isfinite().all()):
        raise ValueError("t holds NaN or infinity")
    if not bool(((gaps >= 0).all(-1) | (gaps <= 0).all(-1)).all()):
        raise ValueError("t must not change direction along its last dimension; sort it")


def _divided(t: Tensor, max_step: float) -> Tensor:
    """The grid (N+1,) that divides each interval of t (T,) into the fewest equal steps up to max_step."""
    if t.dim() == 2:
        raise ValueError("max_step with a fixed method needs one grid for all rows: t of shape (T,)")
    gaps = t.diff()
    # not one step more for a quotient that is whole but for its rounding
    counts = (gaps.abs() / max_step - 1e-9).ceil().clamp(min=1).long()
    parts = [torch.arange(n, device=t.device) / n for n in counts.tolist()]
    inner = t[:-1].repeat_interleave(counts) + gaps.repeat_interleave(counts) * torch.cat(parts)
    return torch.cat((inner, t[-1:]))


def _warn_of_failures(rows: Integration) -> None:
    failed = (rows.status != Status.DONE).nonzero().flatten().tolist()
    if failed:
        first = Status(int(rows.status[failed[0]]))
        warnings.warn(
            f"{checks.describe_rows(failed)} failed and {'is' if len(failed) == 1 else 'are'} NaN from "
            f"there on: {first.description} (row {failed[0]} at t = {rows.t[failed[0]]:.6g})",
            RuntimeWarning,
            stacklevel=3,
        )
