"""Sinusoidal embedding of a network's time."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class TimeEmbedding(nn.Module):
    """sin and cos of the time at frequencies in geometric progression.

    The defaults suit a time of the order of one whose structure is no finer than a tenth, such as
    log-SNR / 8 (Karras et al. 2022: c_noise = log(sigma) / 4): up to 1 rad per unit of log-SNR.
    The high frequencies of an embedding made for integer steps (sin(999 t)) would be wiggles of
    the probability-flow ODE, which its solver must follow.

    Args:
        features: width of the embedding, an even number.
        lowest, highest: frequencies in rad per unit of time.

    Raises:
        ValueError: ``features`` is odd or below 2.
    """

    def __init__(self, features: int, lowest: float = 0.25, highest: float = 8.0) -> None:
        super().__init__()
        if features < 2 or features % 2:
            raise ValueError(f"time features must be an even number of at least 2, got {features}")
        exponents = torch.linspace(math.log(lowest), math.log(highest), features // 2)
        self.register_buffer("frequencies", exponents.exp(), persistent=False)

    def forward(self, time: Tensor) -> Tensor:
        """(B,) -> (B, features)."""
        angles = time[:, None] * self.frequencies.to(time.dtype)
        return torch.cat((angles.sin(), angles.cos()), 1)
