"""The forward kernel of the jet of softmax attention: formulas in triton.py."""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import dot, first_scores, rows_of, scores, second_scores, store


@triton.jit
def _share(p, p1, anchor, column):
    """The mean of a score's derivative over the first keys, p1 = P S1: any number serves, but the nearer to
    the mean over all, the less is lost where P S1 is rounded."""
    total = tl.sum(p, 1)
    return tl.where(column == 0, tl.sum(p1, 1) / tl.where(total == 0, 1.0, total), anchor)


@triton.jit
def forward_kernel(
    q, k, v, q1, k1, v1, q2, k2, v2, mask, o, o1, o2, lse, mu, nu,
    heads, length, keys, size: tl.constexpr, scale, queries, values, count, first,
    mask_b, mask_h, mask_t, mask_s,
    SEVERAL: tl.constexpr, CURVED: tl.constexpr, BENT: tl.constexpr, CAUSAL: tl.constexpr,
    MASK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    """A block of queries of a head; tangent program_id(2) or, if SEVERAL, twice that and the next one.

    queries, values: numbers in q and in k.  first: the number of the first of these tangents.  CURVED: the
    second derivative as well, BENT: from those of queries, keys and values (not with SEVERAL).
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
    q1_at, k1_at = tangent * queries + q_at, tangent * values + k_at
    query = rows_of(q + q_at, start, length, size, ROWS, HEAD)
    query1 = rows_of(q1 + q1_at, start, length, size, ROWS, HEAD)
    top = tl.full([ROWS], -float("inf"), tl.float32)
    weight, weight1 = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32)
    out, out1 = tl.zeros([ROWS, HEAD], tl.float32), tl.zeros([ROWS, HEAD], tl.float32)
    anchor1 = tl.zeros([ROWS], tl.float32)
    query2 = query
    if CURVED or SEVERAL:
        weight2, out2 = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS, HEAD], tl.float32)
        anchor2 = tl.zeros([ROWS], tl.float32)
    if BENT:
        query2 = rows_of(q2 + q1_at, start, length, size, ROWS, HEAD)
    if SEVERAL:
        query2 = rows_of(q1 + other * queries + q_at, start, length, size, ROWS, HEAD)
    end = tl.minimum(keys, start + ROWS) if CAUSAL else keys
    for column in range(0, end, COLUMNS):
        key = rows_of(k + k_at, column, keys, size, COLUMNS, HEAD)
        value = rows_of(v + k_at, column, keys, size, COLUMNS, HEAD)
        s = scores(
            query, key, scale, mask, start, column, length, keys, mask_t, mask_s,
            CAUSAL, MASK, ROWS, COLUMNS,
        )  # fmt: skip
        highest = tl.maximum(top, tl.max(s, 1))
        # nothing seen so far: any finite number serves
        level = tl.where(highest == -float("inf"), 0.0, highest)
        shrink = tl.exp2(top - level)
        p = tl.exp2(s - level[:, None])
        weight = weight * shrink + tl.sum(p, 1)
        key1 = rows_of(k1 + k1_at, column, keys, size, COLUMNS, HEAD)
        value1 = rows_of(v1 + k1_at, column, keys, size, COLUMNS, HEAD)
        s1 = first_scores(query, query1, key, key1, scale)
        anchor1 = _share(p, p * s1, anchor1, column)
        s1 -= anchor1[:, None]
        p1 = p * s1
        weight1 = weight1 * shrink + tl.sum(p1, 1)
        rounded, rounded1 = p.to(value.dtype), p1.to(value.dtype)
        out = out * shrink[:, None] + dot(rounded, value)
        out1 = out1 * shrink[:, None] + dot(rounded1, value) + dot(rounded, value1)
        if CURVED:
            key2, value2 = key, value
            if BENT:
                key2 = rows_of(k2 + k1_at, column, keys, size, COLUMNS, HEAD)
                value2 = rows_of(v2 + k1_at, column, keys, size, COLUMNS, HEAD)
            s2 = second_scores(query, query1, query2, key, key1, key2, scale, BENT) + s1 * s1
            anchor2 = _share(p, p * s2, anchor2, column)
            p2 = p * (s2 - anchor2[:, None])
            weight2 = weight2 * shrink + tl.sum(p2, 1)
            out2 = out2 * shrink[:, None] + dot(p2.to(value.dtype), value) + 2 * dot(rounded1, value1)
            if BENT:
                out2 += dot(rounded, value2)
        if SEVERAL:
            key2 = rows_of(k1 + other * values + k_at, column, keys, size, COLUMNS, HEAD)
            value2 = rows_of(v1 + other * values + k_at, column, keys, size, COLUMNS, HEAD)
            s2 = first_scores(query, query2, key, key2, scale)
            anchor2 = _share(p, p * s2, anchor2, column)
            p2 = p * (s2 - anchor2[:, None])
            weight2 = weight2 * shrink + tl.sum(p2, 1)
            out2 = out2 * shrink[:, None] + dot(p2.to(value.dtype), value) + dot(rounded, value2)
        top = highest
    total = tl.where(weight == 0, 1.0, weight)
    out = out / total[:, None]
    mean1 = weight1 / total
    out1 = out1 / total[:, None] - mean1[:, None] * out
    i = start + tl.arange(0, ROWS)
    row, all_rows = head * length + i, tl.num_programs(1).to(tl.int64) * length
    store(o1 + q1_at, out1, start, length, size, ROWS, HEAD)
    tl.store(mu + tangent * all_rows + row, mean1 + anchor1, i < length)
    if CURVED or SEVERAL:
        mean2 = weight2 / total
        out2 = out2 / total[:, None] - mean2[:, None] * out
    if CURVED:
        out2 -= 2 * mean1[:, None] * out1
        store(o2 + q1_at, out2, start, length, size, ROWS, HEAD)
        tl.store(nu + tangent * all_rows + row, mean2 + anchor2 - mean1 * mean1, i < length)
    if SEVERAL:
        store(o1 + other * queries + q_at, out2, start, length, size, ROWS, HEAD)
        tl.store(mu + other * all_rows + row, mean2 + anchor2, i < length)
    if tl.program_id(2) + first == 0:
        store(o + q_at, out, start, length, size, ROWS, HEAD)
        # +inf where nothing is seen, so that every weight is 0
        tl.store(lse + row, tl.where(weight == 0, float("inf"), top + tl.log2(total)), i < length)
