"""Triton kernels of Rademacher probes and their products v'Jv."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.random import philox_impl

from fastlik.ops.differentiable import Fused

from . import reference

# a call of the generator gives the signs of 128 coordinates
COUNTERS, COORDINATES = 8, 1024


@triton.jit
def _words(rows, nodes, row, draw, start, key0, key1, COUNTERS: tl.constexpr):
    """Four words for each of COUNTERS successive counters, of which ``start`` is the first."""
    zero = tl.zeros([COUNTERS], tl.int64)
    identity, node = tl.load(rows + row), tl.load(nodes + row)
    mask = 0xFFFFFFFF
    low = (zero + (identity & mask)).to(tl.uint32)
    high = (zero + (((identity >> 32) & 0xFFFF) | (draw << 16))).to(tl.uint32)
    counter = (start + tl.arange(0, COUNTERS)).to(tl.uint32)
    return philox_impl(
        counter, low, high, (zero + (node & mask)).to(tl.uint32),
        (zero + key0).to(tl.uint32), (zero + key1).to(tl.uint32), 10,
    )  # fmt: skip


@triton.jit
def _lane(word, start, lane: tl.constexpr, COUNTERS: tl.constexpr):
    """The coordinates that a word is for, and their signs."""
    bit = tl.arange(0, 32)[None, :]
    counter = start + tl.arange(0, COUNTERS)[:, None]
    signs = 1 - 2 * ((word[:, None] >> bit.to(tl.uint32)) & 1).to(tl.int32)
    return counter * 128 + lane * 32 + bit, signs


@triton.jit
def signs_kernel(out, rows, nodes, first, key0, key1, batch, size, COUNTERS: tl.constexpr):
    """Some of the coordinates of a row and a draw."""
    row, draw = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    start = tl.program_id(0) * COUNTERS
    words = _words(rows, nodes, row, first + draw, start, key0, key1, COUNTERS)
    out += (draw * batch + row) * size
    for lane in tl.static_range(4):
        coordinates, signs = _lane(words[lane], start, lane, COUNTERS)
        tl.store(out + coordinates, signs.to(tl.float32).to(out.dtype.element_ty), coordinates < size)


@triton.jit
def products_kernel(jv, rows, nodes, total, first, key0, key1, batch, size, COUNTERS: tl.constexpr):
    """All coordinates of a row and a draw, summed in float64."""
    row, draw = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    jv += (draw * batch + row) * size
    sums = tl.zeros([COUNTERS, 32], tl.float64)
    for start in range(0, tl.cdiv(size, 128), COUNTERS):
        words = _words(rows, nodes, row, first + draw, start, key0, key1, COUNTERS)
        for lane in tl.static_range(4):
            coordinates, signs = _lane(words[lane], start, lane, COUNTERS)
            values = tl.load(jv + coordinates, coordinates < size, 0.0).to(tl.float32)
            sums += (values * signs.to(tl.float32)).to(tl.float64)
    tl.store(total + draw * batch + row, tl.sum(tl.sum(sums, 1), 0))


def signs(
    rows: Tensor, node: Tensor, key: Sequence[int], draws: range, size: int, dtype: torch.dtype
) -> Tensor:
    """(K, B, size), +-1, of consecutive draws."""
    count = len(draws)
    out = torch.empty(count, len(rows), size, dtype=dtype, device=rows.device)
    if out.numel():
        grid = (triton.cdiv(size, COORDINATES), len(rows), count)
        signs_kernel[grid](out, rows, node, draws.start, *key, len(rows), size, COUNTERS=COUNTERS)
    return out


def allocate(jv: Tensor, *settings: object, together: bool) -> list[Tensor]:
    return [jv.new_empty(jv.shape[:2], dtype=torch.float64)]


def forward(
    results: list[Tensor], jv: Tensor, rows: Tensor, node: Tensor, first: int, key0: int, key1: int
) -> None:
    count, batch, size = jv.shape
    sizes = (first, key0, key1, batch, size)
    products_kernel[(batch, count)](jv, rows, node, results[0], *sizes, COUNTERS=COUNTERS)


def backward(
    gradients: list[Tensor],
    grads: list[Tensor],
    results: list[Tensor],
    jv: Tensor,
    rows: Tensor,
    node: Tensor,
    first: int,
    key0: int,
    key1: int,
) -> None:
    count, _, size = jv.shape
    drawn = signs(rows, node, (key0, key1), range(first, first + count), size, jv.dtype)
    torch.mul(drawn, grads[0][..., None].to(jv.dtype), out=gradients[0])


FUSED = Fused(
    "hutchinson",
    "Tensor jv, Tensor rows, Tensor node, int first, int key0, int key1",
    reference.products,
    allocate,
    forward,
    backward,
)
