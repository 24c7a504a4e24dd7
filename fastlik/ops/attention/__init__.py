"""The first-order jet of softmax attention, flash style: no matrix of scores in memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastlik.ops.dispatch import choose, fall_back

from . import reference

__all__ = ["HEAD_SIZES", "attention", "obstacle_of"]

HEAD_SIZES = range(16, 129)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query1: Tensor,
    key1: Tensor,
    value1: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    backend: str = "auto",
) -> list[Tensor]:
    """O = softmax(scale Q K' + mask) V with its derivatives along K directions, which share the scores.

    Args:
        query: (B, H, T, D), a floating-point tensor; Triton takes float16, bfloat16 and float32, D from 16
            to 128 (64 in float32), accumulates in float32, and rounds the weights to the dtype of ``query``.
        key, value: (B, H, S, D), dtype of ``query``.
        query1, key1, value1: (K, *shape of theirs), first derivatives.
        mask: broadcasts to (B, H, T, S): bool, True where a query sees a key, or a summand of the scores;
            without a derivative, and without a gradient in Triton.
        causal: query i sees keys up to i.
        scale: 1 / sqrt(D) unless given.
        backend: "auto", "triton" or "torch".

    Returns:
        [O (B, H, T, D), O1 (K, B, H, T, D)]; 0 for a query that sees no key.  Differentiable.

    Raises:
        ValueError: shapes that do not fit.
        RuntimeError: a backend asked for by name that cannot run.
    """
    _check(query, key, value, query1, key1, value1)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
    tensors = [key, value, query1, key1, value1, *([] if mask is None else [mask])]
    chosen = choose("attention", backend, query, *tensors)
    if chosen == "triton" and (obstacle := obstacle_of(query, mask)):
        chosen = fall_back(backend, obstacle)
    if chosen == "torch" or not len(query1):
        return reference.attention(query, key, value, query1, key1, value1, mask, causal, scale)
    from .triton import FUSED

    primals = [each.contiguous() for each in (query, key, value)]
    tangents = [each.contiguous() for each in (query1, key1, value1)]
    if mask is not None:
        mask = mask.expand(*query.shape[:3], key.shape[2])
    return FUSED(*primals, *tangents, mask, causal, scale)[:2]


def obstacle_of(query: Tensor, mask: Tensor | None) -> str:
    """Why the kernel cannot take these; "" if it can."""
    # the registers of a block do not hold more
    largest = 64 if query.dtype == torch.float32 else HEAD_SIZES[-1]
    if not HEAD_SIZES[0] <= query.shape[-1] <= largest:
        return f"Triton's attention takes {query.dtype} heads of {HEAD_SIZES[0]} to {largest} numbers"
    if mask is not None and mask.requires_grad and torch.is_grad_enabled():
        return "Triton's attention has no gradient of the mask"
    return ""


def _check(query: Tensor, key: Tensor, value: Tensor, query1: Tensor, key1: Tensor, value1: Tensor) -> None:
    batch, heads, _, size = query.shape if query.dim() == 4 else (0, 0, 0, 0)
    fits = key.shape == value.shape and key.dim() == 4 and key.shape[:2] == (batch, heads)
    if not fits or key.shape[3] != size:
        raise ValueError(
            f"query must be (B, H, T, D), key and value (B, H, S, D), got {tuple(query.shape)}, "
            f"{tuple(key.shape)}, {tuple(value.shape)}"
        )
    for name, primal, tangent in (
        ("query1", query, query1),
        ("key1", key, key1),
        ("value1", value, value1),
    ):
        if tangent.shape[1:] != primal.shape or len(tangent) != len(query1) or tangent.dtype != query.dtype:
            raise ValueError(
                f"{name} must be (K, *{tuple(primal.shape)}) {query.dtype}, got {tuple(tangent.shape)} "
                f"{tangent.dtype}"
            )
