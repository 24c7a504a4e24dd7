"""Tiles of softmax attention that its kernels share: loads, stores, products, scores and derivatives."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def rows_of(pointer, start, length, size: tl.constexpr, BLOCK: tl.constexpr, HEAD: tl.constexpr):
    """Rows start .. start + BLOCK of a contiguous (length, size) matrix, 0 outside."""
    i, d = start + tl.arange(0, BLOCK)[:, None], tl.arange(0, HEAD)[None, :]
    return tl.load(pointer + i * size + d, (i < length) & (d < size), 0.0)


@triton.jit
def store(pointer, values, start, length, size: tl.constexpr, BLOCK: tl.constexpr, HEAD: tl.constexpr):
    """``values`` as such rows."""
    i, d = start + tl.arange(0, BLOCK)[:, None], tl.arange(0, HEAD)[None, :]
    tl.store(pointer + i * size + d, values.to(pointer.dtype.element_ty), (i < length) & (d < size))


@triton.jit
def dot(a, b):
    """float32 as the sum of three products in TF32, which loses nothing."""
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def scores(
    query, key, scale, mask, start, column, length, keys, stride_t, stride_s,
    CAUSAL: tl.constexpr, MASK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """In units of log 2, with -inf where nothing is seen.  MASK: "none", "bool" or "sum"."""
    s = dot(query, tl.trans(key)) * (scale * LOG2_E)
    i, j = start + tl.arange(0, ROWS)[:, None], column + tl.arange(0, COLUMNS)[None, :]
    inside = (i < length) & (j < keys)
    if MASK == "sum":
        s += LOG2_E * tl.load(mask + i * stride_t + j * stride_s, inside, 0.0).to(tl.float32)
    seen = j < keys
    if MASK == "bool":
        seen &= tl.load(mask + i * stride_t + j * stride_s, inside, 0) != 0
    if CAUSAL:
        seen &= j <= i
    return tl.where(seen, s, -float("inf"))


@triton.jit
def first_scores(query, query1, key, key1, scale):
    """S1."""
    return (dot(query1, tl.trans(key)) + dot(query, tl.trans(key1))) * scale


@triton.jit
def second_scores(query, query1, query2, key, key1, key2, scale, BENT: tl.constexpr):
    """S2, of queries and keys that move along straight lines unless BENT."""
    s2 = dot(query1, tl.trans(key1)) * (2 * scale)
    if BENT:
        s2 += first_scores(query, query2, key, key2, scale)
    return s2
