"""Counter-based random numbers: Philox 4x32-10 keyed by (seed, stream), counted by what a number is for.

A number depends on (seed, stream, row, draw, node, coordinate) and on nothing else, so a row's probes and
dequantisation noise are the same in any batch, chunk, order or rank.  See ``ops/philox.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..checks import check_choice
from ..ops import hutchinson
from ..ops.dispatch import takes_triton
from ..ops.philox import Stream, philox, rademacher, random_words

__all__ = ["PROBES", "Draws", "Stream", "gaussian", "philox", "probe", "rademacher", "uniform"]

PROBES = ("rademacher", "gaussian")


def uniform(seed: int, stream: Stream, rows: Tensor, draw: int, node: Tensor | int, size: int) -> Tensor:
    """(B, size) float64 in the open interval (0, 1), multiples of 2^-33."""
    return (random_words(seed, stream, rows, draw, node, size).double() + 0.5) * 2.0**-32


def gaussian(seed: int, stream: Stream, rows: Tensor, draw: int, node: Tensor | int, size: int) -> Tensor:
    """(B, size) standard normal float64 numbers (Box-Muller on pairs of words)."""
    even = size + size % 2
    u = uniform(seed, stream, rows, draw, node, even).unflatten(1, (-1, 2))
    radius, turn = (-2 * u[..., 0].log()).sqrt(), 2 * math.pi * u[..., 1]
    return torch.stack((radius * turn.cos(), radius * turn.sin()), -1).flatten(1)[:, :size]


def probe(kind: str, seed: int, rows: Tensor, draw: int, node: Tensor | int, like: Tensor) -> Tensor:
    """A probe v with E v v' = I for each row of ``like`` (B, *event), in its shape and dtype.

    kind: "rademacher" or "gaussian".  rows (B,) int64 ids, draw: which of the K probes, node: which node
    of the integration (an int or (B,)).
    """
    check_choice("probe", kind, PROBES)
    if kind == "rademacher" and not like.is_cpu:
        return hutchinson.probes(like, range(draw, draw + 1), seed=seed, rows=rows, node=node)[0]
    draw_probe = rademacher if kind == "rademacher" else gaussian
    size = like[0].numel() if len(like) else 0
    values = draw_probe(seed, Stream.PROBE, rows, draw, node, size)
    return values.to(like.dtype).reshape(like.shape)


@dataclass(frozen=True)
class Draws:
    """K probes for each row of a batch, as :func:`probe` draws them: their numbers are ``range(...)``."""

    kind: str
    seed: int
    rows: Tensor
    numbers: range
    node: Tensor | int = 0

    def __getitem__(self, which: slice) -> Draws:
        return replace(self, numbers=self.numbers[which])

    def vectors(self, like: Tensor) -> Tensor:
        """v (K, *like.shape)."""
        return torch.stack(
            [probe(self.kind, self.seed, self.rows, number, self.node, like) for number in self.numbers]
        )

    def products(self, vectors: Tensor, products: Tensor) -> Tensor:
        """v'Jv (K, B) float64, from v and Jv or J'v; where a kernel draws v again, it reads Jv alone."""
        if self.kind == "rademacher" and takes_triton("hutchinson", products):
            return hutchinson.products(products, self.numbers, seed=self.seed, rows=self.rows, node=self.node)
        return (vectors * products).flatten(2).double().sum(2)
