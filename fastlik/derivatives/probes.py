"""Counter-based random numbers: Philox 4x32-10 keyed by (seed, stream), counted by what a number is for.

A number depends on (seed, stream, row, draw, node, coordinate) and on nothing else, so a row's probes and
dequantisation noise are the same in any batch, chunk, order or rank.  Plain integer tensor operations:
the specification that kernels reproduce bit for bit.  (Salmon et al. 2011, "Parallel random numbers: as
easy as 1, 2, 3".)

Counter words: (coordinate // 4, row low 32 bits, row high 16 bits with draw << 16, node); key: the seed's
64 bits, the high word offset by the stream.
"""

from __future__ import annotations

import math
from enum import IntEnum

import torch
from torch import Tensor

from ..checks import check_choice

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
PROBES = ("rademacher", "gaussian")


class Stream(IntEnum):
    """Independent purposes of random numbers under one seed."""

    PROBE = 0
    DEQUANTISE = 1
    PRIOR = 2
    NOISE = 3


def _multiply(a: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of the 64-bit product, in int64 without overflow."""
    low = (a & 0xFFFF) * multiplier
    high = (a >> 16) * multiplier + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def philox(counter: tuple[Tensor, ...], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Four uniform 32-bit words (as int64) from four counter words and two key words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def random_words(seed: int, stream: Stream, rows: Tensor, draw: int, node: Tensor | int, size: int) -> Tensor:
    """(B, size) uniform 32-bit words as int64.

    rows: (B,) int64 ids in [0, 2^48).  node: an int or (B,) int64.  draw: below 2^16.
    """
    rows = rows.to(torch.int64)[:, None]
    node = torch.as_tensor(node, dtype=torch.int64, device=rows.device).reshape(-1, 1)
    block = torch.arange((size + 3) // 4, device=rows.device)[None]
    words = philox(
        torch.broadcast_tensors(block, rows & _MASK, (rows >> 32 & 0xFFFF) | (draw << 16), node & _MASK),
        (seed & _MASK, ((seed >> 32) + 0x10000 * int(stream)) & _MASK),
    )
    return torch.stack(words, -1).flatten(1)[:, :size]


def uniform(seed: int, stream: Stream, rows: Tensor, draw: int, node: Tensor | int, size: int) -> Tensor:
    """(B, size) float64 in the open interval (0, 1), multiples of 2^-33."""
    return (random_words(seed, stream, rows, draw, node, size).double() + 0.5) * 2.0**-32


def gaussian(seed: int, stream: Stream, rows: Tensor, draw: int, node: Tensor | int, size: int) -> Tensor:
    """(B, size) standard normal float64 numbers (Box-Muller on pairs of words)."""
    even = size + size % 2
    u = uniform(seed, stream, rows, draw, node, even).unflatten(1, (-1, 2))
    radius, turn = (-2 * u[..., 0].log()).sqrt(), 2 * math.pi * u[..., 1]
    return torch.stack((radius * turn.cos(), radius * turn.sin()), -1).flatten(1)[:, :size]


def rademacher(seed: int, stream: Stream, rows: Tensor, draw: int, node: Tensor | int, size: int) -> Tensor:
    """(B, size) signs +-1 float64: bit (c mod 32) of word (c div 32)."""
    words = random_words(seed, stream, rows, draw, node, (size + 31) // 32)
    bits = words[..., None] >> torch.arange(32, device=words.device) & 1
    return (1 - 2 * bits.flatten(1)[:, :size]).double()


def probe(kind: str, seed: int, rows: Tensor, draw: int, node: Tensor | int, like: Tensor) -> Tensor:
    """A probe v with E v v' = I for each row of ``like`` (B, *event), in its shape and dtype.

    kind: "rademacher" or "gaussian".  rows (B,) int64 ids, draw: which of the K probes, node: which node
    of the integration (an int or (B,)).
    """
    check_choice("probe", kind, PROBES)
    draw_probe = rademacher if kind == "rademacher" else gaussian
    size = like[0].numel() if len(like) else 0
    values = draw_probe(seed, Stream.PROBE, rows, draw, node, size)
    return values.to(like.dtype).reshape(like.shape)
