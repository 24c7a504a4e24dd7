"""torchdiffeq's dopri5 on the state augmented with log p, as FFJORD and most code after it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchdiffeq import odeint

from ..flow import standard_nll, with_divergence
from ..workloads import Workload


def likelihood(workload: Workload, clock: str = "t") -> Callable[[float], Tensor]:
    (velocity, span), x = workload.flow.clocked(clock), workload.x
    ends = torch.tensor(span, dtype=x.dtype, device=x.device)

    def slope(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return with_divergence(lambda z: velocity(t, z), state[0], workload.probe)

    @torch.no_grad()
    def run(tolerance: float) -> Tensor:
        start = (x, x.new_zeros(len(x)))
        latent, change = odeint(slope, start, ends, rtol=tolerance, atol=tolerance, method="dopri5")
        return standard_nll(latent[-1], change[-1])

    return run
