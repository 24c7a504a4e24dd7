"""Closed forms for Gaussian data: misfit models and quantised values."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..schedule import Schedule


def misfit_gaussian_log_density(
    x: Tensor, variances: Tensor, schedule: Schedule, misfit: float, prior_variance: Tensor
) -> Tensor:
    """log p of the ODE whose score is (1 + misfit) times that of N(0, diag variances), (B,) float64.

    The flow is linear: coordinate i is multiplied by
    r = (v_T / v_0)^((1 + misfit) / 2) (alpha_T / alpha_0)^(-misfit), v = alpha^2 variance + sigma^2,
    and the prior is N(0, diag prior_variance).
    """
    ends = torch.tensor([schedule.t_data, schedule.t_prior], dtype=torch.float64)
    alpha, sigma = schedule.alpha(ends), schedule.sigma(ends)
    v = alpha[:, None] ** 2 * variances + sigma[:, None] ** 2
    log_ratio = 0.5 * (1 + misfit) * (v[1] / v[0]).log() - misfit * (alpha[1] / alpha[0]).log()
    latent = x.double() * log_ratio.exp()
    log_prior = -0.5 * (latent**2 / prior_variance + (2 * math.pi * prior_variance).log())
    return (log_prior + log_ratio).sum(1)


def quantised_gaussian_log_mass(
    levels: Tensor, mean: float, std: float, bins: int, low: float, high: float
) -> Tensor:
    """log P(levels) of N(mean, std^2) falling into each bin, summed over coordinates, (B,) float64."""
    width = (high - low) / bins
    left = (low + width * levels.double() - mean) / std
    upper, lower = torch.special.ndtr(left + width / std), torch.special.ndtr(left)
    return (upper - lower).log().flatten(1).sum(1)
