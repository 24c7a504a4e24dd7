"""The density of the latent x(t_prior), where the integration ends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal

from ..checks import check_choice
from ..model import ScoreModel
from ..schedule import Schedule, remembered

PRIORS = ("auto", "standard")


class Prior(NamedTuple):
    """A distribution over the flattened latent, and what the protocol calls it."""

    distribution: Distribution
    description: str

    def log_prob(self, x: Tensor) -> Tensor:
        """(B, *event) -> (B,) float64 nats."""
        return self.distribution.log_prob(x.flatten(1).double()).double()

    def precision_trace(self, size: int) -> float | None:
        """The trace of the inverse covariance where the prior is Gaussian, otherwise None."""
        distribution = self.distribution
        if isinstance(distribution, StandardNormal):
            return size / distribution.variance
        if isinstance(distribution, DiagonalNormal):
            return float((1 / distribution.variance).sum())
        if isinstance(distribution, MultivariateNormal):
            return float(distribution.precision_matrix.double().diagonal().sum())
        return None

    def sample(self, noise: Tensor, seed: int) -> Tensor:
        """(B, d) float64 draws made of standard normal ``noise`` (B, d) where the prior is Gaussian;
        another distribution draws by itself, from ``seed``."""
        distribution = self.distribution
        if isinstance(distribution, StandardNormal):
            return distribution.variance**0.5 * noise
        if isinstance(distribution, DiagonalNormal):
            return distribution.mean + distribution.variance.sqrt() * noise
        if isinstance(distribution, MultivariateNormal):
            return distribution.loc.double() + noise @ distribution.scale_tril.double().mT
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return distribution.sample(noise.shape[:1]).double()


class DiagonalNormal:
    """N(mean, diag variance) with log_prob summed over coordinates."""

    def __init__(self, mean: Tensor, variance: Tensor) -> None:
        self.mean, self.variance = mean, variance

    def log_prob(self, x: Tensor) -> Tensor:
        square = (x - self.mean) ** 2 / self.variance
        return -0.5 * (square + (2 * math.pi * self.variance).log()).sum(-1)


@dataclass(frozen=True)
class StandardNormal:
    """N(0, variance I)."""

    variance: float

    def log_prob(self, x: Tensor) -> Tensor:
        normaliser = x.shape[-1] * math.log(2 * math.pi * self.variance)
        return -0.5 * (x.square().sum(-1) / self.variance + normaliser)


@remembered
def _coefficients(schedule: Schedule, t: float) -> tuple[float, float]:
    """(alpha, sigma)."""
    return schedule.alpha(t).item(), schedule.sigma(t).item()


def data_moments(model: ScoreModel, size: int) -> tuple[Tensor, Tensor] | None:
    """Mean (size,) and variance (size,) or covariance (size, size) of the data, or None if unknown."""
    if model.moments is None:
        return None
    mean, spread = (value.double() for value in model.moments)
    mean = _vector(mean, size, "mean")
    return mean, spread if size > 1 and spread.shape == (size, size) else _vector(spread, size, "variance")


def latent_moments(model: ScoreModel, t: float, size: int) -> tuple[Tensor, Tensor] | None:
    """Mean (size,) and variance (size,) or covariance (size, size) of x_t, or None if unknown."""
    moments = data_moments(model, size)
    if moments is None:
        return None
    mean, spread = moments
    alpha, sigma = _coefficients(model.schedule, t)
    noise = torch.eye(size).to(spread) if spread.dim() == 2 else 1.0
    return alpha * mean, alpha**2 * spread + sigma**2 * noise


def _vector(value: Tensor, size: int, name: str) -> Tensor:
    if value.numel() not in (1, size):
        raise ValueError(
            f"the {name} in moments has {value.numel()} numbers, but x has events of {size}: pass x shaped "
            f"like the model's data, or moments of 1 or {size} numbers or a ({size}, {size}) covariance"
        )
    return value.reshape(-1).expand(size)


def standard_variance(model: ScoreModel, t: float) -> float:
    """The variance of the published prior: 1, or sigma^2 where alpha is 1."""
    alpha, sigma = _coefficients(model.schedule, t)
    return sigma**2 if alpha == 1.0 else 1.0


def choose_prior(
    prior: str | Distribution, model: ScoreModel, t: float, size: int, device: torch.device
) -> Prior:
    """The prior at time t for events of ``size`` numbers.

    "standard": N(0, I), or N(0, sigma^2 I) where alpha is 1, as published.  "auto": the Gaussian whose
    moments are those of x_t, where the data's are known, otherwise "standard".  A distribution over the
    flattened latent is used as it is.
    """
    if isinstance(prior, Distribution):
        return Prior(prior, repr(prior))
    check_choice("prior", prior, PRIORS)
    moments = latent_moments(model, t, size) if prior == "auto" else None
    if moments is None:
        variance = standard_variance(model, t)
        return Prior(StandardNormal(variance), f"standard: N(0, {variance:.6g} I)")
    mean, spread = (value.to(device) for value in moments)
    if spread.dim() == 1:
        return Prior(DiagonalNormal(mean, spread), "matched: data mean and variances")
    normal = MultivariateNormal(mean, spread)
    return Prior(normal, "matched: data mean and covariance")


def prior_mismatch(model: ScoreModel, t: float, size: int) -> float | None:
    """KL divergence in nats per dimension from the moment-matched Gaussian at time t to the standard
    prior: about what "standard" costs an average sample; None where the moments are unknown."""
    moments = latent_moments(model, t, size)
    if moments is None:
        return None
    mean, spread = moments
    variance = standard_variance(model, t)
    diagonal = spread.diagonal() if spread.dim() == 2 else spread
    log_det = torch.linalg.slogdet(spread)[1] if spread.dim() == 2 else spread.log().sum()
    trace = ((diagonal + mean**2) / variance).sum()
    return float(0.5 * (trace - size - log_det + size * math.log(variance)) / size)
