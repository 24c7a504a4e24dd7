"""Philox 4x32-10, counted by what a number is for, and the random words and signs that it gives.

Plain integer tensor operations: the specification that kernels reproduce bit for bit.  (Salmon et al. 2011,
"Parallel random numbers: as easy as 1, 2, 3".)

Counter words: (coordinate // 4, row low 32 bits, row high 16 bits with draw << 16, node); key: the seed's
64 bits, the high word offset by the stream.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


class Stream(IntEnum):
    """Independent purposes of random numbers under one seed."""

    PROBE = 0
    DEQUANTISE = 1
    PRIOR = 2
    NOISE = 3
    TIME = 4


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


def key_of(seed: int, stream: Stream) -> tuple[int, int]:
    """The two words of the key."""
    return seed & _MASK, ((seed >> 32) + 0x10000 * int(stream)) & _MASK


def random_words(seed: int, stream: Stream, rows: Tensor, draw: int, node: Tensor | int, size: int) -> Tensor:
    """(B, size) uniform 32-bit words as int64.

    rows: (B,) int64 ids in [0, 2^48).  node: an int or (B,) int64.  draw: below 2^16.
    """
    return _words(key_of(seed, stream), rows, draw, node, size)


def _words(key: tuple[int, int], rows: Tensor, draw: int, node: Tensor | int, size: int) -> Tensor:
    rows = rows.to(torch.int64)[:, None]
    node = torch.as_tensor(node, dtype=torch.int64, device=rows.device).reshape(-1, 1)
    block = torch.arange((size + 3) // 4, device=rows.device)[None]
    counter = (block, rows & _MASK, (rows >> 32 & 0xFFFF) | (draw << 16), node & _MASK)
    words = philox(torch.broadcast_tensors(*counter), key)
    return torch.stack(words, -1).flatten(1)[:, :size]


def rademacher(seed: int, stream: Stream, rows: Tensor, draw: int, node: Tensor | int, size: int) -> Tensor:
    """(B, size) signs +-1 float64: bit (c mod 32) of word (c div 32)."""
    return philox_signs(key_of(seed, stream), rows, draw, node, size)


def philox_signs(key: tuple[int, int], rows: Tensor, draw: int, node: Tensor | int, size: int) -> Tensor:
    """As :func:`rademacher`, for a key."""
    words = _words(key, rows, draw, node, (size + 31) // 32)
    bits = words[..., None] >> torch.arange(32, device=words.device) & 1
    return (1 - 2 * bits.flatten(1)[:, :size]).double()
