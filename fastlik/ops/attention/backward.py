"""The backward kernels of the jet of softmax attention: formulas in triton.py."""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import dot, first_scores, rows_of, scores, second_scores, store


@triton.jit
def _row(pointer, i, length):
    return tl.load(pointer + i, i < length, 0.0)[:, None]


@triton.jit
def _gradients_of_scores(
    query, query1, query2, key, key1, key2, value, value1, value2, g, h, w,
    mask, start, column, length, keys, scale, mask_t, mask_s, lse, mu, nu, alpha, beta, gamma,
    CURVED: tl.constexpr, BENT: tl.constexpr, CAUSAL: tl.constexpr, MASK: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """P, P1, P2, and scale times the gradients of S, S1 and S2, of a tile, in the dtype of the queries."""
    i = start + tl.arange(0, ROWS)
    s = scores(
        query, key, scale, mask, start, column, length, keys, mask_t, mask_s, CAUSAL, MASK, ROWS, COLUMNS
    )
    p = tl.exp2(s - tl.load(lse + i, i < length, float("inf"))[:, None])
    s1 = first_scores(query, query1, key, key1, scale) - _row(mu, i, length)
    b = dot(h, tl.trans(value))
    if CURVED:
        b += 2 * dot(w, tl.trans(value1))
    b -= _row(beta, i, length)
    ds = dot(g, tl.trans(value)) + dot(h, tl.trans(value1)) - _row(alpha, i, length) + s1 * b
    ds1 = b
    p1 = p * s1
    p2, ds2 = p, p
    if CURVED:
        c = dot(w, tl.trans(value)) - _row(gamma, i, length)
        s2 = second_scores(query, query1, query2, key, key1, key2, scale, BENT) + s1 * s1
        s2 -= _row(nu, i, length)
        ds += s2 * c
        if BENT:
            ds += dot(w, tl.trans(value2))
        ds1 += 2 * s1 * c
        ds2 = p * c * scale
        p2 = p * s2
    kind = query.dtype
    ds, ds1 = p * ds * scale, p * ds1 * scale
    return p.to(kind), p1.to(kind), p2.to(kind), ds.to(kind), ds1.to(kind), ds2.to(kind)


@triton.jit
def backward_queries_kernel(
    q, k, v, q1, k1, v1, q2, k2, v2, mask, g, h, w, lse, mu, nu, alpha, beta, gamma, dq, dq1, dq2,
    heads, length, keys, size: tl.constexpr, scale, queries, values, first, mask_b, mask_h, mask_t, mask_s,
    CURVED: tl.constexpr, BENT: tl.constexpr, CAUSAL: tl.constexpr, MASK: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of queries and of its derivatives along tangent program_id(2).

    dq (K, ...) is to be summed over k: the gradient g of O counts for the first.
    """
    start = tl.program_id(0) * ROWS
    head, tangent = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    mask += (head // heads) * mask_b + (head % heads) * mask_h
    q_at, k_at = head * length * size, head * keys * size
    q1_at, k1_at = tangent * queries + q_at, tangent * values + k_at
    lse += head * length
    row = tangent * tl.num_programs(1) * length + head * length
    query = rows_of(q + q_at, start, length, size, ROWS, HEAD)
    query1 = rows_of(q1 + q1_at, start, length, size, ROWS, HEAD)
    grad = rows_of(g + q_at, start, length, size, ROWS, HEAD)
    grad *= (tangent + first == 0).to(grad.dtype)
    grad1 = rows_of(h + q1_at, start, length, size, ROWS, HEAD)
    query2, grad2 = query, grad
    if CURVED:
        grad2 = rows_of(w + q1_at, start, length, size, ROWS, HEAD)
    if BENT:
        query2 = rows_of(q2 + q1_at, start, length, size, ROWS, HEAD)
    out, out1 = tl.zeros([ROWS, HEAD], tl.float32), tl.zeros([ROWS, HEAD], tl.float32)
    if BENT:
        out2 = tl.zeros([ROWS, HEAD], tl.float32)
    end = tl.minimum(keys, start + ROWS) if CAUSAL else keys
    for column in range(0, end, COLUMNS):
        key = rows_of(k + k_at, column, keys, size, COLUMNS, HEAD)
        key1 = rows_of(k1 + k1_at, column, keys, size, COLUMNS, HEAD)
        value = rows_of(v + k_at, column, keys, size, COLUMNS, HEAD)
        value1 = rows_of(v1 + k1_at, column, keys, size, COLUMNS, HEAD)
        key2, value2 = key, value
        if BENT:
            key2 = rows_of(k2 + k1_at, column, keys, size, COLUMNS, HEAD)
            value2 = rows_of(v2 + k1_at, column, keys, size, COLUMNS, HEAD)
        p, p1, p2, ds, ds1, ds2 = _gradients_of_scores(
            query, query1, query2, key, key1, key2, value, value1, value2, grad, grad1, grad2,
            mask, start, column, length, keys, scale, mask_t, mask_s,
            lse, mu + row, nu + row, alpha + row, beta + row, gamma + row,
            CURVED, BENT, CAUSAL, MASK, ROWS, COLUMNS,
        )  # fmt: skip
        out += dot(ds, key) + dot(ds1, key1)
        out1 += dot(ds1, key)
        if CURVED:
            out1 += 2 * dot(ds2, key1)
        if BENT:
            out += dot(ds2, key2)
            out2 += dot(ds2, key)
    store(dq + q1_at, out, start, length, size, ROWS, HEAD)
    store(dq1 + q1_at, out1, start, length, size, ROWS, HEAD)
    if BENT:
        store(dq2 + q1_at, out2, start, length, size, ROWS, HEAD)


@triton.jit
def backward_keys_kernel(
    q, k, v, q1, k1, v1, q2, k2, v2, mask, g, h, w, lse, mu, nu, alpha, beta, gamma,
    dk, dv, dk1, dv1, dk2, dv2,
    heads, length, keys, size: tl.constexpr, scale, queries, values, first, mask_b, mask_h, mask_t, mask_s,
    CURVED: tl.constexpr, BENT: tl.constexpr, CAUSAL: tl.constexpr, MASK: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of keys and values, and of their derivatives, as above."""
    column = tl.program_id(0) * COLUMNS
    head, tangent = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    mask += (head // heads) * mask_b + (head % heads) * mask_h
    q_at, k_at = head * length * size, head * keys * size
    q1_at, k1_at = tangent * queries + q_at, tangent * values + k_at
    lse += head * length
    row = tangent * tl.num_programs(1) * length + head * length
    key = rows_of(k + k_at, column, keys, size, COLUMNS, HEAD)
    key1 = rows_of(k1 + k1_at, column, keys, size, COLUMNS, HEAD)
    value = rows_of(v + k_at, column, keys, size, COLUMNS, HEAD)
    value1 = rows_of(v1 + k1_at, column, keys, size, COLUMNS, HEAD)
    key2, value2 = key, value
    if BENT:
        key2 = rows_of(k2 + k1_at, column, keys, size, COLUMNS, HEAD)
        value2 = rows_of(v2 + k1_at, column, keys, size, COLUMNS, HEAD)
        gk2, gv2 = tl.zeros([COLUMNS, HEAD], tl.float32), tl.zeros([COLUMNS, HEAD], tl.float32)
    gk, gk1 = tl.zeros([COLUMNS, HEAD], tl.float32), tl.zeros([COLUMNS, HEAD], tl.float32)
    gv, gv1 = tl.zeros([COLUMNS, HEAD], tl.float32), tl.zeros([COLUMNS, HEAD], tl.float32)
    begin = (column // ROWS) * ROWS if CAUSAL else 0
    for start in range(begin, length, ROWS):
        query = rows_of(q + q_at, start, length, size, ROWS, HEAD)
        query1 = rows_of(q1 + q1_at, start, length, size, ROWS, HEAD)
        grad = rows_of(g + q_at, start, length, size, ROWS, HEAD)
        grad *= (tangent + first == 0).to(grad.dtype)
        grad1 = rows_of(h + q1_at, start, length, size, ROWS, HEAD)
        query2, grad2 = query, grad
        if CURVED:
            grad2 = rows_of(w + q1_at, start, length, size, ROWS, HEAD)
        if BENT:
            query2 = rows_of(q2 + q1_at, start, length, size, ROWS, HEAD)
        p, p1, p2, ds, ds1, ds2 = _gradients_of_scores(
            query, query1, query2, key, key1, key2, value, value1, value2, grad, grad1, grad2,
            mask, start, column, length, keys, scale, mask_t, mask_s,
            lse, mu + row, nu + row, alpha + row, beta + row, gamma + row,
            CURVED, BENT, CAUSAL, MASK, ROWS, COLUMNS,
        )  # fmt: skip
        p, p1, ds, ds1 = tl.trans(p), tl.trans(p1), tl.trans(ds), tl.trans(ds1)
        gv += dot(p, grad) + dot(p1, grad1)
        gv1 += dot(p, grad1)
        gk += dot(ds, query) + dot(ds1, query1)
        gk1 += dot(ds1, query)
        if CURVED:
            p2, ds2 = tl.trans(p2), tl.trans(ds2)
            gv += dot(p2, grad2)
            gv1 += 2 * dot(p1, grad2)
            gk1 += 2 * dot(ds2, query1)
        if BENT:
            gv2 += dot(p, grad2)
            gk += dot(ds2, query2)
            gk2 += dot(ds2, query)
    store(dk + k1_at, gk, column, keys, size, COLUMNS, HEAD)
    store(dv + k1_at, gv, column, keys, size, COLUMNS, HEAD)
    store(dk1 + k1_at, gk1, column, keys, size, COLUMNS, HEAD)
    store(dv1 + k1_at, gv1, column, keys, size, COLUMNS, HEAD)
    if BENT:
        store(dk2 + k1_at, gk2, column, keys, size, COLUMNS, HEAD)
        store(dv2 + k1_at, gv2, column, keys, size, COLUMNS, HEAD)
