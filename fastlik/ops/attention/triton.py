"""Triton kernels of the first-order jet of softmax attention.

With scores S, S1 = scale (Q1 K' + Q K1'), weights P and mu = rowsum(P S1): O = P V and
O1 = (P S1) V + P V1 - mu O.  Backwards from gradients g of O and h of O1, with omega = h . O and

    delta = g . O + h . O1 - omega mu,    A = h V',
    dS1 = P (A - omega),    dS = P (g V' + h V1' + A (S1 - mu) - omega S1 - delta),

all is a sum of matrix products of tiles; of several tangents each has a pass of its own, for dS is linear.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlik.ops.differentiable import Fused
from fastlik.ops.memory import empty_jet

from . import reference

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _rows(pointer, start, length, size, BLOCK: tl.constexpr, HEAD: tl.constexpr):
    """Rows start .. start + BLOCK of a contiguous (length, size) matrix, 0 outside."""
    i, d = start + tl.arange(0, BLOCK)[:, None], tl.arange(0, HEAD)[None, :]
    return tl.load(pointer + i * size + d, (i < length) & (d < size), 0.0)


@triton.jit
def _store(pointer, values, start, length, size, BLOCK: tl.constexpr, HEAD: tl.constexpr):
    i, d = start + tl.arange(0, BLOCK)[:, None], tl.arange(0, HEAD)[None, :]
    tl.store(pointer + i * size + d, values.to(pointer.dtype.element_ty), (i < length) & (d < size))


@triton.jit
def _dot(a, b):
    """float32 as the sum of three products in TF32, which loses nothing."""
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def _seen(
    scores, mask, start, column, length, keys, stride_t, stride_s,
    CAUSAL: tl.constexpr, MASK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Scores in units of log 2 with -inf where nothing is seen.  MASK: "none", "bool" or "sum"."""
    i, j = start + tl.arange(0, ROWS)[:, None], column + tl.arange(0, COLUMNS)[None, :]
    inside = (i < length) & (j < keys)
    if MASK == "sum":
        scores += LOG2_E * tl.load(mask + i * stride_t + j * stride_s, inside, 0.0).to(tl.float32)
    seen = j < keys
    if MASK == "bool":
        seen &= tl.load(mask + i * stride_t + j * stride_s, inside, 0) != 0
    if CAUSAL:
        seen &= j <= i
    return tl.where(seen, scores, -float("inf"))


