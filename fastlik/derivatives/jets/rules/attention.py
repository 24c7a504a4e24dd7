"""Scaled dot-product attention: 2 matrix products for the value, 4 more for each tangent."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import kernels
from ..jet import Jet, nothing_recorded
from ..registry import rule
from .arithmetic import Operand, add, mul, primal_of
from .matrix import matmul
from .reduction import softmax
from .shape import cat, narrow, repeat_interleave, transpose

# scores (in numbers) that a block of queries may have where nothing is recorded for a backward pass
_SCORES_AT_ONCE = 1 << 22


@rule("scaled_dot_product_attention")
def attention(
    query: Operand,
    key: Operand,
    value: Operand,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Jet:
    joined = kernels.attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    if joined is not None:
        return joined
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = _repeated(key, repeats), _repeated(value, repeats)
    length, keys = query.shape[-2], key.shape[-2]
    mask = attn_mask
    if is_causal:
        mask = torch.ones(length, keys, dtype=torch.bool, device=primal_of(query).device).tril()
    query = mul(query, scale) if isinstance(query, Jet) else query * scale
    key = transpose(key, -2, -1) if isinstance(key, Jet) else key.mT
    block = _block(query, keys)
    if block >= length:
        return _attend(query, key, value, mask, dropout_p)
    results = []
    for start in range(0, length, block):
        size = min(block, length - start)
        rows = narrow(query, -2, start, size) if isinstance(query, Jet) else query.narrow(-2, start, size)
        part = mask if mask is None or mask.shape[-2] == 1 else mask.narrow(-2, start, size)
        results.append(_attend(rows, key, value, part, dropout_p))
    return cat(results, -2)


def _repeated(heads: Operand, repeats: int) -> Operand:
    if isinstance(heads, Jet):
        return repeat_interleave(heads, repeats, -3)
    return heads.repeat_interleave(repeats, -3)


def _block(query: Operand, keys: int) -> int:
    """Queries at once: all where autograd or a compiler looks on."""
    query = primal_of(query)
    if not nothing_recorded():
        return query.shape[-2]
    rows = max(1, query.shape[:-2].numel())
    return max(16, _SCORES_AT_ONCE // (rows * max(1, keys)))


def _attend(query: Operand, key: Operand, value: Operand, mask: Tensor | None, dropout: float) -> Jet:
    scores = matmul(query, key)
    if mask is not None:
        scores = _masked(scores, mask)
    weights = softmax(scores, -1) if isinstance(scores, Jet) else scores.softmax(-1)
    if dropout > 0:
        kept = torch.nn.functional.dropout(torch.ones_like(primal_of(weights)), dropout)
        weights = mul(weights, kept) if isinstance(weights, Jet) else weights * kept
    return matmul(weights, value)


def _masked(scores: Operand, mask: Operand) -> Operand:
    if not isinstance(mask, Jet) and mask.dtype == torch.bool:
        if isinstance(scores, Tensor):
            return scores.masked_fill(~mask, -torch.inf)
        parts = [None if part is None else part.masked_fill(~mask, 0) for part in scores.parts]
        return scores.replace(scores.primal.masked_fill(~mask, -torch.inf), parts)
    return scores + mask if isinstance(scores, Tensor) and isinstance(mask, Tensor) else add(scores, mask)
