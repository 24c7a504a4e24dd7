"""scipy's RK45 exactly as ``get_likelihood_fn`` of score_sde_pytorch (Song et al. 2021) calls it.

One ODE for the whole batch in a float64 numpy vector, the network in x's dtype; the drift is evaluated for
itself and once more inside the divergence; always one Rademacher probe, kept for the whole integration.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from ..flow import T_DATA, T_PRIOR, standard_nll, with_divergence
from ..workloads import Workload


def likelihood(workload: Workload) -> Callable[[float], Tensor]:
    flow, data, probe = workload.flow, workload.x, workload.signs

    def slope(t: float, state: np.ndarray) -> np.ndarray:
        sample = torch.from_numpy(state[: -len(data)].reshape(data.shape)).to(data.dtype)
        times = torch.ones(len(data), dtype=data.dtype) * t
        drift = flow.in_time(times, sample)
        _, divergence = with_divergence(lambda z: flow.in_time(times, z), sample, probe)
        return np.concatenate([drift.numpy().reshape(-1), divergence.numpy()])

    @torch.no_grad()
    def run(tolerance: float) -> Tensor:
        start = np.concatenate([data.numpy().reshape(-1), np.zeros(len(data))])
        solution = solve_ivp(slope, (T_DATA, T_PRIOR), start, rtol=tolerance, atol=tolerance, method="RK45")
        end = torch.from_numpy(solution.y[:, -1])
        return standard_nll(end[: -len(data)].reshape(data.shape), end[-len(data) :])

    return run