@triton.jit
def forward_kernel(
    q, k, v, q1, k1, v1, mask, o, o1, lse, mu, heads, length, keys, size, scale, queries, values, count,
    mask_b, mask_h, mask_t, mask_s,
    SEVERAL: tl.constexpr, CAUSAL: tl.constexpr, MASK: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    """A block of queries of a head; tangent program_id(2) or, if SEVERAL, twice that and the next one.

    queries, values: numbers in q and in k.
    """
    start = tl.program_id(0) * ROWS
    head = tl.program_id(1).to(tl.int64)
    tangent = tl.program_id(2).to(tl.int64)
    if SEVERAL:
        tangent *= 2
        # an odd last one is computed twice
        other = tl.minimum(tangent + 1, count - 1)
    mask += (head // heads) * mask_b + (head % heads) * mask_h
    q_at, k_at = head * length * size, head * keys * size
    query = _rows(q + q_at, start, length, size, ROWS, HEAD)
    query1 = _rows(q1 + tangent * queries + q_at, start, length, size, ROWS, HEAD)
    top = tl.full([ROWS], -float("inf"), tl.float32)
    weight, weight1 = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32)
    out, out1 = tl.zeros([ROWS, HEAD], tl.float32), tl.zeros([ROWS, HEAD], tl.float32)
    if SEVERAL:
        query2 = _rows(q1 + other * queries + q_at, start, length, size, ROWS, HEAD)
        weight2, out2 = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS, HEAD], tl.float32)
    end = tl.minimum(keys, start + ROWS) if CAUSAL else keys
    for column in range(0, end, COLUMNS):
        key = _rows(k + k_at, column, keys, size, COLUMNS, HEAD)
        value = _rows(v + k_at, column, keys, size, COLUMNS, HEAD)
        scores = _seen(
            _dot(query, tl.trans(key)) * (scale * LOG2_E), mask, start, column, length, keys, mask_t, mask_s,
            CAUSAL, MASK, ROWS, COLUMNS,
        )  # fmt: skip
        highest = tl.maximum(top, tl.max(scores, 1))
        # nothing seen so far: any finite number serves
        anchor = tl.where(highest == -float("inf"), 0.0, highest)
        shrink = tl.exp2(top - anchor)
        p = tl.exp2(scores - anchor[:, None])
        weight = weight * shrink + tl.sum(p, 1)
        key1 = _rows(k1 + tangent * values + k_at, column, keys, size, COLUMNS, HEAD)
        value1 = _rows(v1 + tangent * values + k_at, column, keys, size, COLUMNS, HEAD)
        p1 = p * ((_dot(query1, tl.trans(key)) + _dot(query, tl.trans(key1))) * scale)
        weight1 = weight1 * shrink + tl.sum(p1, 1)
        rounded = p.to(value.dtype)
        out = out * shrink[:, None] + _dot(rounded, value)
        out1 = out1 * shrink[:, None] + _dot(p1.to(value.dtype), value) + _dot(rounded, value1)
        if SEVERAL:
            key2 = _rows(k1 + other * values + k_at, column, keys, size, COLUMNS, HEAD)
            value2 = _rows(v1 + other * values + k_at, column, keys, size, COLUMNS, HEAD)
            p2 = p * ((_dot(query2, tl.trans(key)) + _dot(query, tl.trans(key2))) * scale)
            weight2 = weight2 * shrink + tl.sum(p2, 1)
            out2 = out2 * shrink[:, None] + _dot(p2.to(value.dtype), value) + _dot(rounded, value2)
        top = highest
    total = tl.where(weight == 0, 1.0, weight)
    out = out / total[:, None]
    mean1 = weight1 / total
    out1 = out1 / total[:, None] - mean1[:, None] * out
    i = start + tl.arange(0, ROWS)
    _store(o1 + tangent * queries + q_at, out1, start, length, size, ROWS, HEAD)
    row = head * length + i
    heads_rows = tl.num_programs(1).to(tl.int64) * length
    tl.store(mu + tangent * heads_rows + row, mean1, i < length)
    if SEVERAL:
        mean2 = weight2 / total
        out2 = out2 / total[:, None] - mean2[:, None] * out
        _store(o1 + other * queries + q_at, out2, start, length, size, ROWS, HEAD)
        tl.store(mu + other * heads_rows + row, mean2, i < length)
    if tl.program_id(2) == 0:
        _store(o + q_at, out, start, length, size, ROWS, HEAD)
        # +inf where nothing is seen, so that every weight is 0
        tl.store(lse + row, tl.where(weight == 0, float("inf"), top + tl.log2(total)), i < length)


