"""Runge-Kutta on a fixed grid that all rows share."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.rk_step import combine
from .status import Status
from .system import Integration, System
from .tableau import Tableau


def integrate_grid(
    system: System,
    y: Tensor,
    grid: Tensor,
    tableau: Tableau,
    *,
    q: Tensor | None = None,
    steps_per_node: int = 1,
    backend: str = "auto",
) -> Integration:
    """Integrate from grid[0] to grid[-1] with one step per interval; grid (N+1,) float64, monotone.

    ``steps_per_node`` consecutive steps count as one node: a refined grid that keeps the coarse grid's
    random probes differs from it by the discretisation alone.

    Rows that end with a state or integral that is not finite get status NON_FINITE and, as ``t``, the
    grid point where that was first seen.
    """
    rows = Integration.start(y, q, grid[:1].expand(len(y)))
    # an embedded method's last stage only serves its error estimate, which a fixed grid has no use for
    stages = tableau.stages - 1 if tableau.adaptive else tableau.stages
    k = y.new_empty(stages, *y.shape)
    for n, (start, h) in enumerate(zip(grid[:-1].tolist(), grid.diff(), strict=True)):
        step = h.expand(len(y))
        node = torch.full_like(rows.steps, n // steps_per_node)
        for i in range(stages):
            t = torch.full_like(rows.t, start) + tableau.c[i] * step
            state = combine(rows.y, k, tableau.a[i], step, backend=backend) if i else rows.y
            k[i], integrand = system(t, state, node)
            if integrand is not None and tableau.b[i] != 0:
                rows.q += tableau.b[i] * step[:, None] * integrand
        combine(rows.y, k, tableau.b[:stages], step, out=rows.y, backend=backend)
        _flag_non_finite(rows, grid[n + 1])
    rows.nfe += stages * (len(grid) - 1)
    rows.steps += len(grid) - 1
    rows.status[rows.status == Status.RUNNING] = Status.DONE
    return rows


def _flag_non_finite(rows: Integration, t: Tensor) -> None:
    finite = rows.y.flatten(1).isfinite().all(1)
    if rows.q is not None:
        finite &= rows.q.isfinite().all(1)
    running = rows.status == Status.RUNNING
    rows.t = torch.where(running, t, rows.t)
    rows.status[running & ~finite] = Status.NON_FINITE
