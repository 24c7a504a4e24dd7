"""Gaussian mixtures: density, score, Hessian and their diffusions in closed form.

If x_0 is sum_k w_k N(m_k, C_k), then x_t = alpha x_0 + sigma eps is
sum_k w_k N(alpha m_k, alpha^2 C_k + sigma^2 I), so that every estimator has an exact answer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..model import ScoreModel, coefficients, wrap
from ..schedule import Schedule


class GaussianMixture:
    """sum_k weights[k] N(means[k], covariances[k]) over vectors of d numbers, float64.

    Args:
        weights: (K,), positive; normalised here.
        means: (K, d).
        covariances: (K, d, d), or (K,) / a number for isotropic ones (the variance).
    """

    def __init__(
        self, weights: Tensor | list, means: Tensor | list, covariances: Tensor | list | float
    ) -> None:
        weights = torch.as_tensor(weights, dtype=torch.float64)
        self.weights = weights / weights.sum()
        self.means = torch.as_tensor(means, dtype=torch.float64)
        count, size = self.means.shape
        covariances = torch.as_tensor(covariances, dtype=torch.float64)
        if covariances.dim() < 3:
            covariances = covariances.expand(count)[:, None, None] * torch.eye(size, dtype=torch.float64)
        self.covariances = covariances
        self.eigenvalues, self.axes = torch.linalg.eigh(covariances)  # (K, d), (K, d, d)

    @classmethod
    def random(cls, components: int, size: int, seed: int = 0) -> GaussianMixture:
        """A mixture with full random covariances, standard deviations from 0.05 to 0.6."""
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        axes, _ = torch.linalg.qr(draw(components, size, size))
        spread = 0.05 + 0.55 * torch.rand(components, size, generator=generator, dtype=torch.float64)
        covariances = (axes * spread[:, None] ** 2) @ axes.mT
        weights = torch.rand(components, generator=generator, dtype=torch.float64) + 0.2
        return cls(weights, draw(components, size), covariances)

    @classmethod
    def ring(cls, components: int = 8, radius: float = 1.0, std: float = 0.1) -> GaussianMixture:
        """Isotropic Gaussians on a circle: a sharp multimodal density in two dimensions."""
        turn = torch.arange(components, dtype=torch.float64) * (2 * math.pi / components)
        means = radius * torch.stack((turn.cos(), turn.sin()), 1)
        return cls(torch.ones(components), means, std**2)

    @property
    def size(self) -> int:
        return self.means.shape[1]

    @property
    def mean(self) -> Tensor:
        return self.weights @ self.means

    @property
    def covariance(self) -> Tensor:
        offset = self.means - self.mean
        second = self.covariances + offset[:, :, None] * offset[:, None]
        return torch.einsum("k,kij->ij", self.weights, second)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """(n, d) float64 draws."""
        generator = torch.Generator().manual_seed(seed)
        component = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.size, generator=generator, dtype=torch.float64)
        scaled = noise * self.eigenvalues[component].sqrt()
        return self.means[component] + torch.einsum("bij,bj->bi", self.axes[component], scaled)

    def _components(
        self, x: Tensor, alpha: Tensor | float, sigma: Tensor | float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """log joint (B, K), responsibilities (B, K), whitened offset and variances (B, K, d)."""
        alpha, sigma = (
            torch.as_tensor(value, dtype=torch.float64).reshape(-1, 1, 1) for value in (alpha, sigma)
        )
        offset = x.double()[:, None] - alpha * self.means
        projected = torch.einsum("kji,bkj->bki", self.axes, offset)
        variance = alpha**2 * self.eigenvalues + sigma**2
        log_joint = self.weights.log() - 0.5 * (projected**2 / variance + (2 * math.pi * variance).log()).sum(
            -1
        )
        return log_joint, log_joint.softmax(1), projected / variance, variance

    def log_density(self, x: Tensor, alpha: Tensor | float = 1.0, sigma: Tensor | float = 0.0) -> Tensor:
        """log p(x_t = x) in nats, (B,) float64; alpha, sigma are numbers or (B,)."""
        return self._components(x, alpha, sigma)[0].logsumexp(1)

    def score(self, x: Tensor, alpha: Tensor | float = 1.0, sigma: Tensor | float = 0.0) -> Tensor:
        """grad log p_t(x), (B, d) float64."""
        _, r, white, _ = self._components(x, alpha, sigma)
        return -torch.einsum("bk,kij,bkj->bi", r, self.axes, white)

    def denoised(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x_0 | x_t = x], (B, d) float64; regular where alpha or sigma is 0."""
        _, r, white, _ = self._components(x, alpha, sigma)
        alpha = torch.as_tensor(alpha, dtype=torch.float64).reshape(-1, 1, 1)
        shift = torch.einsum("kij,bkj->bki", self.axes, alpha * self.eigenvalues * white)
        return (r[..., None] * (self.means + shift)).sum(1)

    def hessian(self, x: Tensor, alpha: Tensor | float = 1.0, sigma: Tensor | float = 0.0) -> Tensor:
        """Hessian of log p_t, (B, d, d) float64: E_r[H_k + s_k s_k'] - s s'."""
        _, r, white, variance = self._components(x, alpha, sigma)
        scores = -torch.einsum("kij,bkj->bki", self.axes, white)
        curvature = -torch.einsum("kij,bkj,klj->bkil", self.axes, 1 / variance, self.axes)
        second = curvature + scores[..., :, None] * scores[..., None, :]
        mean_score = (r[..., None] * scores).sum(1)
        return (r[..., None, None] * second).sum(1) - mean_score[:, :, None] * mean_score[:, None]

    def laplacian_gradient(
        self, x: Tensor, alpha: Tensor | float = 1.0, sigma: Tensor | float = 0.0
    ) -> Tensor:
        """grad tr Hessian of log p_t, (B, d) float64 (the third-order score term)."""
        _, r, white, variance = self._components(x, alpha, sigma)
        s = -torch.einsum("kij,bkj->bki", self.axes, white)
        hessian_s = -torch.einsum("kij,bkj,klj,bkl->bki", self.axes, 1 / variance, self.axes, s)
        trace = -(1 / variance).sum(-1, keepdim=True)
        square = (s**2).sum(-1, keepdim=True)
        first = (r[..., None] * ((square + trace) * s + 2 * hessian_s)).sum(1)
        mean = (r[..., None] * s).sum(1)
        curvature = -torch.einsum("kij,bkj,klj->bkil", self.axes, 1 / variance, self.axes)
        second = (r[..., None, None] * (curvature + s[..., :, None] * s[..., None, :])).sum(1)
        trace_second = second.diagonal(dim1=1, dim2=2).sum(-1, keepdim=True)
        return (
            first
            - trace_second * mean
            - 2 * torch.einsum("bij,bj->bi", second, mean)
            + 2 * (mean**2).sum(-1, keepdim=True) * mean
        )

    def model(
        self,
        schedule: Schedule,
        predicts: str = "noise",
        *,
        misfit: float = 0.0,
        moments: bool = False,
    ) -> ScoreModel:
        """The exact score model of this distribution in any parameterisation.

        misfit: multiplies the score by (1 + misfit), a model with a known error.  moments: attach the
        distribution's mean and covariance, so that the matched prior is used.
        """
        return wrap(
            _MixtureNet(self, schedule, predicts, misfit),
            schedule,
            predicts,
            moments=(self.mean, self.covariance) if moments else None,
        )


