"""The jets of pointwise functions and of group normalisation to the first order, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..mlp.reference import FUNCTIONS


def activation(x: Tensor, tangents: Tensor, function: str, parameter: float) -> tuple[Tensor, Tensor]:
    """f(x), f'(x) tangents."""
    value, slope = FUNCTIONS[function](x, parameter)
    return value, slope * tangents


def group_norm(
    x: Tensor, tangents: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """y = (x - mean) / std, and J t = (t - mean t - y mean(y t)) / std, times the weight."""
    grouped, moved = x.reshape(len(x), groups, -1), tangents.reshape(*tangents.shape[:2], groups, -1)
    centred = grouped - grouped.mean(-1, keepdim=True)
    rstd = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    y, moved = centred * rstd, moved - moved.mean(-1, keepdim=True)
    products = rstd * (moved - y * (y * moved).mean(-1, keepdim=True))
    y, products = y.reshape(x.shape), products.reshape(tangents.shape)
    channel = (-1, *[1] * (x.dim() - 2))
    if weight is not None:
        y, products = y * weight.reshape(channel), products * weight.reshape(channel)
    return (y if bias is None else y + bias.reshape(channel)), products