@triton.jit
def _gradients_of_scores(
    query, query1, key, key1, value, value1, g, h, mask, start, column, length, keys, scale,
    mask_t, mask_s, lse, mu, omega, delta,
    CAUSAL: tl.constexpr, MASK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """P, P1 = P (S1 - mu), and scale times the gradients of S and of S1, of a tile."""
    i = start + tl.arange(0, ROWS)
    inside = i < length
    scores = _seen(
        _dot(query, tl.trans(key)) * (scale * LOG2_E), mask, start, column, length, keys, mask_t, mask_s,
        CAUSAL, MASK, ROWS, COLUMNS,
    )  # fmt: skip
    p = tl.exp2(scores - tl.load(lse + i, inside, float("inf"))[:, None])
    s1 = (_dot(query1, tl.trans(key)) + _dot(query, tl.trans(key1))) * scale
    mean, share = tl.load(mu + i, inside, 0.0)[:, None], tl.load(omega + i, inside, 0.0)[:, None]
    a = _dot(h, tl.trans(value))
    direct = _dot(g, tl.trans(value)) + _dot(h, tl.trans(value1)) - tl.load(delta + i, inside, 0.0)[:, None]
    ds = p * (direct + a * (s1 - mean) - share * s1) * scale
    return p, p * (s1 - mean), ds, p * (a - share) * scale


@triton.jit
def backward_queries_kernel(
    q, k, v, q1, k1, v1, mask, g, h, lse, mu, omega, delta, dq, dq1,
    heads, length, keys, size, scale, queries, values, mask_b, mask_h, mask_t, mask_s,
    CAUSAL: tl.constexpr, MASK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of queries and of its tangent program_id(2); dq (K, ...) is to be summed over k:
    the gradient g of O counts for the first."""
    start = tl.program_id(0) * ROWS
    head, tangent = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    mask += (head // heads) * mask_b + (head % heads) * mask_h
    q_at, k_at = head * length * size, head * keys * size
    row = tangent * tl.num_programs(1) * length + head * length
    q1 += tangent * queries
    k1, v1 = k1 + tangent * values, v1 + tangent * values
    query = _rows(q + q_at, start, length, size, ROWS, HEAD)
    query1 = _rows(q1 + q_at, start, length, size, ROWS, HEAD)
    grad = _rows(g + q_at, start, length, size, ROWS, HEAD)
    grad *= (tangent == 0).to(grad.dtype)
    grad1 = _rows(h + tangent * queries + q_at, start, length, size, ROWS, HEAD)
    out, out1 = tl.zeros([ROWS, HEAD], tl.float32), tl.zeros([ROWS, HEAD], tl.float32)
    end = tl.minimum(keys, start + ROWS) if CAUSAL else keys
    for column in range(0, end, COLUMNS):
        key = _rows(k + k_at, column, keys, size, COLUMNS, HEAD)
        key1 = _rows(k1 + k_at, column, keys, size, COLUMNS, HEAD)
        value = _rows(v + k_at, column, keys, size, COLUMNS, HEAD)
        value1 = _rows(v1 + k_at, column, keys, size, COLUMNS, HEAD)
        p, p1, ds, ds1 = _gradients_of_scores(
            query, query1, key, key1, value, value1, grad, grad1, mask, start, column, length, keys,
            scale, mask_t, mask_s, lse + head * length, mu + row, omega + row, delta + row,
            CAUSAL, MASK, ROWS, COLUMNS,
        )  # fmt: skip
        ds, ds1 = ds.to(key.dtype), ds1.to(key.dtype)
        out += _dot(ds, key) + _dot(ds1, key1)
        out1 += _dot(ds1, key)
    _store(dq + tangent * queries + q_at, out, start, length, size, ROWS, HEAD)
    _store(dq1 + tangent * queries + q_at, out1, start, length, size, ROWS, HEAD)


@triton.jit
def backward_keys_kernel(
    q, k, v, q1, k1, v1, mask, g, h, lse, mu, omega, delta, dk, dv, dk1, dv1,
    heads, length, keys, size, scale, queries, values, mask_b, mask_h, mask_t, mask_s,
    CAUSAL: tl.constexpr, MASK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of keys and values, and of their tangent, as above."""
    column = tl.program_id(0) * COLUMNS
    head, tangent = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    mask += (head // heads) * mask_b + (head % heads) * mask_h
    q_at, k_at = head * length * size, head * keys * size
    row = tangent * tl.num_programs(1) * length + head * length
    q1 += tangent * queries
    h += tangent * queries
    at = tangent * values + k_at
    key = _rows(k + k_at, column, keys, size, COLUMNS, HEAD)
    key1 = _rows(k1 + at, column, keys, size, COLUMNS, HEAD)
    value = _rows(v + k_at, column, keys, size, COLUMNS, HEAD)
    value1 = _rows(v1 + at, column, keys, size, COLUMNS, HEAD)
    gk, gk1 = tl.zeros([COLUMNS, HEAD], tl.float32), tl.zeros([COLUMNS, HEAD], tl.float32)
    gv, gv1 = tl.zeros([COLUMNS, HEAD], tl.float32), tl.zeros([COLUMNS, HEAD], tl.float32)
    begin = (column // ROWS) * ROWS if CAUSAL else 0
    for start in range(begin, length, ROWS):
        query = _rows(q + q_at, start, length, size, ROWS, HEAD)
        query1 = _rows(q1 + q_at, start, length, size, ROWS, HEAD)
        grad = _rows(g + q_at, start, length, size, ROWS, HEAD)
        grad *= (tangent == 0).to(grad.dtype)
        grad1 = _rows(h + q_at, start, length, size, ROWS, HEAD)
        p, p1, ds, ds1 = _gradients_of_scores(
            query, query1, key, key1, value, value1, grad, grad1, mask, start, column, length, keys,
            scale, mask_t, mask_s, lse + head * length, mu + row, omega + row, delta + row,
            CAUSAL, MASK, ROWS, COLUMNS,
        )  # fmt: skip
        p, p1 = tl.trans(p.to(key.dtype)), tl.trans(p1.to(key.dtype))
        ds, ds1 = tl.trans(ds.to(key.dtype)), tl.trans(ds1.to(key.dtype))
        gv += _dot(p, grad) + _dot(p1, grad1)
        gv1 += _dot(p, grad1)
        gk += _dot(ds, query) + _dot(ds1, query1)
        gk1 += _dot(ds1, query)
    _store(dk + at, gk, column, keys, size, COLUMNS, HEAD)
    _store(dv + at, gv, column, keys, size, COLUMNS, HEAD)
    _store(dk1 + at, gk1, column, keys, size, COLUMNS, HEAD)
    _store(dv1 + at, gv1, column, keys, size, COLUMNS, HEAD)


def _blocks(query: Tensor, several: bool) -> dict[str, int]:
    """Tiles that the registers hold, for a head of this size and dtype."""
    head = max(16, triton.next_power_of_2(query.shape[-1]))
    wide = query.dtype == torch.float32
    # each of the accumulators takes 32 registers at most
    rows, warps = (32, 4) if wide else (128 if head <= 64 else 64, 8)
    columns = 32 if wide or several or head > 64 else 64
    return {"ROWS": rows, "COLUMNS": columns, "HEAD": head, "num_warps": warps, "num_stages": 2}


def _backward_blocks(query: Tensor) -> dict[str, int]:
    head = max(16, triton.next_power_of_2(query.shape[-1]))
    return {"ROWS": 32, "COLUMNS": 32, "HEAD": head, "num_warps": 4 if head <= 64 else 8, "num_stages": 1}


def _mask(query: Tensor, mask: Tensor | None, causal: bool) -> tuple[Tensor, tuple[int, ...], dict]:
    """A pointer, its strides, and the kernel's constants."""
    kind = "none" if mask is None else "bool" if mask.dtype == torch.bool else "sum"
    strides = (0, 0, 0, 0) if mask is None else mask.stride()
    constants = {"CAUSAL": causal, "MASK": kind, "enable_fp_fusion": True}
    return query if mask is None else mask, strides, constants


def _sizes(query: Tensor, key: Tensor, scale: float) -> tuple[int | float, ...]:
    _, heads, length, size = query.shape
    return heads, length, key.shape[2], size, scale, query.numel(), key.numel()


def allocate(
    query: Tensor, key: Tensor, value: Tensor, query1: Tensor, *others: object, together: bool
) -> list[Tensor]:
    """O, O1, and for the backward pass log2 of the weights' sum and the means of S1."""
    rows = query.new_empty(query.shape[:3], dtype=torch.float32)
    means = query.new_empty(query1.shape[:4], dtype=torch.float32)
    return [*empty_jet(query, [len(query1)], together), rows, means]


def forward(
    results: list[Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query1: Tensor,
    key1: Tensor,
    value1: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
) -> None:
    count = len(query1)
    several = count > 1 and query.dtype != torch.float32
    blocks = _blocks(query, several)
    pointer, strides, constants = _mask(query, mask, causal)
    batch, heads, length, _ = query.shape
    grid = (
        triton.cdiv(length, blocks["ROWS"]),
        batch * heads,
        triton.cdiv(count, 2) if several else count,
    )
    forward_kernel[grid](
        *(query, key, value, query1, key1, value1, pointer, *results),
        *_sizes(query, key, scale),
        count,
        *strides,
        SEVERAL=several,
        **constants,
        **blocks,
    )


def backward(
    gradients: list[Tensor],
    grads: list[Tensor],
    results: list[Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query1: Tensor,
    key1: Tensor,
    value1: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
) -> None:
    out, out1, lse, mu = results
    g, h = grads[0].contiguous(), grads[1].contiguous()
    omega = (h * out).sum(-1, dtype=torch.float32)
    delta = (h * out1).sum(-1, dtype=torch.float32) - omega * mu
    delta[0] += (g * out).sum(-1, dtype=torch.float32)
    blocks = _backward_blocks(query)
    pointer, strides, constants = _mask(query, mask, causal)
    inputs = (query, key, value, query1, key1, value1, pointer, g, h, lse, mu, omega, delta)
    sizes = (*_sizes(query, key, scale), *strides)
    heads = query.shape[0] * query.shape[1]
    dq, dk, dv, dq1, dk1, dv1 = gradients[:6]
    # of each tangent; they are summed below
    parts = [torch.empty_like(each) for each in (query1, key1, value1)]
    grid = (triton.cdiv(query.shape[2], blocks["ROWS"]), heads, len(query1))
    backward_queries_kernel[grid](*inputs, parts[0], dq1, *sizes, **constants, **blocks)
    grid = (triton.cdiv(key.shape[2], blocks["COLUMNS"]), heads, len(query1))
    backward_keys_kernel[grid](*inputs, *parts[1:], dk1, dv1, *sizes, **constants, **blocks)
    for gradient, part in zip((dq, dk, dv), parts, strict=True):
        gradient.copy_(part[0] if len(part) == 1 else part.sum(0))
    for gradient in gradients[6:]:
        gradient.zero_()  # of a mask that wants none: the entry refuses others


FUSED = Fused(
    "attention",
    "Tensor query, Tensor key, Tensor value, Tensor query1, Tensor key1, Tensor value1, Tensor? mask, "
    "bool causal, float scale",
    reference.attention,
    allocate,
    forward,
    backward,
)
