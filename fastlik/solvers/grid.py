"""Runge-Kutta on a fixed grid."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.rk_step import combine
from .dense import Recorder, Step
from .status import Status
from .system import Integration, System, not_past
from .tableau import Tableau


def integrate_grid(
    system: System,
    y: Tensor,
    grid: Tensor,
    tableau: Tableau,
    *,
    q: Tensor | None = None,
    steps_per_node: int = 1,
    recorder: Recorder | None = None,
    backend: str = "auto",
) -> Integration:
    """Integrate with one step per interval of grid (N+1,) or (B, N+1) float64, monotone in either direction.

    ``steps_per_node`` consecutive steps count as one node: a refined grid that keeps the coarse grid's
    random probes differs from it by the discretisation alone.

    Rows that end with a state or integral that is not finite get status NON_FINITE and, as ``t``, the
    grid point where that was first seen.  Nothing is read from the device, except once a step where a
    ``recorder`` watches.
    """
    grid = grid.expand(len(y), -1)
    rows = Integration.start(y, q, grid[:, 0])
    index, reached = torch.arange(len(y), device=y.device), grid[:, 0]
    # an embedded method's last stage serves its error estimate and dense output, nothing else
    stages = tableau.stages - 1 if tableau.adaptive and recorder is None else tableau.stages
    k = y.new_empty(stages, *y.shape)
    for n in range(grid.shape[1] - 1):
        start, end = grid[:, n], grid[:, n + 1]
        h = end - start
        node = torch.full_like(rows.steps, n // steps_per_node)
        before = None if recorder is None else rows.y.clone()
        for i in range(stages):
            t = not_past(end, h, start + tableau.c[i] * h)
            state = combine(rows.y, k, tableau.a[i], h, backend=backend) if i else rows.y
            k[i], integrand = system(t, state, node)
            if integrand is not None and tableau.b[i] != 0:
                rows.q += tableau.b[i] * h[:, None] * integrand
        combine(rows.y, k, tableau.b[:stages], h, out=rows.y, backend=backend)
        _flag_non_finite(rows, end)
        if recorder is not None:
            last, reached = reached, torch.where(rows.running, end, reached)
            step = Step(index, last, reached, h, before, rows.y, k[0], k[1:], tableau.dense, backend)
            pending = recorder.pending(step)
            total = int(pending.sum())
            if total:
                recorder.add(step, pending, total)
    rows.nfe += stages * (grid.shape[1] - 1)
    rows.steps += grid.shape[1] - 1
    rows.status.masked_fill_(rows.running, int(Status.DONE))
    return rows


def _flag_non_finite(rows: Integration, t: Tensor) -> None:
    finite = rows.y.flatten(1).isfinite().all(1)
    if rows.q is not None:
        finite &= rows.q.isfinite().all(1)
    running = rows.running
    rows.t = torch.where(running, t, rows.t)
    rows.status.masked_fill_(running & ~finite, int(Status.NON_FINITE))
