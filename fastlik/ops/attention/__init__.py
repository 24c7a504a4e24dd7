"""The jet of softmax attention up to the second order, flash style: no matrix of scores in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
    query2: Tensor | None = None,
    key2: Tensor | None = None,
    value2: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    backend: str = "auto",
) -> list[Tensor]:
    """O = softmax(scale Q K' + mask) V with its derivatives along K directions, all from the same scores.

    Args:
        query: (B, H, T, D), a floating-point tensor; Triton takes float16, bfloat16 and float32, D from 16
            to 128 (64 in float32), accumulates in float32, and rounds the weights to the dtype of ``query``.
        key, value: (B, H, S, D), dtype of ``query``.
        query1, key1, value1: (K, *shape of theirs), first derivatives.
        query2, key2, value2: (K, *shape of theirs), second derivatives along the same directions, or
            (1, *shape of theirs), their sum over k; all None: order 1.
        mask: broadcasts to (B, H, T, S): bool, True where a query sees a key, or a summand of the scores;
            without a derivative, and without a gradient in Triton.
        causal: query i sees keys up to i.
        scale: 1 / sqrt(D) unless given.
        backend: "auto", "triton" or "torch".

    Returns:
        [O (B, H, T, D), O1 (K, B, H, T, D)], and O2, as many as there are second derivatives of ``query``; 0
        for a query that sees no key.  Differentiable.

    Raises:
        ValueError: shapes that do not fit.
        RuntimeError: a backend asked for by name that cannot run.
    """
    primals, firsts = (query, key, value), (query1, key1, value1)
    seconds = [each for each in (query2, key2, value2) if each is not None]
    _check_primals(query, key, value)
    _check_derivatives("1", primals, firsts, {len(query1)})
    if seconds:
        if len(seconds) < 3:
            raise ValueError("query2, key2 and value2 must be given together")
        _check_derivatives("2", primals, seconds, {len(query1), 1})
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
    tensors = [*primals[1:], *firsts, *seconds, *([] if mask is None else [mask])]
    chosen = choose("attention", backend, query, *tensors)
    if chosen == "triton" and (obstacle := obstacle_of(query, mask)):
        chosen = fall_back(backend, obstacle)
    if chosen == "torch" or not len(query1):
        operation = reference.attention
    else:
        from .triton import FUSED as operation

        primals, firsts, seconds = ([x.contiguous() for x in each] for each in (primals, firsts, seconds))
        mask = mask if mask is None else mask.expand(*query.shape[:3], key.shape[2])
    orders = 3 if seconds else 2
    results = operation(*primals, *firsts, *(seconds or [None] * 3), mask, causal, scale)[:orders]
    if seconds and len(seconds[0]) < len(query1):
        return [*results[:2], results[2].sum(0, keepdim=True)]
    return results


def obstacle_of(query: Tensor, mask: Tensor | None) -> str:
    """Why the kernel cannot take these; "" if it can."""
    # the registers of a block do not hold more
    largest = 64 if query.dtype == torch.float32 else HEAD_SIZES[-1]
    if not HEAD_SIZES[0] <= query.shape[-1] <= largest:
        return f"Triton's attention takes {query.dtype} heads of {HEAD_SIZES[0]} to {largest} numbers"
    if mask is not None and mask.requires_grad and torch.is_grad_enabled():
        return "Triton's attention has no gradient of the mask"
    return ""


def _check_primals(query: Tensor, key: Tensor, value: Tensor) -> None:
    batch, heads, _, size = query.shape if query.dim() == 4 else (0, 0, 0, 0)
    fits = key.shape == value.shape and key.dim() == 4 and key.shape[:2] == (batch, heads)
    if not fits or key.shape[3] != size:
        raise ValueError(
            f"query must be (B, H, T, D), key and value (B, H, S, D), got {tuple(query.shape)}, "
            f"{tuple(key.shape)}, {tuple(value.shape)}"
        )


def _check_derivatives(
    order: str, primals: Sequence[Tensor], derivatives: Sequence[Tensor], counts: set[int]
) -> None:
    for name, primal, each in zip(("query", "key", "value"), primals, derivatives, strict=True):
        fits = each.shape[1:] == primal.shape and each.dtype == primal.dtype
        if not fits or len(each) not in counts or len(each) != len(derivatives[0]):
            raise ValueError(
                f"{name}{order} must be ({' or '.join(map(str, sorted(counts)))}, *{tuple(primal.shape)}) "
                f"{primal.dtype}, got {tuple(each.shape)} {each.dtype}"
            )
