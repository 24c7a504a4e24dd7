"""Quadrature over nodes in plain PyTorch: the specification."""

from __future__ import annotations

import torch
from torch import Tensor

from .lagrange import lagrange_basis, lagrange_weights

MOST_NODES = 6
# nodes whose weights are formed together: bounds the memory, and stays in a cache
_TOGETHER = 8192


def residuals(t: Tensor, count: Tensor, values: Tensor, points: int) -> Tensor:
    """See ``fastlik.ops.quadrature``."""
    together = _rows_together(t)
    if len(t) > together:
        parts = zip(t.split(together), count.split(together), values.split(together), strict=True)
        return torch.cat([residuals(*part, points) for part in parts])
    number = torch.arange(t.shape[1], device=t.device)
    first = torch.minimum(number - points // 2, count[:, None] - points - 1).clamp(min=0)
    index = first[..., None] + torch.arange(points + 1, device=t.device)
    others = (index < count[:, None, None]) & (index != number[:, None])
    index = index.clamp(max=t.shape[1] - 1)
    nodes, near = (v.gather(1, index.flatten(1)).reshape(index.shape) for v in (t, values))
    basis = lagrange_basis(nodes, others, t)
    residual = (values - (basis * near).sum(-1)) / (1 + basis.square().sum(-1)).sqrt()
    return residual.masked_fill(number >= count[:, None], 0.0)


def _rows_together(t: Tensor) -> int:
    return max(1, _TOGETHER // max(1, t.shape[1]))


def node_weights(t: Tensor, count: Tensor, points: int = MOST_NODES) -> Tensor:
    """See ``fastlik.ops.quadrature``."""
    together = _rows_together(t)
    if len(t) > together:
        pairs = zip(t.split(together), count.split(together), strict=True)
        return torch.cat([node_weights(rows, counts, points) for rows, counts in pairs])
    weights = torch.zeros_like(t)
    intervals = torch.arange(t.shape[1] - 1, device=t.device)
    if len(intervals) == 0:
        return weights
    first = torch.minimum(intervals + 1 - points // 2, count[:, None] - points).clamp(min=0)
    index = first[..., None] + torch.arange(points, device=t.device)
    valid = index < count[:, None, None]
    index = index.clamp(max=t.shape[1] - 1)
    nodes = t.gather(1, index.flatten(1)).reshape(index.shape)
    parts = lagrange_weights(nodes, valid, t[:, :-1], t[:, 1:])
    parts = torch.where((intervals + 1 < count[:, None])[..., None], parts, 0.0)
    return weights.scatter_add(1, index.flatten(1), parts.flatten(1))
