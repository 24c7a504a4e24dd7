"""Discrete data: levels, bins, and what dequantisation adds to the likelihood.

A level k of 0 .. bins-1 stands for the bin [low + k w, low + (k+1) w), w = (high - low) / bins.  With
p the density of the continuous variable, log P(levels) >= E_u log p(low + w (levels + u)) + d log w
(Theis et al. 2016): the second term is what "bits/dim" conventions differ by, and it is exact here for
any number of bins and any range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import describe_rows


@dataclass(frozen=True)
class Quantisation:
    """``bins`` equal bins over [low, high], the range that the model was trained on."""

    bins: int
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not (isinstance(self.bins, int) and self.bins >= 2):
            raise ValueError(f"bins must be an integer of at least 2, got {self.bins!r}")
        if not self.low < self.high:
            raise ValueError(f"data_range must be (low, high) with low < high, got {self.range}")

    @property
    def range(self) -> tuple[float, float]:
        return self.low, self.high

    @property
    def bin_width(self) -> float:
        return (self.high - self.low) / self.bins

    @property
    def log_bin_width(self) -> float:
        """log w in nats: discrete NLL = continuous NLL - d log w."""
        return math.log(self.bin_width)

    def levels(self, x: Tensor) -> Tensor:
        """The int64 levels of ``x`` (B, *event).

        Integer input holds the levels themselves.  Floating input holds the grid of ``bins`` values
        that spans the range, low and high included (what x / 255 or 2 x / 255 - 1 makes of 8 bits).

        Raises ValueError where a value is outside the range or off the grid, naming rows.
        """
        if x.is_floating_point():
            position = (x.double() - self.low) / (self.high - self.low) * (self.bins - 1)
            levels = position.round()
            # written so that NaN is caught as well
            self._refuse(x, ~((position - levels).abs() < 0.02), "is not on the grid of levels")
        else:
            levels = x
        outside = (levels < 0) | (levels > self.bins - 1)
        self._refuse(x, outside, f"is outside the {self.bins} levels")
        return levels.long()

    def _refuse(self, x: Tensor, bad: Tensor, what: str) -> None:
        if not bool(bad.any()):
            return
        rows = bad.flatten(1).any(1).nonzero().flatten().tolist()
        value = x[bad][0].item()
        expected = (
            f"{self.bins} equally spaced values over [{self.low}, {self.high}]"
            if x.is_floating_point()
            else f"integers 0 .. {self.bins - 1}"
        )
        raise ValueError(
            f"the value {value:.6g} in {describe_rows(rows)} {what}: with bins={self.bins} the data must be "
            f"{expected}; set bins= and data_range= to the data's, or rescale x"
        )

    def continuous(self, levels: Tensor, u: Tensor) -> Tensor:
        """low + w (levels + u) for u in [0, 1), in u's dtype."""
        return self.low + self.bin_width * (levels.to(u.dtype) + u)

    def nearest(self, x: Tensor) -> Tensor:
        """The int64 levels whose bins hold continuous ``x``; values outside the range go to its ends."""
        return ((x - self.low) / self.bin_width).floor().long().clamp(0, self.bins - 1)

    def check_range(self, x: Tensor) -> None:
        """Raise ValueError where continuous ``x`` leaves the range."""
        bad = (x < self.low) | (x > self.high)
        if bool(bad.any()):
            rows = bad.flatten(1).any(1).nonzero().flatten().tolist()
            raise ValueError(
                f"x holds {x[bad][0].item():.6g} in {describe_rows(rows)}, outside "
                f"data_range=({self.low}, {self.high}); pass the range that the model was trained on"
            )


def integer_error(dtype: torch.dtype) -> TypeError:
    """What to say to integer data without dequantisation: its density is unbounded."""
    return TypeError(
        f"x is {dtype}: a density model gives discrete data no likelihood without dequantisation; pass "
        f'dequantize="uniform", bins=<number of levels> (256 for 8-bit images) and data_range='
    )
