"""Rademacher probes and their products v'Jv in plain PyTorch: the specification of the kernels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fastlik.ops.philox import philox_signs


def signs(rows: Tensor, node: Tensor, key: Sequence[int], draws: Iterable[int], size: int) -> Tensor:
    """(K, B, size) float64, +-1."""
    drawn = [philox_signs(key, rows, draw, node, size) for draw in draws]
    return torch.stack(drawn) if drawn else rows.new_zeros(0, len(rows), size).double()


def products(jv: Tensor, rows: Tensor, node: Tensor, first: int, key0: int, key1: int) -> list[Tensor]:
    """[(K, B) float64], sums over the event of v times jv (K, B, size), v of draws first, first + 1, ..."""
    v = signs(rows, node, (key0, key1), range(first, first + len(jv)), jv.shape[2])
    return [(v * jv.double()).sum(2)]
