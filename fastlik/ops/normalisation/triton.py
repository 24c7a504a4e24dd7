"""Triton kernels of jets of normalisation, scale, shift and activation.

With n = (x - mean) / std and J t = (t - mean t - n mean(n t)) / std, the derivatives of n are

    n1 = J x1,    n2 = J x2 - 2 p x1 / var + n (3 p^2 - mean(x1^2)) / var,    p = mean(n x1),

and the gradient of h . J t by x is -(mean(h n1) n + mean(n t) J h + mean(n h) n1) / std, n1 = J t.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlik.ops.activation.triton import derivatives
from fastlik.ops.differentiable import Fused
from fastlik.ops.memory import empty_jet, ordered_as

from . import reference
from .large import forward_kernel as large_kernel
from .large import means_kernel

# numbers of a group that the registers of one block hold; larger ones are read twice, and differentiated
# by the reference
LIMIT = 8192
# numbers in a tile of such a larger group
LARGE, LARGE_WARPS = 4096, 8
# bytes that lie together in memory and should be read together
SEGMENT = 64


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


class Tile(NamedTuple):
    """What one program works on, powers of two, and how many programs there are."""

    space: int
    groups: int
    channels: int
    programs: int

    @property
    def size(self) -> int:
        return self.space * self.groups * self.channels

    @property
    def warps(self) -> int:
        return max(1, min(16, self.size // 512))


def _tile(x: Tensor, groups: int, limit: int = LIMIT) -> Tile:
    """One group, or as many neighbours as make a segment of memory, or a block worth starting.

    limit: numbers in a tile of several groups.
    """
    width = x.shape[1] // groups
    space, channels = triton.next_power_of_2(_space(x)), triton.next_power_of_2(width)
    wanted = SEGMENT // (channels * x.element_size()) if _channels_last(x) else 512 // (space * channels)
    most = limit // (space * channels)
    together = max(1, min(wanted, most, triton.next_power_of_2(groups)))
    return Tile(space, together, channels, len(x) * triton.cdiv(groups, together))


def _space(x: Tensor) -> int:
    return max(1, x.shape[2:].numel())


def _channels_last(x: Tensor) -> bool:
    return not x.is_contiguous() or _space(x) == 1


def fits(x: Tensor, groups: int) -> bool:
    """Whether a tile holds the channels of a group."""
    return triton.next_power_of_2(x.shape[1] // groups) <= LIMIT


def _options(
    x: Tensor, groups: int, scale: Tensor | None, shift: Tensor | None, tile: Tile, function: str
) -> dict[str, object]:
    return {
        # constants, so that loads are as wide as they can be
        "space": _space(x),
        "groups": groups,
        "width": x.shape[1] // groups,
        "FUNCTION": function,
        "SCALED": scale is not None,
        "SHIFTED": shift is not None,
        "LAST": _channels_last(x),
        "SPACE": tile.space,
        "CHANNELS": tile.channels,
        "num_warps": tile.warps,
        "enable_fp_fusion": True,
    }


def _sizes(x: Tensor, first: Tensor, scale: Tensor | None, shift: Tensor | None) -> list[int]:
    """Of a derivative, their number, samples that share a row of scale and shift."""
    rows = next((len(each) for each in (scale, shift) if each is not None), len(x))
    return [x.numel(), len(first), len(x) // rows]


def allocate(
    x: Tensor, first: Tensor, second: Tensor | None, *settings: object, together: bool
) -> list[Tensor]:
    return empty_jet(x, [len(each) for each in (first, second) if each is not None], together)


def forward(
    results: list[Tensor],
    x: Tensor,
    first: Tensor,
    second: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    groups: int,
    eps: float,
    centred: bool,
    function: str,
) -> None:
    y, y1, *y2 = results
    tile = _tile(x, groups)
    along = second is not None and len(second) == len(first)
    inputs = (x, first, *(x if each is None else each for each in (second, scale, shift)))
    outputs = (y, y1, *(y2 or [y1]))
    sizes = _sizes(x, first, scale, shift)
    options = _options(x, groups, scale, shift, tile, function)
    options["SECOND"] = "none" if second is None else "along" if along else "sum"
    if tile.size > LIMIT:
        _forward_large(inputs, outputs, sizes, eps, centred, options)
    else:
        options |= {"GROUPS": tile.groups, "CENTRED": centred}
        forward_kernel[(tile.programs,)](*inputs, *outputs, *sizes, eps, **options)


def _forward_large(
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    sizes: Sequence[int],
    eps: float,
    centred: bool,
    options: dict[str, object],
) -> None:
    x, first, second, scale, shift = inputs
    size, count, repeats = sizes
    space, groups = options["space"], options["groups"]
    seconds = {"none": 0, "sum": 1, "along": count}[options["SECOND"]]
    options["SPACE"] = block = min(options["SPACE"], max(1, LARGE // options["CHANNELS"]))
    options["num_warps"] = LARGE_WARPS
    programs = len(x) * groups
    means = x.new_empty(programs, 1 + count + seconds, 3, dtype=torch.float32)
    geometry = ("space", "groups", "width", "LAST", "SPACE", "CHANNELS", "num_warps", "enable_fp_fusion")
    shared = {name: options[name] for name in geometry}
    means_kernel[(programs,)](x, first, second, means, size, count, seconds, eps, CENTRED=centred, **shared)
    grid = (programs * triton.cdiv(space, block),)
    inputs = (x, first, second, scale, shift, means)
    large_kernel[grid](*inputs, *outputs, size, count, seconds, repeats, **options)


def backward(
    gradients: list[Tensor],
    grads: list[Tensor],
    results: list[Tensor],
    x: Tensor,
    first: Tensor,
    second: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    groups: int,
    eps: float,
    centred: bool,
    function: str,
) -> None:
    gx, gfirst, *others = gradients
    tile = _tile(x, groups, LIMIT // 2)
    per_sample = [x.new_empty(x.shape[:2], dtype=torch.float32) for _ in others]
    buffers = iter(per_sample)
    backward_kernel[(tile.programs,)](
        x,
        first,
        x if scale is None else scale,
        x if shift is None else shift,
        ordered_as(x, grads[0][None])[0],
        ordered_as(x, grads[1]),
        gx,
        gfirst,
        gx if scale is None else next(buffers),
        gx if shift is None else next(buffers),
        *_sizes(x, first, scale, shift),
        eps,
        GROUPS=tile.groups,
        CENTRED=centred,
        **_options(x, groups, scale, shift, tile, function),
    )
    for gradient, each in zip(others, per_sample, strict=True):
        gradient.copy_(each.unflatten(0, (len(gradient), -1)).sum(1))


def has_backward(x: Tensor, first: Tensor, second: Tensor | None, *settings: object) -> bool:
    """Second-order jets, and groups that are too large, are differentiated by the reference."""
    return second is None and _tile(x, settings[2]).size <= LIMIT


FUSED = Fused(
    "normalise",
    "Tensor x, Tensor first, Tensor? second, Tensor? scale, Tensor? shift, int groups, float eps, "
    "bool centred, str function",
    reference.normalise,
    allocate,
    forward,
    backward,
    has_backward,
)
