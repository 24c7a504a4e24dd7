"""Rademacher probes from counters, and their products v'Jv: the probes are drawn again, not stored.

Bit for bit the numbers of ``fastlik.derivatives.probes``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastlik.ops.dispatch import choose
from fastlik.ops.philox import Stream, key_of

from . import reference

__all__ = ["probes", "products"]


def probes(
    like: Tensor,
    draws: range,
    *,
    seed: int,
    rows: Tensor,
    node: Tensor | int = 0,
    backend: str = "auto",
) -> Tensor:
    """Signs +-1, (K, *like.shape) in the dtype of ``like`` (B, *event).

    Args:
        draws: K consecutive numbers below 2^16.
        seed: of the stream ``Stream.PROBE``.
        rows: (B,) int64 ids in [0, 2^48).
        node: an int or (B,) int64, which node of an integration.
        backend: "auto", "triton" or "torch".

    Raises:
        ValueError: rows or nodes that do not fit.
        RuntimeError: a backend asked for by name that cannot run.
    """
    rows, node = _counters(like[None], rows, node)
    size, key = like.shape[1:].numel(), key_of(seed, Stream.PROBE)
    if choose("hutchinson", backend, like) == "torch":
        drawn = reference.signs(rows, node, key, draws, size).to(like.dtype)
    else:
        from .triton import signs

        drawn = signs(rows, node, key, draws, size, like.dtype)
    return drawn.view(len(draws), *like.shape)


def products(
    jv: Tensor,
    draws: range,
    *,
    seed: int,
    rows: Tensor,
    node: Tensor | int = 0,
    backend: str = "auto",
) -> Tensor:
    """v'Jv, (K, B) float64, from Jv or J'v (K, B, *event), v the probes of K ``draws``.  Differentiable."""
    rows, node = _counters(jv, rows, node)
    key = key_of(seed, Stream.PROBE)
    flat = jv.reshape(*jv.shape[:2], jv.shape[2:].numel()).contiguous()
    if choose("hutchinson", backend, jv) == "torch":
        return reference.products(flat, rows, node, draws.start, *key)[0]
    from .triton import FUSED

    return FUSED(flat, rows, node, draws.start, *key)[0]


def _counters(jv: Tensor, rows: Tensor, node: Tensor | int) -> tuple[Tensor, Tensor]:
    """Row ids and nodes, (B,) int64 each."""
    batch = jv.shape[1]
    if rows.shape != (batch,) or (isinstance(node, Tensor) and node.shape not in ((batch,), ())):
        raise ValueError(f"rows, and node unless it is a number, must have shape ({batch},)")
    if not isinstance(node, Tensor):
        # a fill, which a CUDA graph can record, unlike a copy from the host
        node = torch.full((batch,), node, dtype=torch.int64, device=jv.device)
    return rows.to(torch.int64).contiguous(), node.to(torch.int64).expand(batch).contiguous()
