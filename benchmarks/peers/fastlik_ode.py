"""``fastlik.ode_nll`` as it comes, but for the prior, which is the peers'."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

import fastlik

from ..workloads import Workload


def likelihood(workload: Workload, **options: object) -> Callable[[float], Tensor]:
    run = evaluator(workload, **options)
    return lambda tolerance: run(tolerance).nats


def evaluator(workload: Workload, **options: object) -> Callable[[float], fastlik.NLL]:
    divergence = "hutchinson" if workload.hutchinson else "exact"

    def run(tolerance: float) -> fastlik.NLL:
        return fastlik.ode_nll(
            workload.model,
            workload.x,
            tolerance=tolerance,
            divergence=divergence,
            prior="standard",
            **options,
        )

    return run
