"""Toy densities in one and two dimensions; each function returns n samples, float32.

Samples depend on the seed alone and leave torch's global generator untouched.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _normal(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def _uniform(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=generator)


def checkerboard(n: int, seed: int = 0) -> Tensor:
    """(n, 2): uniform on 8 of the 16 squares of [-4, 4]^2; its entropy is log 32 nats."""
    generator = _generator(seed)
    column = torch.randint(4, (n,), generator=generator)
    row = 2 * torch.randint(2, (n,), generator=generator) + column % 2
    corner = 2.0 * torch.stack((column, row), 1) - 4
    return (corner + 2 * _uniform(n, 2, generator=generator)).float()


def mixture_1d(n: int, seed: int = 0) -> Tensor:
    """(n, 1): the three-Gaussian mixture of Lu et al. 2022; its entropy is -0.128854 nats.

    Means (-2, -6, 4) / 7, variances (0.1, 0.1, 1) / 49, weights (0.3, 0.3, 0.4).
    """
    generator = _generator(seed)
    means = torch.tensor([-2.0, -6.0, 4.0], dtype=torch.float64) / 7
    deviations = torch.tensor([0.1, 0.1, 1.0], dtype=torch.float64).sqrt() / 7
    weights = torch.tensor([0.3, 0.3, 0.4])
    which = torch.multinomial(weights, n, replacement=True, generator=generator)
    samples = means[which] + deviations[which] * _normal(n, generator=generator)
    return samples.float().unsqueeze(1)


def ring(n: int, seed: int = 0) -> Tensor:
    """(n, 2): eight Gaussians of deviation 0.2, evenly spaced on a circle of radius 2."""
    generator = _generator(seed)
    angle = torch.randint(8, (n,), generator=generator) * (math.pi / 4)
    centre = 2 * torch.stack((angle.cos(), angle.sin()), 1)
    return (centre + 0.2 * _normal(n, 2, generator=generator)).float()


def swissroll(n: int, seed: int = 0) -> Tensor:
    """(n, 2): a spiral of one and a half turns, radius 0.6 to 1.9, blurred by 0.05."""
    generator = _generator(seed)
    angle = 1.5 * math.pi * (1 + 2 * _uniform(n, generator=generator))
    spiral = torch.stack((angle * angle.cos(), angle * angle.sin()), 1) / 7.5
    return (spiral + 0.05 * _normal(n, 2, generator=generator)).float()
