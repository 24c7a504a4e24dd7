"""Denoisers of azula, with its schedules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..model import ScoreModel, wrap
from ..schedule import Schedule, _time

_POINTS = 1025
_NEWTON_STEPS = 10


def from_azula(denoiser: Any, *, moments: tuple[object, object] | None = None) -> ScoreModel:
    """A denoiser called as ``denoiser(x, t, **condition)`` with t (B,), whose posterior's mean is taken.

    Args:
        denoiser: azula's, with its schedule in ``denoiser.schedule``: t in [0, 1], the data at 0.
        moments: as for :func:`fastlik.wrap`.
    """
    return wrap(denoiser, AzulaSchedule(denoiser.schedule), "x0", output=_mean, moments=moments)


def _mean(posterior: Any) -> Tensor:
    return posterior.mean


@dataclass(frozen=True)
class AzulaSchedule(Schedule):
    """Any function from t in [0, 1] to (alpha, sigma) whose SNR decreases strictly, as azula's schedules are.

    Derivatives are by forward-mode differentiation, the inverse by a table and Newton's method in brackets.
    """

    scales: Callable[[Tensor], tuple[Tensor, Tensor]]
    t_min: float = 0.0
    t_max: float = 1.0

    def alpha(self, t: Tensor | float) -> Tensor:
        return self.scales(_time(t))[0]

    def sigma(self, t: Tensor | float) -> Tensor:
        return self.scales(_time(t))[1]

    def rates(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        return self._scales_and_rates(_time(t))[1]

    def t(self, log_snr: Tensor | float) -> Tensor:
        log_snr = _time(log_snr)
        low, high = self._bracket(log_snr)
        t = 0.5 * (low + high)
        for _ in range(_NEWTON_STEPS):
            (alpha, sigma), (d_alpha, d_sigma) = self._scales_and_rates(t)
            missed = log_snr - 2 * (alpha.log() - sigma.log())
            low, high = torch.where(missed < 0, t, low), torch.where(missed < 0, high, t)
            step, middle = t + 0.5 * missed / (d_alpha / alpha - d_sigma / sigma), 0.5 * (low + high)
            # where the SNR is flat, as VP's is at the data, the middle of the bracket is better
            near = (step - middle).abs() <= high - low
            t = torch.where(near, torch.minimum(torch.maximum(step, low), high), middle)
        return t

    def to_dict(self) -> dict:
        """For the protocol of a result; it does not make the schedule again."""
        own = vars(self.scales).items()
        numbers = {name: value for name, value in own if isinstance(value, (int, float))}
        return {"name": f"azula.{type(self.scales).__name__}", **numbers}

    def _scales_and_rates(self, t: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        return torch.func.jvp(self.scales, (t,), (torch.ones_like(t),))

    @cached_property
    def _table(self) -> Tensor:
        """(2, N) float64: t, and the log-SNR from large to small."""
        t = torch.linspace(self.t_min, self.t_max, _POINTS, dtype=torch.float64)
        return torch.stack((t, self.log_snr(t)))

    def _bracket(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        t, table = self._table.to(log_snr)
        high = torch.searchsorted(-table, -log_snr.contiguous()).clamp(1, _POINTS - 1)
        return t[high - 1], t[high]
