"""Monotone rational-quadratic splines of the unit interval (Durkan, Bekasov, Murray, Papamakarios 2019)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_LEAST = 1e-3  # of a bin's width, height and slope, so that the inverse stays smooth


def parameter_count(bins: int) -> int:
    """Numbers that describe a spline of ``bins`` bins: widths, heights, and slopes at the knots."""
    return 3 * bins + 1


def rational_quadratic(x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
    """(y, log dy/dx) of increasing maps from [0, 1] onto itself, one a number of x.

    Args:
        x: any shape (...), in [0, 1].
        parameters: (..., 3 bins + 1), any real numbers; zeros give the identity.

    Widths and heights of the bins are softmax of theirs, slopes at the knots, the ends included, softplus
    (eqs. 4 and 5 of the paper, whose end slopes are 1: those of a density over a bin are free).
    """
    bins = parameters.shape[-1] // 3
    widths, heights, slopes = parameters.split((bins, bins, bins + 1), -1)
    slopes = _LEAST + F.softplus(slopes + math.log(math.expm1(1 - _LEAST)))
    left, bottom = _knots(widths), _knots(heights)
    index = torch.searchsorted(left[..., 1:-1].detach().contiguous(), x[..., None].detach().contiguous())

    def pick(values: Tensor, shift: int = 0) -> Tensor:
        return values.gather(-1, index + shift)[..., 0]

    x0, y0 = pick(left), pick(bottom)
    width, height = pick(left, 1) - x0, pick(bottom, 1) - y0
    start, end, mean = pick(slopes), pick(slopes, 1), height / width
    place = ((x - x0) / width).clamp(0, 1)
    rest = 1 - place
    below = mean + (start + end - 2 * mean) * place * rest
    y = y0 + height * (mean * place**2 + start * place * rest) / below
    above = end * place**2 + 2 * mean * place * rest + start * rest**2
    return y, 2 * mean.log() + above.log() - 2 * below.log()


def _knots(parameters: Tensor) -> Tensor:
    """0 = k_0 < ... < k_bins = 1, exactly at the ends."""
    bins = parameters.shape[-1]
    sizes = _LEAST + (1 - _LEAST * bins) * parameters.softmax(-1)
    inner = sizes.cumsum(-1)[..., :-1]
    return torch.cat((torch.zeros_like(sizes[..., :1]), inner, torch.ones_like(sizes[..., :1])), -1)
