"""The best that plain PyTorch does: RK4 on a fixed grid in log sigma, torch.func and torch.compile.

The derivatives are taken in reverse mode: compiled, it is the faster one, because PyTorch's forward-mode
rules multiply by zero tangents of the weights and the compiler keeps those products.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..flow import standard_nll
from ..workloads import Workload

# every workload compiles the same source lines; beyond the limit they would silently run uncompiled
torch._dynamo.config.recompile_limit = 64


def likelihood(workload: Workload, compiled: bool = False) -> Callable[[int], Tensor]:
    """As in the other peers; the setting is the number of steps, each of four evaluations."""
    (velocity, span), x = workload.flow.clocked("log_sigma"), workload.x
    basis = (
        torch.eye(workload.dimensions, dtype=x.dtype, device=x.device)
        .reshape(-1, 1, *x.shape[1:])
        .expand(-1, *x.shape)
    )
    vectors = basis if workload.probe is None else workload.probe[None]

    def slope(u: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        dz, pull = torch.func.vjp(lambda z: velocity(u, z), z)
        (products,) = torch.func.vmap(pull)(vectors)
        return dz, (vectors * products).flatten(2).sum((0, 2))

    def step(u: Tensor, h: Tensor, z: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
        k1, q1 = slope(u, z)
        k2, q2 = slope(u + h / 2, z + h / 2 * k1)
        k3, q3 = slope(u + h / 2, z + h / 2 * k2)
        k4, q4 = slope(u + h, z + h * k3)
        return z + h / 6 * (k1 + 2 * (k2 + k3) + k4), change + h / 6 * (q1 + 2 * (q2 + q3) + q4)

    if compiled:
        step = torch.compile(step, dynamic=False, fullgraph=True)

    @torch.no_grad()
    def run(steps: int) -> Tensor:
        grid = torch.linspace(*span, steps + 1, dtype=x.dtype, device=x.device)
        z, change = x, x.new_zeros(len(x))
        for u, h in zip(grid, grid.diff(), strict=False):
            z, change = step(u, h, z, change)
        return standard_nll(z, change)

    return run
