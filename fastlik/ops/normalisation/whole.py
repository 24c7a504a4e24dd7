"""Triton kernels of jets of normalisation, scale, shift and activation: whole groups in registers.

With n = (x - mean) / std and J t = (t - mean t - n mean(n t)) / std, the derivatives of n are

    n1 = J x1,    n2 = J x2 - 2 p x1 / var + n (3 p^2 - mean(x1^2)) / var,    p = mean(n x1),

and the gradient of h . J t by x is -(mean(h n1) n + mean(n t) J h + mean(n h) n1) / std, n1 = J t.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastlik.ops.activation.triton import derivatives


@triton.jit
def _mean(values, count):
    """Over a group, of a tile (space, groups, channels) that is 0 outside: (1, groups, 1)."""
    return tl.sum(tl.sum(values, 2, keep_dims=True), 0, keep_dims=True) / count


@triton.jit
def _place(
    start, space: tl.constexpr, groups: tl.constexpr, width: tl.constexpr,
    LAST: tl.constexpr, SPACE: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """This program's sample; channels (1, groups, channels), offsets and mask of its tile from ``start``."""
    blocks = tl.cdiv(groups, GROUPS)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    s = start + tl.arange(0, SPACE)[:, None, None]
    g = (tl.program_id(0) % blocks) * GROUPS + tl.arange(0, GROUPS)[None, :, None]
    c = tl.arange(0, CHANNELS)[None, None, :]
    channel = g * width + c
    if LAST:
        offsets = s * (groups * width) + channel
    else:
        offsets = channel * space + s
    return sample, channel, (g < groups) & (c < width), sample * groups * width * space + offsets, s < space


@triton.jit
def _factors(scale, shift, row, channel, live, SCALED: tl.constexpr, SHIFTED: tl.constexpr, channels):
    m = tl.full(channel.shape, 1.0, tl.float32)
    a = tl.zeros(channel.shape, tl.float32)
    if SCALED:
        m = tl.load(scale + row * channels + channel, live, 0.0).to(tl.float32)
    if SHIFTED:
        a = tl.load(shift + row * channels + channel, live, 0.0).to(tl.float32)
    return m, a


@triton.jit
def _centre(values, inside, count, CENTRED: tl.constexpr):
    if CENTRED:
        return tl.where(inside, values - _mean(values, count), 0.0)
    return values


@triton.jit
def forward_kernel(
    x, first, second, scale, shift, y, y1, y2, size, count, repeats, eps,
    space: tl.constexpr, groups: tl.constexpr, width: tl.constexpr,
    FUNCTION: tl.constexpr, SECOND: tl.constexpr, CENTRED: tl.constexpr, SCALED: tl.constexpr,
    SHIFTED: tl.constexpr, LAST: tl.constexpr, SPACE: tl.constexpr, GROUPS: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    """Whole groups in registers.  SECOND: as in the kernel of activations."""
    sample, channel, live, offsets, near = _place(0, space, groups, width, LAST, SPACE, GROUPS, CHANNELS)
    inside = live & near
    n_group = space * width
    m, a = _factors(scale, shift, sample // repeats, channel, live, SCALED, SHIFTED, groups * width)
    c = _centre(tl.load(x + offsets, inside, 0.0).to(tl.float32), inside, n_group, CENTRED)
    r = tl.rsqrt(_mean(c * c, n_group) + eps)
    n = c * r
    f0, f1, f2, f3 = derivatives(n * m + a, 1.0, FUNCTION)
    tl.store(y + offsets, f0.to(y.dtype.element_ty), inside)
    squares, bends = tl.zeros_like(c), tl.zeros_like(c)
    first, y1, second, y2 = first + offsets, y1 + offsets, second + offsets, y2 + offsets
    for _ in range(count):
        t = _centre(tl.load(first, inside, 0.0).to(tl.float32), inside, n_group, CENTRED)
        p = _mean(n * t, n_group)
        z1 = r * (t - n * p) * m
        tl.store(y1, (f1 * z1).to(y1.dtype.element_ty), inside)
        if SECOND != "none":
            bend = r * r * (n * (3 * p * p - _mean(t * t, n_group)) - 2 * p * t)
            if SECOND == "along":
                s = _centre(tl.load(second, inside, 0.0).to(tl.float32), inside, n_group, CENTRED)
                n2 = r * (s - n * _mean(n * s, n_group)) + bend
                tl.store(y2, (f2 * z1 * z1 + f1 * n2 * m).to(y2.dtype.element_ty), inside)
                second += size
                y2 += size
            else:
                squares += z1 * z1
                bends += bend
        first += size
        y1 += size
    if SECOND == "sum":
        s = _centre(tl.load(second, inside, 0.0).to(tl.float32), inside, n_group, CENTRED)
        n2 = r * (s - n * _mean(n * s, n_group)) + bends
        tl.store(y2, (f2 * squares + f1 * n2 * m).to(y2.dtype.element_ty), inside)


@triton.jit
def backward_kernel(
    x, first, scale, shift, g, g1, gx, gfirst, gscale, gshift, size, count, repeats, eps,
    space: tl.constexpr, groups: tl.constexpr, width: tl.constexpr,
    FUNCTION: tl.constexpr, CENTRED: tl.constexpr, SCALED: tl.constexpr, SHIFTED: tl.constexpr,
    LAST: tl.constexpr, SPACE: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Of first-order jets; gscale and gshift (N, C) are those of each sample."""
    sample, channel, live, offsets, near = _place(0, space, groups, width, LAST, SPACE, GROUPS, CHANNELS)
    inside = live & near
    n_group = space * width
    m, a = _factors(scale, shift, sample // repeats, channel, live, SCALED, SHIFTED, groups * width)
    c = _centre(tl.load(x + offsets, inside, 0.0).to(tl.float32), inside, n_group, CENTRED)
    r = tl.rsqrt(_mean(c * c, n_group) + eps)
    n = c * r
    f0, f1, f2, f3 = derivatives(n * m + a, 1.0, FUNCTION)
    gz = f1 * tl.load(g + offsets, inside, 0.0).to(tl.float32)
    gm, gx_tangents = tl.zeros_like(c), tl.zeros_like(c)
    first, g1, gfirst = first + offsets, g1 + offsets, gfirst + offsets
    for _ in range(count):
        t = _centre(tl.load(first, inside, 0.0).to(tl.float32), inside, n_group, CENTRED)
        p = _mean(n * t, n_group)
        n1 = r * (t - n * p)
        h1 = tl.load(g1, inside, 0.0).to(tl.float32)
        gz += f2 * n1 * m * h1
        gm += n1 * f1 * h1
        h = f1 * h1 * m
        q = _mean(n * h, n_group)
        jh = r * (_centre(h, inside, n_group, CENTRED) - n * q)
        tl.store(gfirst, jh.to(gfirst.dtype.element_ty), inside)
        gx_tangents += r * (_mean(h * n1, n_group) * n + p * jh + q * n1)
        first += size
        g1 += size
        gfirst += size
    h = gz * m
    jh = r * (_centre(h, inside, n_group, CENTRED) - n * _mean(n * h, n_group))
    tl.store(gx + offsets, (jh - gx_tangents).to(gx.dtype.element_ty), inside)
    if SCALED:
        gm += n * gz
        tl.store(gscale + sample * groups * width + channel, tl.sum(gm, 0, keep_dims=True), live)
    if SHIFTED:
        tl.store(gshift + sample * groups * width + channel, tl.sum(gz, 0, keep_dims=True), live)
