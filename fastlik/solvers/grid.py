"""Runge-Kutta on a fixed grid."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.rk_step import combine
from .dense import Recorder, Step
from .graph import capture
from .status import Status
from .system import Integration, System, not_past
from .tableau import Tableau

# steps before one is captured: what is made once has been made by then
_EAGER = 5


def integrate_grid(
    system: System,
    y: Tensor,
    grid: Tensor,
    tableau: Tableau,
    *,
    q: Tensor | None = None,
    steps_per_node: int = 1,
    graphs: bool = False,
    recorder: Recorder | None = None,
    backend: str = "auto",
) -> Integration:
    """Integrate with one step per interval of grid (N+1,) or (B, N+1) float64, monotone in either direction.

    ``steps_per_node`` consecutive steps count as one node: a refined grid that keeps the coarse grid's
    random probes differs from it by the discretisation alone.

    Rows that end with a state or integral that is not finite get status NON_FINITE and, as ``t``, the
    grid point where that was first seen.  Nothing is read from the device, except once a step where a
    ``recorder`` watches.  With ``graphs`` a step is captured as a graph (``fastlik.solvers.graph``), which
    replays for all others.
    """
    grid = grid.expand(len(y), -1)
    rows = Integration.start(y, q, grid[:, 0])
    index, reached = torch.arange(len(y), device=y.device), grid[:, 0]
    # an embedded method's last stage serves its error estimate and dense output, nothing else
    stages = tableau.stages - 1 if tableau.adaptive and recorder is None else tableau.stages
    stepper = _Stepper(system, rows, grid, tableau, stages, steps_per_node, backend)
    step, steps = stepper.step, grid.shape[1] - 1
    for n in range(steps):
        if graphs and n == _EAGER and recorder is None:
            step = capture(stepper.step, y.device)
        before = None if recorder is None else rows.y.clone()
        h = step()
        if recorder is not None:
            last, reached = reached, torch.where(rows.running, rows.t, reached)
            taken = Step(
                index, last, reached, h, before, rows.y, stepper.k[0], stepper.k[1:], tableau.dense, backend
            )
            pending = recorder.pending(taken)
            total = int(pending.sum())
            if total:
                recorder.add(taken, pending, total)
    rows.nfe += stages * steps
    rows.steps += steps
    rows.status.masked_fill_(rows.running, int(Status.DONE))
    return rows


class _Stepper:
    """All rows at a step of the grid, whose number the device counts: a graph of one step serves for all."""

    def __init__(
        self,
        system: System,
        rows: Integration,
        grid: Tensor,
        tableau: Tableau,
        stages: int,
        steps_per_node: int,
        backend: str,
    ) -> None:
        self.system, self.rows, self.grid, self.tableau = system, rows, grid, tableau
        self.steps_per_node, self.backend = steps_per_node, backend
        self.number = torch.zeros_like(rows.steps)
        self.k = rows.y.new_empty(stages, *rows.y.shape)

    def step(self) -> Tensor:
        """The next step; its length (B,)."""
        rows, tableau, k = self.rows, self.tableau, self.k
        at = self.number[:, None]
        start, end = self.grid.gather(1, at)[:, 0], self.grid.gather(1, at + 1)[:, 0]
        h = end - start
        node = self.number // self.steps_per_node
        for i in range(len(k)):
            t = not_past(end, h, start + tableau.c[i] * h)
            state = combine(rows.y, k, tableau.a[i], h, backend=self.backend) if i else rows.y
            k[i], integrand = self.system(t, state, node)
            if integrand is not None and tableau.b[i] != 0:
                rows.q += tableau.b[i] * h[:, None] * integrand
        combine(rows.y, k, tableau.b[: len(k)], h, out=rows.y, backend=self.backend)
        _flag_non_finite(rows, end)
        self.number += 1
        return h


def _flag_non_finite(rows: Integration, t: Tensor) -> None:
    finite = rows.y.flatten(1).isfinite().all(1)
    if rows.q is not None:
        finite &= rows.q.isfinite().all(1)
    running = rows.running
    rows.t.copy_(torch.where(running, t, rows.t))
    rows.status.masked_fill_(running & ~finite, int(Status.NON_FINITE))
