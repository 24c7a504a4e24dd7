"""Weights w(t) of the denoising loss in noise units."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..checks import check_choice
from ..schedule import Schedule

WEIGHTINGS = ("likelihood", "uniform")

Weighting = str | Callable[[Tensor], Tensor]


def likelihood_weight(schedule: Schedule, t: Tensor) -> Tensor:
    """g(t)^2 / sigma(t)^2 = |d log_snr / dt|, like t (Song et al. 2021, NeurIPS, theorem 1)."""
    d_alpha, d_sigma = schedule.rates(t)
    return (2 * (d_sigma / schedule.sigma(t) - d_alpha / schedule.alpha(t))).abs()


def weight(weighting: Weighting, schedule: Schedule, t: Tensor) -> Tensor:
    """w at the times t (B,): "likelihood" (g^2 / sigma^2), "uniform" (1), or a function of t.

    Raises ValueError for an unknown name, listing the valid ones, and for a function that does not
    return one number a time.
    """
    if not callable(weighting):
        check_choice("weighting", weighting, WEIGHTINGS)
        return likelihood_weight(schedule, t) if weighting == "likelihood" else torch.ones_like(t)
    values = weighting(t)
    if not isinstance(values, Tensor) or values.shape != t.shape:
        raise ValueError(
            f"a weighting function maps times of shape {tuple(t.shape)} to weights of the same "
            f"shape, got {tuple(getattr(values, 'shape', ())) or type(values).__name__}"
        )
    return values
