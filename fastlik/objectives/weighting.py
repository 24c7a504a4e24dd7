"""Weights w(t) of the denoising loss in noise units."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..checks import check_choice
from ..schedule import Schedule

WEIGHTINGS = ("likelihood", "uniform")

Weighting = str | Callable[[Tensor], Tensor]
OrderWeight = float | Callable[[Tensor], Tensor]


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


def order_weight(weight: OrderWeight, t: Tensor) -> Tensor:
    """The factor of one order's loss at times t (B,): a number, or a function of t.

    Raises ValueError for a function that does not return one weight a time.
    """
    if not callable(weight):
        return torch.full_like(t, weight)
    values = weight(t)
    if not isinstance(values, Tensor) or values.shape != t.shape:
        raise ValueError(
            f"a function in order_weights maps times (B,) to one weight a time, got "
            f"{tuple(getattr(values, 'shape', ())) or type(values).__name__} for {tuple(t.shape)}"
        )
    return values


class above_noise:  # noqa: N801  used like a function
    """A weight of an order that fades out where the noise is smaller than the data's finest structure.

    t -> scale (rho^2 / (rho^2 + level^2))^power, rho = sigma / alpha.  There the targets of second and third
    order are noise of fixed size, and what they should teach vanishes as rho^2 and rho^3.
    """

    def __init__(self, schedule: Schedule, level: float, scale: float = 1.0, power: float = 1.0) -> None:
        self.schedule, self.level, self.scale, self.power = schedule, level, scale, power

    def __call__(self, t: Tensor) -> Tensor:
        return self.scale * torch.sigmoid(-self.schedule.log_snr(t) - 2 * math.log(self.level)) ** self.power

    def __repr__(self) -> str:
        return f"above_noise({self.level}, scale={self.scale}, power={self.power})"
