"""Triton kernels of groups that the registers of a block do not hold: the means first, then a pass by tiles.

Formulas as in whole.py.  Each number is read twice and written once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastlik.ops.activation.triton import derivatives


@triton.jit
def _tile(
    start,
    group,
    space: tl.constexpr,
    groups: tl.constexpr,
    width: tl.constexpr,
    LAST: tl.constexpr,
    SPACE: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Channels (1, channels) of a group of one sample; offsets and mask of its tile from ``start``."""
    s = start + tl.arange(0, SPACE)[:, None]
    c = tl.arange(0, CHANNELS)[None, :]
    sample = (group // groups).to(tl.int64)
    channel = (group % groups) * width + c
    if LAST:
        offsets = s * (groups * width) + channel
    else:
        offsets = channel * space + s
    return channel, sample * groups * width * space + offsets, (s < space) & (c < width)


@triton.jit
def _sum(values):
    return tl.sum(tl.sum(values, 1), 0)


@triton.jit
def _load(pointer, inside):
    return tl.load(pointer, inside, 0.0).to(tl.float32)


@triton.jit
def _average(x, group, space, groups, width, LAST: tl.constexpr, SPACE: tl.constexpr, CHANNELS: tl.constexpr):
    total = tl.zeros([SPACE, CHANNELS], tl.float32)
    for start in range(0, space, SPACE):
        _, offsets, inside = _tile(start, group, space, groups, width, LAST, SPACE, CHANNELS)
        total += _load(x + offsets, inside)
    return _sum(total) / (space * width)


@triton.jit
def _products(
    x, t, mean, average, group, space: tl.constexpr, groups: tl.constexpr, width: tl.constexpr,
    LAST: tl.constexpr, SPACE: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Means over a group of (x - mean) (t - average) and (t - average)^2."""
    cross, square = tl.zeros([SPACE, CHANNELS], tl.float32), tl.zeros([SPACE, CHANNELS], tl.float32)
    for start in range(0, space, SPACE):
        _, offsets, inside = _tile(start, group, space, groups, width, LAST, SPACE, CHANNELS)
        moved = tl.where(inside, _load(t + offsets, inside) - average, 0.0)
        cross += tl.where(inside, _load(x + offsets, inside) - mean, 0.0) * moved
        square += moved * moved
    return _sum(cross) / (space * width), _sum(square) / (space * width)


@triton.jit
def _describe(
    means, t, x, mean, r, group, space: tl.constexpr, groups: tl.constexpr, width: tl.constexpr,
    CENTRED: tl.constexpr, LAST: tl.constexpr, SPACE: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    average = 0.0
    if CENTRED:
        average = _average(t, group, space, groups, width, LAST, SPACE, CHANNELS)
    cross, square = _products(x, t, mean, average, group, space, groups, width, LAST, SPACE, CHANNELS)
    tl.store(means, average)
    tl.store(means + 1, cross * r)
    tl.store(means + 2, square)


@triton.jit
def means_kernel(
    x, first, second, means, size, count, seconds, eps,
    space: tl.constexpr, groups: tl.constexpr, width: tl.constexpr,
    CENTRED: tl.constexpr, LAST: tl.constexpr, SPACE: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Of a group: (mean, 1 / std, unset) of x; (mean t, mean(n t), mean(t^2)), centred, of each t."""
    group = tl.program_id(0)
    means += group.to(tl.int64) * 3 * (1 + count + seconds)
    mean = 0.0
    if CENTRED:
        mean = _average(x, group, space, groups, width, LAST, SPACE, CHANNELS)
    _, square = _products(x, x, mean, mean, group, space, groups, width, LAST, SPACE, CHANNELS)
    r = tl.rsqrt(square + eps)
    tl.store(means, mean)
    tl.store(means + 1, r)
    for _ in range(count):
        means += 3
        _describe(means, first, x, mean, r, group, space, groups, width, CENTRED, LAST, SPACE, CHANNELS)
        first += size
    for _ in range(seconds):
        means += 3
        _describe(means, second, x, mean, r, group, space, groups, width, CENTRED, LAST, SPACE, CHANNELS)
        second += size


@triton.jit
def forward_kernel(
    x, first, second, scale, shift, means, y, y1, y2, size, count, seconds, repeats,
    space: tl.constexpr, groups: tl.constexpr, width: tl.constexpr,
    FUNCTION: tl.constexpr, SECOND: tl.constexpr, SCALED: tl.constexpr, SHIFTED: tl.constexpr,
    LAST: tl.constexpr, SPACE: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A tile of a group, from its means."""
    tiles = tl.cdiv(space, SPACE)
    group = tl.program_id(0) // tiles
    channel, offsets, inside = _tile(
        (tl.program_id(0) % tiles) * SPACE, group, space, groups, width, LAST, SPACE, CHANNELS
    )
    live = channel < (group % groups + 1) * width
    at = (group // groups // repeats) * groups * width + channel
    m, a = tl.full(channel.shape, 1.0, tl.float32), tl.zeros(channel.shape, tl.float32)
    if SCALED:
        m = _load(scale + at, live)
    if SHIFTED:
        a = _load(shift + at, live)
    means += group.to(tl.int64) * 3 * (1 + count + seconds)
    r = tl.load(means + 1)
    n = (_load(x + offsets, inside) - tl.load(means)) * r
    f0, f1, f2, f3 = derivatives(n * m + a, 1.0, FUNCTION)
    tl.store(y + offsets, f0.to(y.dtype.element_ty), inside)
    squares, bends = tl.zeros_like(n), tl.zeros_like(n)
    first, y1, second, y2 = first + offsets, y1 + offsets, second + offsets, y2 + offsets
    of_second = means + 3 * (1 + count)
    for _ in range(count):
        means += 3
        p = tl.load(means + 1)
        t = _load(first, inside) - tl.load(means)
        z1 = r * (t - n * p) * m
        tl.store(y1, (f1 * z1).to(y1.dtype.element_ty), inside)
        if SECOND != "none":
            bend = r * r * (n * (3 * p * p - tl.load(means + 2)) - 2 * p * t)
            if SECOND == "along":
                s = _load(second, inside) - tl.load(of_second)
                n2 = r * (s - n * tl.load(of_second + 1)) + bend
                tl.store(y2, (f2 * z1 * z1 + f1 * n2 * m).to(y2.dtype.element_ty), inside)
                second += size
                y2 += size
                of_second += 3
            else:
                squares += z1 * z1
                bends += bend
        first += size
        y1 += size
    if SECOND == "sum":
        s = _load(second, inside) - tl.load(of_second)
        n2 = r * (s - n * tl.load(of_second + 1)) + bends
        tl.store(y2, (f2 * squares + f1 * n2 * m).to(y2.dtype.element_ty), inside)
