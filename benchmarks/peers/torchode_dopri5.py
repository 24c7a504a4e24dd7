"""torchode's dopri5: every row takes its own steps; state and log p in one vector."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torchode
from torch import Tensor

from ..flow import standard_nll, with_divergence
from ..workloads import Workload


def likelihood(workload: Workload, clock: str = "t") -> Callable[[float], Tensor]:
    (velocity, span), x = workload.flow.clocked(clock), workload.x
    ends = torch.tensor(span, dtype=x.dtype)[:, None].expand(2, len(x))

    def slope(t: Tensor, state: Tensor) -> Tensor:
        z = state[:, :-1].reshape(x.shape)
        dz, divergence = with_divergence(lambda z: velocity(t, z), z, workload.probe)
        return torch.cat((dz.flatten(1), divergence[:, None]), 1)

    @torch.no_grad()
    def run(tolerance: float) -> Tensor:
        term = torchode.ODETerm(slope)
        solver = torchode.AutoDiffAdjoint(
            torchode.Dopri5(term), torchode.IntegralController(tolerance, tolerance, term=term)
        )
        start = torch.cat((x.flatten(1), x.new_zeros(len(x), 1)), 1)
        problem = torchode.InitialValueProblem(y0=start, t_start=ends[0], t_end=ends[1])
        end = solver.solve(problem).ys[:, -1]
        return standard_nll(end[:, :-1], end[:, -1])

    return run
