"""Smooth functions of the solver's clock as Chebyshev series on panels, for steps that rows choose."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

_COEFFICIENTS = 16
_ACCURACY = 1e-13
_MOST_PANELS = 4096


@dataclass(frozen=True, eq=False)
class ClockTable:
    """breaks (P+1,) increasing, values (P, F, C) float64: coefficients of each function on each panel."""

    breaks: Tensor
    values: Tensor
    _copies: dict[torch.device, ClockTable] = field(default_factory=dict, init=False, repr=False)

    def to(self, device: torch.device) -> ClockTable:
        """The same on a device, copied there once."""
        if self.breaks.device == device:
            return self
        if device not in self._copies:
            self._copies[device] = ClockTable(self.breaks.to(device), self.values.to(device))
        return self._copies[device]

    def __call__(self, u: Tensor) -> Tensor:
        """(B,) -> (F, B): the specification of the kernels' evaluation."""
        panel = (torch.searchsorted(self.breaks, u, right=True) - 1).clamp(0, len(self.values) - 1)
        left, right = self.breaks[panel], self.breaks[panel + 1]
        x = ((2 * u - left - right) / (right - left)).clamp(-1, 1)
        orders = torch.arange(self.values.shape[2], dtype=torch.float64)
        return torch.einsum("bfc,bc->fb", self.values[panel], torch.cos(x.acos()[:, None] * orders))


def tabulate(
    functions: Callable[[Tensor], Tensor],
    start: float,
    end: float,
    kinks: Sequence[float] = (),
    kept: int = _COEFFICIENTS,
    error: float | None = None,
    most_panels: int = _MOST_PANELS,
) -> ClockTable:
    """Table of ``functions``, u (N,) -> (F, N) float64, between start and end.

    Panels are halved until the series' last coefficients vanish, or those beyond the ``kept`` ones add up to
    no more than ``error``; ``kinks``: where the functions are not smooth.

    Raises:
        ValueError: the functions are not piecewise smooth, as far as ``most_panels`` can tell.
    """
    low, high = min(start, end), max(start, end)
    ends = sorted({low, high, *(u for u in kinks if low < u < high)})
    open_panels = list(zip(ends[:-1], ends[1:], strict=True))
    size = functions(torch.tensor(ends, dtype=torch.float64)).abs().amax(1)

    def fits(series: Tensor) -> bool:
        if error is not None:
            return bool((series[:, kept:].abs().sum(1) <= error).all())
        scale = torch.maximum(series.abs().amax(1), 1e-3 * size)
        return bool((series[:, -2:].abs().amax(1) <= _ACCURACY * scale).all())

    done: list[tuple[float, Tensor]] = []
    while open_panels:
        if len(done) + len(open_panels) > most_panels:
            raise ValueError("the time features are not smooth functions of the solver's clock")
        refused = []
        for (left, right), series in zip(open_panels, _fit(functions, open_panels), strict=True):
            if fits(series):
                done.append((left, series[:, :kept]))
            else:
                refused += [(left, (left + right) / 2), ((left + right) / 2, right)]
        open_panels = refused
    done.sort(key=lambda panel: panel[0])
    breaks = torch.tensor([left for left, _ in done] + [high], dtype=torch.float64)
    return ClockTable(breaks, torch.stack([series for _, series in done]).contiguous())


def _fit(functions: Callable[[Tensor], Tensor], panels: list[tuple[float, float]]) -> Tensor:
    """Interpolation at Chebyshev nodes: (P, F, C)."""
    count = _COEFFICIENTS
    angle = math.pi * (torch.arange(count, dtype=torch.float64) + 0.5) / count
    edges = torch.tensor(panels, dtype=torch.float64)
    middle, half = edges.mean(1, keepdim=True), edges.diff(dim=1) / 2
    values = functions((middle + half * angle.cos()).flatten()).unflatten(1, (len(panels), count))
    transform = torch.cos(torch.arange(count, dtype=torch.float64)[:, None] * angle) * 2 / count
    transform[0] /= 2
    return torch.einsum("cn,fpn->pfc", transform, values)
