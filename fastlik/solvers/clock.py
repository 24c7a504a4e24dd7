"""The solver's clock: in which variable steps are of equal size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Clock:
    """u = asinh(r / low), r = rho / (1 + rho / high), of the noise level rho = tan(angle) = sigma / alpha.

    Logarithmic in rho between ``low`` and ``high``, where networks are smooth, and linear below and above,
    so that rho = 0 and rho = infinity lie at finite, regular ends.
    """

    low: float
    high: float

    def u(self, angle: Tensor) -> Tensor:
        sin, cos = angle.sin(), angle.cos()
        return torch.asinh(sin / (cos + sin / self.high) / self.low)

    def angle(self, u: Tensor) -> Tensor:
        r = self.low * torch.sinh(u)
        return torch.atan2(r, 1 - r / self.high)

    def rate(self, u: Tensor) -> Tensor:
        """d angle / du."""
        r = self.low * torch.sinh(u)
        return self.low * torch.cosh(u) / (r**2 + (1 - r / self.high) ** 2)
