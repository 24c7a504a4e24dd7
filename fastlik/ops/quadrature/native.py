"""Quadrature over nodes in C++: tensors as addresses and sizes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import call_native


def node_weights(t: Tensor, count: Tensor, points: int) -> Tensor:
    """``reference.node_weights``."""
    t, count = t.contiguous(), count.contiguous()
    weights = torch.empty_like(t)
    call_native("node_weights", t, (*t.shape, points), _addresses(t, count, weights))
    return weights


def residuals(t: Tensor, count: Tensor, values: Tensor, points: int) -> Tensor:
    """``reference.residuals``."""
    t, count, values = t.contiguous(), count.contiguous(), values.contiguous()
    apart = torch.empty_like(t)
    call_native("node_residuals", t, (*t.shape, points), _addresses(t, count, values, apart))
    return apart


def _addresses(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(each.data_ptr() for each in tensors)
