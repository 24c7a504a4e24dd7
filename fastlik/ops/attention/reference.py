"""The jet of softmax attention in plain PyTorch: the specification of the kernels."""

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
    query2: Tensor | None,
    key2: Tensor | None,
    value2: Tensor | None,
    mask: Tensor | None,
    causal: bool,
    scale: float,
) -> list[Tensor]:
    """[O, O1] = [P V, P1 V + P V1], and O2 = P2 V + 2 P1 V1 + P V2 (K, *O.shape) where there are second
    derivatives: (K, ...), or (1, ...), which then count for the first of the K directions, so that the sum
    over k is the collapsed derivative.

    See ``fastlik.ops.attention.attention``, which checks the arguments.
    """
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
    slope = first - (weights * first).sum(-1, keepdim=True)  # of log P
    weights1 = weights * slope
    results = [weights @ value, weights1 @ value + weights @ value1]
    if query2 is None:
        return results
    query2, key2, value2 = (_padded(each, len(query1)) for each in (query2, key2, value2))
    bend = scale * (query2 @ key.mT + 2 * query1 @ key1.mT + query @ key2.mT) + slope.square()
    weights2 = weights * (bend - (weights * bend).sum(-1, keepdim=True))
    return [*results, weights2 @ value + 2 * weights1 @ value1 + weights @ value2]


def _padded(second: Tensor, count: int) -> Tensor:
    """(count, ...), 0 beyond what is there."""
    return torch.cat((second, second.new_zeros(count - len(second), *second.shape[1:])))
