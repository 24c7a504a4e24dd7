"""The first-order jet of softmax attention in plain PyTorch: the specification of the kernels."""

from __future__ import annotations

import torch
from torch import Tensor


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query1: Tensor,
    key1: Tensor,
    value1: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
) -> list[Tensor]:
    """[O, O1] = [P V, P1 V + P V1]; see ``fastlik.ops.attention.attention``, which checks the arguments."""
    scores = scale * query @ key.mT
    first = scale * (query1 @ key.mT + query @ key1.mT)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    if causal:
        rows, columns = scores.shape[-2:]
        seen = torch.ones(rows, columns, dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~seen, -torch.inf)
    # a row that sees nothing is 0
    blind = (scores == -torch.inf).all(-1, keepdim=True)
    weights = scores.masked_fill(blind, 0).softmax(-1).masked_fill(blind, 0)
    weights1 = weights * first
    weights1 = weights1 - weights * weights1.sum(-1, keepdim=True)
    return [weights @ value, weights1 @ value + weights @ value1]
