"""What is subtracted from a path integral: the error of a known noise prediction, whose integral is known.

All are halves of E||eps - eps_hat||^2 in nats, as functions of x_0, noise and snr = alpha^2 / sigma^2, in two
forms that have one expectation (Stein's identity, for any differentiable eps_hat):

    explicit    1/2 ||eps - eps_hat||^2
    implicit    1/2 (d + ||eps_hat||^2) - sigma div eps_hat

An anchor takes noise away from an estimate and leaves its expectation as it is, whatever its moments.
"""

from __future__ import annotations

from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..model import ScoreModel
from .prior import data_moments


class Anchor(Protocol):
    """x0 and noise are (N, *event), snr (N,) float64; every result is float64 nats."""

    def explicit(self, x0: Tensor, noise: Tensor, snr: Tensor) -> Tensor:
        """(N,) at one noise."""

    def implicit(self, x0: Tensor, noise: Tensor, snr: Tensor) -> Tensor:
        """(N,) at one noise."""

    def expected(self, x0: Tensor, snr: Tensor) -> Tensor:
        """(N, S): the expectation of either over the noise, at each snr (S,)."""

    def integral(self, x0: Tensor, high: float, low: float) -> Tensor:
        """(N,): the expectation's integral over -log snr from snr ``high`` to ``low``."""


class GaussianAnchor:
    """The noise prediction of N(mean, spread): sigma (alpha^2 spread + sigma^2 I)^-1 (x - alpha mean).

    Args:
        mean: (d,) float64.
        spread: (d,) variances or (d, d) covariance, float64.
    """

    def __init__(self, mean: Tensor, spread: Tensor) -> None:
        self.mean = mean
        variance, self.axes = (spread, None) if spread.dim() == 1 else torch.linalg.eigh(spread)
        self.variance = variance.clamp(min=0)  # rounding of a singular covariance

    def _coordinates(self, values: Tensor) -> Tensor:
        """(N, *event) -> (N, d) float64 along the axes."""
        flat = values.flatten(1).double()
        return flat if self.axes is None else flat @ self.axes

    def _offset(self, x0: Tensor) -> Tensor:
        return self._coordinates(x0.flatten(1).double() - self.mean)

    def explicit(self, x0: Tensor, noise: Tensor, snr: Tensor) -> Tensor:
        r = snr[:, None]
        signal = r * self.variance
        error = (signal * self._coordinates(noise) - r.sqrt() * self._offset(x0)) / (1 + signal)
        return 0.5 * error.square().sum(1)

    def implicit(self, x0: Tensor, noise: Tensor, snr: Tensor) -> Tensor:
        r = snr[:, None]
        shrink = 1 / (1 + r * self.variance)
        guess = shrink * (r.sqrt() * self._offset(x0) + self._coordinates(noise))
        return 0.5 * (1 + guess.square() - 2 * shrink).sum(1)

    def expected(self, x0: Tensor, snr: Tensor) -> Tensor:
        signal = snr[:, None] * self.variance
        shrink = 1 / (1 + signal)
        own = (signal * shrink).square().sum(1)
        return 0.5 * (own + self._offset(x0).square() @ (snr[:, None] * shrink.square()).T)

    def integral(self, x0: Tensor, high: float, low: float) -> Tensor:
        # of (r v^2 + offset^2) / (1 + r v)^2 over r, for each variance v
        upper, lower = 1 + high * self.variance, 1 + low * self.variance
        between = (high - low) / (upper * lower)
        own = (upper / lower).log() - self.variance * between
        return 0.5 * (own.sum() + self._offset(x0).square() @ between)


class PlainAnchor:
    """Where no moments are known: d alpha^2 / (alpha^2 + sigma^2), the error for data of unit variance.

    The noise alone is followed, not x_0, so that data of another scale are not met with a wrong guess
    (Li & Yan 2024 subtract its expectation).
    """

    def explicit(self, x0: Tensor, noise: Tensor, snr: Tensor) -> Tensor:
        return 0.5 * snr / (1 + snr) * _square(noise)

    def implicit(self, x0: Tensor, noise: Tensor, snr: Tensor) -> Tensor:
        size = x0.shape[1:].numel()
        return 0.5 * (snr * size + _square(noise) - size) / (1 + snr)

    def expected(self, x0: Tensor, snr: Tensor) -> Tensor:
        size = x0.shape[1:].numel()
        return (0.5 * size * snr / (1 + snr)).expand(len(x0), -1)

    def integral(self, x0: Tensor, high: float, low: float) -> Tensor:
        size = x0.shape[1:].numel()
        ratio = torch.tensor((1 + high) / (1 + low), dtype=torch.float64, device=x0.device)
        return (0.5 * size * ratio.log()).expand(len(x0))


def _square(noise: Tensor) -> Tensor:
    return noise.flatten(1).double().square().sum(1)


# each model's anchor with the moments that it was made of: a loss asks for it in every step
_known: WeakKeyDictionary[ScoreModel, tuple[Tensor, Anchor]] = WeakKeyDictionary()


def choose_anchor(model: ScoreModel, size: int, device: torch.device) -> Anchor:
    """The Gaussian of the data's moments, where the model knows them."""
    moments = data_moments(model, size)
    if moments is None:
        return PlainAnchor()
    made_of, anchor = _known.get(model, (None, None))
    if made_of is not model.data_spread or len(anchor.mean) != size or anchor.mean.device != device:
        anchor = GaussianAnchor(*(value.to(device) for value in moments))
        _known[model] = model.data_spread, anchor
    return anchor
