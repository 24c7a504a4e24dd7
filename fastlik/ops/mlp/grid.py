"""A fixed grid that all rows share, as a table of network evaluations: any explicit method.

The ODE is dz/du = of_state z + of_output F(input_scale z, time).  Evaluation e happens at
y + sum_s stage[e, s] k[s]; its slope goes to k[slot[e]], nowhere if slot[e] < 0; then, if commit[e],
y += sum_s update[e, s] k[s].  The divergence is taken where a weight is not 0, with the probes of node[e]:
q[row, probe, i] += weight[e, i] * divergence.  So the trace may have nodes of its own, and several
quadratures (an estimate and what judges it) share its evaluations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

MAX_SLOTS = 32

_RK4_A = ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0))
_RK4_B = (1 / 6, 1 / 3, 1 / 3, 1 / 6)
_RK4_C = (0.0, 0.5, 0.5, 1.0)


class Ode(NamedTuple):
    """dz/du = of_state z + of_output F(input_scale z, time) at some u; float64, one value for each."""

    time: Tensor
    input_scale: Tensor
    of_state: Tensor
    of_output: Tensor


@dataclass(frozen=True)
class GridTable:
    """E evaluations with S slots for slopes and Q quadratures.

    u, end (E,); stage, update (E, S); weight (E, Q): float64; slot, node (E,): int64; commit (E,): bool; all
    on one device.  ``end`` is where the step ends that evaluation e belongs to.  Raises ValueError where they
    do not fit together.
    """

    u: Tensor
    end: Tensor
    ode: Ode
    stage: Tensor
    update: Tensor
    slot: Tensor
    node: Tensor
    commit: Tensor
    weight: Tensor

    def __post_init__(self) -> None:
        tensors = [getattr(self, item.name) for item in fields(self) if item.name != "ode"]
        for values in (*tensors, *self.ode):
            if len(values) != len(self.u) or not values.is_contiguous() or values.device != self.u.device:
                raise ValueError(
                    f"a grid's tensors must be contiguous, on one device and of {len(self.u)} evaluations"
                )
        slots = self.stage.shape[1]
        if self.update.shape != self.stage.shape or not 1 <= slots <= MAX_SLOTS or len(self.u) == 0:
            raise ValueError(f"a grid needs evaluations, and stage and update (E, S) with S <= {MAX_SLOTS}")
        if int(self.slot.max()) >= slots:
            raise ValueError(f"a slope goes to slot {int(self.slot.max())}, but there are {slots}")

    def to(self, device: torch.device) -> GridTable:
        """The same on a device."""
        if self.u.device == device:
            return self
        tensors = {
            item.name: getattr(self, item.name).to(device) for item in fields(self) if item.name != "ode"
        }
        return GridTable(ode=Ode(*(values.to(device) for values in self.ode)), **tensors)

    @property
    def trace_evaluations(self) -> int:
        return int(self.weight.any(1).sum())


class _Rows:
    """Collects a table's rows."""

    def __init__(self, slots: int, quadratures: int) -> None:
        self.slots, self.quadratures = slots, quadratures
        self.rows: list[tuple] = []

    def add(
        self,
        u: float,
        end: float,
        stage: dict[int, float],
        slot: int,
        node: int,
        weight: Sequence[float],
        update: dict[int, float] | None = None,
    ) -> None:
        dense = self._dense(stage), self._dense(update or {})
        self.rows.append((u, end, *dense, slot, node, bool(update), weight))

    def _dense(self, sparse: dict[int, float]) -> list[float]:
        return [sparse.get(slot, 0.0) for slot in range(self.slots)]

    def table(self, ode: Callable[[Tensor], Ode]) -> GridTable:
        *columns, slot, node, commit, weight = zip(*self.rows, strict=True)
        u, end, stage, update, weight = (torch.tensor(v, dtype=torch.float64) for v in (*columns, weight))
        slot, node, commit = map(torch.tensor, (slot, node, commit))
        return GridTable(u, end, ode(u), stage, update, slot, node, commit, weight)


