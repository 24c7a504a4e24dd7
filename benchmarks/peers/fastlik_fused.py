"""The kernels of ``fastlik.ops.mlp``: Adams-Bashforth 4 in log sigma, exact trace at every other node."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastlik.likelihood.flow import Trace
from fastlik.likelihood.fused import Fused, fuse
from fastlik.ops.mlp.grid import adams_bashforth, gregory_weights
from fastlik.solvers.clock import Clock

from ..flow import T_DATA, T_PRIOR, standard_nll
from ..workloads import Workload

# logarithmic over nearly all of the VP process, whose sigma / alpha runs from 0.001 to 150
CLOCK = Clock(low=0.01, high=300.0)
EXACT = Trace(True, 1, "rademacher", True, 0, "auto")


def likelihood(workload: Workload) -> Callable[[int], Tensor]:
    """The setting is the number of steps, a multiple of 2 from 10 on."""
    model, rows = workload.model.eval(), torch.arange(len(workload.x))
    ends = torch.tensor([T_DATA, T_PRIOR], dtype=torch.float64)
    scale, span = model.schedule.scale(ends), CLOCK.u(model.schedule.angle(ends)).tolist()

    def run(steps: int) -> Tensor:
        z = workload.x / scale[0].to(workload.x.dtype)
        fused = fuse(model, CLOCK, z, (span[0], span[1]), {})
        assert isinstance(fused, Fused), fused
        grid = torch.linspace(*span, steps + 1, dtype=torch.float64)
        weight = torch.zeros(steps + 1, 1, dtype=torch.float64)
        weight[::2] = gregory_weights(grid[::2])
        end = fused.integrate_grid(z, adams_bashforth(fused.ode, grid, 4, weight), EXACT, rows)
        change = end.q[:, 0, 0] + workload.dimensions * (scale[1] / scale[0]).log()
        return standard_nll(end.y * scale[1].to(z.dtype), change)

    return run