class _MixtureNet(nn.Module):
    """The network that would have learned a mixture's score exactly."""

    def __init__(self, mixture: GaussianMixture, schedule: Schedule, predicts: str, misfit: float) -> None:
        super().__init__()
        self.mixture, self.schedule = mixture, schedule
        self.predicts, self.misfit = predicts, misfit

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        schedule, t = self.schedule, t.double()
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        state = x.flatten(1).double()
        if self.predicts == "edm":  # F is called with c_in x
            state = state * torch.hypot(sigma, alpha * 0.5)[:, None]
        return self._prediction(state, t, alpha, sigma).to(x.dtype).reshape(x.shape)

    def _prediction(self, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        a, s = alpha[:, None], sigma[:, None]
        noise = -s * self.mixture.score(x, alpha, sigma) * (1 + self.misfit)
        if self.misfit:
            denoised = (x - s * noise) / a
        else:
            denoised = self.mixture.denoised(x, alpha, sigma)
        if self.predicts == "noise":
            return noise
        if self.predicts == "score":
            return -noise / s
        if self.predicts == "x0":
            return denoised
        if self.predicts == "v":
            return a * noise - s * denoised
        if self.predicts == "velocity":
            d_alpha, d_sigma = self.schedule.rates(t)
            return d_alpha[:, None] * denoised + d_sigma[:, None] * noise
        of_x, of_output = coefficients("v", "edm", self.schedule, t)
        v = (a * noise - s * denoised) / torch.hypot(a, s)
        return (v - of_x[:, None] * x) / of_output[:, None]
