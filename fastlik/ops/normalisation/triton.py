"""Jets of normalisation, scale, shift and activation by Triton kernels: formulas in whole.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from fastlik.ops.differentiable import Fused
from fastlik.ops.memory import empty_jet, ordered_as

from . import reference
from .large import forward_kernel as large_kernel
from .large import means_kernel
from .whole import backward_kernel, forward_kernel

# numbers of a group that the registers of one block hold; larger ones are read twice, and differentiated
# by the reference
LIMIT = 8192
# numbers in a tile of such a larger group
LARGE, LARGE_WARPS = 4096, 8
# bytes that lie together in memory and should be read together
SEGMENT = 64


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
    tile = _tile(x, groups, LIMIT if second is None else LIMIT // 2)
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
