"""A network that is exact: the noise prediction of eight Gaussians on a circle, in plain float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastlik.testing import GaussianMixture


class RingScore(nn.Module):
    """eps(x, time) of an isotropic mixture under VP, with time = -log_snr / 8.

    With v = alpha^2 s^2 + sigma^2 the variance of every component, eps = sigma (x - alpha E[m | x]) / v:
    two small matrix products and a softmax, so that the solver's own work is in plain sight.
    """

    def __init__(self, mixture: GaussianMixture) -> None:
        super().__init__()
        self.variance = mixture.eigenvalues[0, 0].item()
        self.register_buffer("means", mixture.means.float())
        self.register_buffer("squares", mixture.means.float().square().sum(1))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        log_snr = -8 * time[:, None]
        alpha, sigma = torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()
        variance = alpha**2 * self.variance + sigma**2
        logits = (alpha * (x @ self.means.T) - 0.5 * alpha**2 * self.squares) / variance
        return sigma * (x - alpha * (logits.softmax(1) @ self.means)) / variance
