"""Random times for training: uniform, or in proportion to the likelihood weight.

With gamma = -log_snr the likelihood weight is g^2 / sigma^2 = |d gamma / dt|, so that times drawn
in proportion to it are uniform in gamma (Song et al. 2021, NeurIPS, section 4.1, where the inverse
is found by bisection; here it is the schedule's own closed form).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import check_choice
from ..schedule import Schedule
from .weighting import Weighting, likelihood_weight, weight

TIME_SAMPLINGS = ("importance", "uniform")

LOG_SNR_LIMIT = 15.0
"""Where |log-SNR| is infinite at an end of the path, times stop at this value (sigma = 5.5e-4)."""


class Times(NamedTuple):
    """Drawn times and the density they were drawn from, both (B,) float64."""

    t: Tensor
    density: Tensor


def log_snr_range(schedule: Schedule, times: tuple[float, float] | None = None) -> tuple[float, float]:
    """(log-SNR at the prior, log-SNR at the data), infinite ends cut at ``LOG_SNR_LIMIT``.

    times: (t_data, t_prior) where it is not the schedule's whole path.
    """
    t_data, t_prior = times or (schedule.t_data, schedule.t_prior)
    ends = (float(schedule.log_snr(t)) for t in (t_prior, t_data))
    low, high = (end if math.isfinite(end) else math.copysign(LOG_SNR_LIMIT, end) for end in ends)
    return low, high


def importance_normaliser(schedule: Schedule) -> float:
    """Z, the integral of g^2 / sigma^2 over the path: the length of its range of log-SNR."""
    low, high = log_snr_range(schedule)
    return high - low


def stratified(batch: int, device: torch.device | str | None = None) -> Tensor:
    """(B,) float64 in [0, 1), each uniform, together spread evenly, in random order.

    One offset u and the grid (u + i / B) mod 1 (Kingma et al. 2021, VDM, appendix I.1); draws from
    torch's global generator.
    """
    offset = torch.rand((), dtype=torch.float64, device=device)
    grid = torch.arange(batch, dtype=torch.float64, device=device) / max(batch, 1)
    return ((offset + grid) % 1.0)[torch.randperm(batch, device=device)]


def sample_times(schedule: Schedule, kind: str, uniform: Tensor) -> Times:
    """Times from uniform numbers (B,) in [0, 1).

    Args:
        kind: "importance" for a density in proportion to g^2 / sigma^2, "uniform" for uniform t;
            both on the part of the path where the log-SNR is within ``log_snr_range``.

    Raises:
        ValueError: unknown ``kind``; the valid ones are listed.
    """
    check_choice("time_sampling", kind, TIME_SAMPLINGS)
    uniform = uniform.double()
    low, high = log_snr_range(schedule)
    if kind == "importance":
        t = schedule.t(high + (low - high) * uniform)
        return Times(t, likelihood_weight(schedule, t) / (high - low))
    start, end = float(schedule.t(high)), float(schedule.t(low))
    return Times(start + (end - start) * uniform, torch.full_like(uniform, 1 / abs(end - start)))


def weight_integral(weighting: Weighting, schedule: Schedule, points: int = 1000) -> float:
    """The integral of w(t) over the path, by the midpoint rule in log-SNR; Z for "likelihood"."""
    grid = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    times = sample_times(schedule, "importance", grid)
    return float((weight(weighting, schedule, times.t) / times.density).mean())
