"""``fastlik.odeint``: ordinary differential equations, every row with its own steps."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import checks
from .adaptive import Tolerance, integrate
from .grid import integrate_grid
from .status import Status
from .system import Integration
from .tableau import tableau_named


@dataclass(frozen=True)
class Solution:
    """y (T, B, *event) at the times t (T,) or (B, T); NaN where a row had failed before.

    status (B,) int32 codes of :class:`fastlik.solvers.status.Status`, stopped_at (B,) the time reached;
    nfe, steps, rejected (B,) int64.
    """

    y: Tensor
    t: Tensor
    status: Tensor
    stopped_at: Tensor
    nfe: Tensor
    steps: Tensor
    rejected: Tensor

    @property
    def converged(self) -> Tensor:
        """(B,) bool: rows that reached their last time within the tolerance."""
        return self.status == Status.DONE


class _Function:
    """A plain function f(t, y) as a System."""

    def __init__(self, f: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.f = f

    def __call__(self, t: Tensor, y: Tensor, node: Tensor) -> tuple[Tensor, None]:
        slope = self.f(t, y)
        if not isinstance(slope, Tensor) or slope.shape != y.shape:
            got = tuple(slope.shape) if isinstance(slope, Tensor) else type(slope).__name__
            raise ValueError(f"f(t, y) must return dy/dt of y's shape {tuple(y.shape)}, got {got}")
        return slope, None

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
    max_steps: int = 10_000,
    backend: str = "auto",
) -> Solution:
    """Solve dy/dt = f(t, y) for a batch of independent rows.

    Args:
        f: called with t (b,) float64 and y (b, *event) for whichever b rows are still on their way;
            rows must not depend on each other.  Never called outside a row's time span.
        y0: (B, *event) float32 or float64, the state at the first time.
        t: (T,) times for all rows or (B, T) for each, strictly monotone in either direction.
        method: "rk45" and "tsit5" adapt each row's steps to rtol and atol (root mean square over the
            event); "rk4", "heun" and "euler" take one step from each time to the next.
        max_steps: attempted steps per interval of t after which a row is given up.
        backend: implementation of the Runge-Kutta step, "auto", "native" or "torch".

    Returns:
        :class:`Solution`.  Rows that failed are NaN from there on, flagged in ``status`` and named in a
        warning; every other row is what it would be alone.

    Raises:
        TypeError, ValueError: wrong shapes, times that are not monotone, unknown method.
    """
    tableau = tableau_named(method)
    checks.check_batch(y0, "y0")
    checks.check_positive("rtol", rtol)
    checks.check_positive("atol", atol)
    checks.check_count("max_steps", max_steps)
    t = torch.as_tensor(t, dtype=torch.float64, device=y0.device)
    _check_times(t, len(y0))
    if not tableau.adaptive and t.dim() == 2:
        raise ValueError(f'method="{method}" steps on one grid: t must have shape (T,), not (B, T)')
    system = _Function(f)
    times = t if t.dim() == 2 else t.expand(len(y0), -1)
    now = Integration.start(y0, None, times[:, 0])
    now.status.fill_(Status.DONE)
    states = [y0.clone()]
    for i in range(1, times.shape[1]):
        alive = (now.status == Status.DONE).nonzero().flatten()
        part = now.take(alive)
        if tableau.adaptive:
            tolerance = Tolerance(rtol, atol)
            start, end = times[alive, i - 1], times[alive, i]
            step = integrate(
                system, part.y, start, end, tableau, tolerance, max_steps=max_steps, backend=backend
            )
        else:
            step = integrate_grid(system, part.y, t[i - 1 : i + 1], tableau, backend=backend)
        for counted in ("nfe", "steps", "rejected"):
            getattr(step, counted).add_(getattr(part, counted))
        now.put(alive, step)
        failed = now.status != Status.DONE
        states.append(now.y.masked_fill(failed.reshape(-1, *(1,) * (y0.dim() - 1)), torch.nan))
    _warn_of_failures(now)
    return Solution(torch.stack(states), t, now.status, now.t, now.nfe, now.steps, now.rejected)


def _check_times(t: Tensor, batch: int) -> None:
    if t.dim() not in (1, 2) or t.shape[-1] < 2 or (t.dim() == 2 and len(t) != batch):
        raise ValueError(
            f"t must have shape (T,) or ({batch}, T) with at least two times, got {tuple(t.shape)}"
        )
    gaps = t.diff(dim=-1)
    if not bool(t.isfinite().all()):
        raise ValueError("t holds NaN or infinity")
    if not bool(((gaps > 0).all(-1) | (gaps < 0).all(-1)).all()):
        raise ValueError("t must be strictly increasing or strictly decreasing along its last dimension")


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
