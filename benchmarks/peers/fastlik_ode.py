"""``fastlik.ode_nll`` as it comes, but for the prior, which is the peers'."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

import fastlik

from ..workloads import Workload


def likelihood(workload: Workload, probe_mode: str = "fresh") -> Callable[[float], Tensor]:
    divergence = "hutchinson" if workload.hutchinson else "exact"

    def run(tolerance: float) -> Tensor:
        result = fastlik.ode_nll(
            workload.model,
            workload.x,
            tolerance=tolerance,
            divergence=divergence,
            probe_mode=probe_mode,
            prior="standard",
        )
        return result.nats

    return run