def runge_kutta(
    ode: Callable[[Tensor], Ode],
    grid: Tensor,
    a: Sequence[Sequence[float]],
    b: Sequence[float],
    c: Sequence[float],
    steps_per_node: int = 1,
) -> GridTable:
    """One step of the tableau (a, b, c) for each interval of grid (N+1,), the trace at its stages.

    As ``fastlik.solvers.grid.integrate_grid``: ``steps_per_node`` consecutive steps share their probes.
    """
    stages, steps = len(b), len(grid) - 1
    start, end = grid[:-1, None], grid[1:, None]
    h, weights = end - start, torch.tensor(b, dtype=torch.float64)
    u = start + h * torch.tensor(c, dtype=torch.float64)
    # rounding must not carry it past the end
    u = torch.where(h >= 0, torch.minimum(u, end), torch.maximum(u, end)).flatten()
    stage = torch.zeros(stages, stages, dtype=torch.float64)
    for i, row in enumerate(a):
        stage[i, : len(row)] = torch.tensor(row, dtype=torch.float64)
    update = torch.zeros(steps, stages, stages, dtype=torch.float64)
    update[:, -1] = h * weights
    return GridTable(
        u=u,
        end=end.expand(-1, stages).flatten(),
        ode=ode(u),
        stage=(h[:, None] * stage).flatten(0, 1),
        update=update.flatten(0, 1),
        slot=torch.arange(stages).repeat(steps),
        node=(torch.arange(steps) // steps_per_node).repeat_interleave(stages),
        commit=(torch.arange(stages) == stages - 1).repeat(steps),
        weight=(h * weights).reshape(-1, 1),
    )


def adams_bashforth(ode: Callable[[Tensor], Ode], grid: Tensor, order: int, weight: Tensor) -> GridTable:
    """One evaluation for each point of grid (N+1,), which need not be equally spaced.

    The first ``order`` - 1 steps are RK4's.  weight (N+1, Q): the trace's quadratures at the grid points.
    """
    points = grid.tolist()
    coefficients = adams_coefficients(grid.unfold(0, order, 1)[:-1], grid[order:]).tolist()
    rows = _Rows(order + 3, weight.shape[1])
    nothing = (0.0,) * weight.shape[1]
    for n, u in enumerate(points):
        here = n % order
        if n == len(points) - 1:
            rows.add(u, u, {}, -1, n, weight[n].tolist())
            break
        end = points[n + 1]
        h = end - u
        if n >= order - 1:
            first = n - order + 1
            update = {(first + j) % order: value for j, value in enumerate(coefficients[first])}
            rows.add(u, end, {}, here, n, weight[n].tolist(), update)
            continue
        slots = (here, order, order + 1, order + 2)
        for i, slot in enumerate(slots):
            stage = {slots[j]: h * value for j, value in enumerate(_RK4_A[i])}
            update = {s: h * value for s, value in zip(slots, _RK4_B, strict=True)} if i == 3 else None
            rows.add(u + _RK4_C[i] * h, end, stage, slot, n, nothing if i else weight[n].tolist(), update)
    return rows.table(ode)


def adams_coefficients(points: Tensor, end: Tensor) -> Tensor:
    """Weights (N, k) of the slopes at ``points`` (N, k) in the integrals from the last one to ``end`` (N,).

    The integral of the polynomial through them (Hairer, Norsett, Wanner, Solving ODEs I, III.5).
    """
    start, step = points[:, -1:], end[:, None] - points[:, -1:]
    powers = torch.arange(points.shape[1], dtype=torch.float64)
    vandermonde = ((points - start) / step)[:, None] ** powers[:, None]
    return step * torch.linalg.solve(vandermonde, (1 / (powers + 1)).expand(len(points), -1))


def gregory_weights(grid: Tensor) -> Tensor:
    """(N+1, 1) quadrature weights of order 4 for an equally spaced grid of at least 6 points."""
    weight = torch.full_like(grid, float(grid[1] - grid[0]))
    ends = torch.tensor([3 / 8, 7 / 6, 23 / 24], dtype=grid.dtype)
    weight[:3] *= ends
    weight[-3:] *= ends.flip(0)
    return weight[:, None]
