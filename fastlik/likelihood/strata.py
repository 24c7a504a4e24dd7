"""At which noise levels a path integral is evaluated, and with which weights.

A stratum has two pairs of draws or more, a pair two opposite noises at one level.  The pairs of a stratum are
independent and alike, so that their spread gives the variance.  Levels are those of gamma = -log snr,
in which the integral of 1/2 E||eps - eps_hat||^2 is the likelihood's: uniform in gamma is the importance
sampling of Song et al. (2021), section 4.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..derivatives.probes import Stream, uniform
from .anchor import Anchor


class Strata(Protocol):
    """``count`` strata of ``pairs`` pairs each; a row's pair p of stratum s has the number s * pairs + p."""

    count: int
    pairs: int
    gap: float  # nats per dimension by which the sum over strata is known to exceed the integral

    def gamma(self, seed: int, rows: Tensor, number: Tensor) -> Tensor:
        """(N,) float64 levels of the pairs ``number`` (N,) of the rows with ids ``rows`` (N,)."""

    def weights(self, device: torch.device) -> Tensor:
        """(count,) float64: the estimate is the sum over strata of weight times the mean of the pairs."""

    def anchored(self, anchor: Anchor, x0: Tensor) -> Tensor:
        """(B,) what the anchor's expectation amounts to with these levels and weights."""


@dataclass(frozen=True)
class UniformStrata:
    """The integral from ``start`` to ``end`` in gamma plus the integrand at ``start``, which is what the
    reconstruction term asks for: uniform over one more unit of gamma, whose draws are made at ``start``.

    -log N(x_0; x0_hat, (sigma / alpha)^2 I) = d/2 (log 2 pi + start) + 1/2 ||eps - eps_hat||^2.
    """

    start: float
    end: float
    count: int
    pairs: int = 2
    gap: float = 0.0

    @property
    def length(self) -> float:
        return self.end - self.start + 1

    def gamma(self, seed: int, rows: Tensor, number: Tensor) -> Tensor:
        u = uniform(seed, Stream.TIME, rows, 0, number, 1)[:, 0]
        return self.level((number // self.pairs + u) / self.count)

    def level(self, place: Tensor) -> Tensor:
        """gamma at a share in [0, 1] of the length."""
        return (self.start - 1 + self.length * place).clamp(self.start, self.end)

    def weights(self, device: torch.device) -> Tensor:
        return torch.full((self.count,), self.length / self.count, dtype=torch.float64, device=device)

    def anchored(self, anchor: Anchor, x0: Tensor) -> Tensor:
        high, low = math.exp(-self.start), math.exp(-self.end)
        first = torch.tensor([high], dtype=torch.float64, device=x0.device)
        return anchor.integral(x0, high, low) + anchor.expected(x0, first)[:, 0]


@dataclass(frozen=True)
class RiemannSum:
    """DDPM's sum over the levels ``at`` (T,) float64, without the last: in tau = sigmoid(gamma), which is
    1 - alphas_cumprod, the left sum of the integral, dgamma = dtau / (tau (1 - tau)).
    """

    at: Tensor
    pairs: int

    @property
    def count(self) -> int:
        return len(self.at) - 1

    @property
    def gap(self) -> float:
        """Nats per dimension by which the sum of 1 / (2 tau) exceeds its integral: the integrand is near that
        at low noise."""
        tau = self.at.sigmoid()
        return float((tau.diff() / (2 * tau[:-1])).sum() - 0.5 * (tau[-1] / tau[0]).log())

    def gamma(self, seed: int, rows: Tensor, number: Tensor) -> Tensor:
        return self.at.to(number.device)[number // self.pairs]

    def weights(self, device: torch.device) -> Tensor:
        tau, rest = self.at.sigmoid(), (-self.at).sigmoid()
        return (tau.diff() / (tau * rest)[:-1]).to(device)

    def anchored(self, anchor: Anchor, x0: Tensor) -> Tensor:
        return anchor.expected(x0, (-self.at[:-1]).exp().to(x0.device)) @ self.weights(x0.device)
