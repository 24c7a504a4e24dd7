"""The order of numbers in memory, which pointwise kernels follow: NCHW stays NCHW, NHWC stays NHWC."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def dense(x: Tensor) -> Tensor:
    """``x``, or a contiguous copy where its numbers overlap or have gaps."""
    if _is_plain(x):
        return x
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return x.contiguous()
        expected *= size
    return x


def _is_plain(x: Tensor) -> bool:
    """Whether x is contiguous, or an image with the channels last: what there is most often."""
    return x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))


def image_order(x: Tensor) -> Tensor:
    """``x`` (N, C, *space), or a copy, contiguous or with the channels last."""
    if x.is_contiguous():
        return x
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    last = x.dim() in formats and x.is_contiguous(memory_format=formats[x.dim()])
    return x if last else x.contiguous()


def ordered_as(x: Tensor, stack: Tensor) -> Tensor:
    """``stack`` (n, *x.shape), or a copy, whose parts follow each other, each in the order of ``x``."""
    if stack.stride() == (x.numel(), *x.stride()):
        return stack
    follow = len(stack) < 2 or stack.stride(0) == x.numel()
    if not stack.numel() or (follow and _strides(stack[0]) == _strides(x)):
        return stack
    return empty_like_order(x, len(stack), stack.dtype).copy_(stack)


def empty_like_order(x: Tensor, count: int, dtype: torch.dtype | None = None) -> Tensor:
    """(count, *x.shape), unset, every part without gaps in the memory order of ``x``."""
    strides = (x if _is_plain(x) else torch.empty_like(x, device="meta")).stride()
    return torch.empty_strided(
        (count, *x.shape), (max(1, x.numel()), *strides), dtype=dtype or x.dtype, device=x.device
    )


def empty_jet(x: Tensor, counts: Sequence[int], together: bool) -> list[Tensor]:
    """Unset tensors like ``x`` and (n, *x.shape) for each of ``counts``; ``together``: in one allocation."""
    counts = [1, *counts]
    if not together:
        return [torch.empty_like(x), *(empty_like_order(x, count) for count in counts[1:])]
    first, *others = empty_like_order(x, sum(counts)).split(counts)
    return [first[0], *others]


def _strides(x: Tensor) -> tuple[int, ...]:
    return tuple(stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1)


def in_rows(*tensors: Tensor) -> tuple[int, int, list[int]] | None:
    """Tensors of one shape as matrices: rows, width, and how far apart each one's rows are; None where they
    are none.

    A row is what has no gaps in any of them, so halves of a tensor have rows; all are in one order of memory.
    Sizes of 1 count for nothing, so (1, *shape) will do for a shape.
    """
    shapes = [[(n, s) for n, s in zip(x.shape, x.stride(), strict=True) if n != 1] for x in tensors]
    order = sorted(range(len(shapes[0])), key=lambda d: shapes[0][d][1])
    width, rows = 1, 1
    starts: list[int] | None = None
    for d in order:
        size, strides = shapes[0][d][0], [shape[d][1] for shape in shapes]
        if starts is None and all(stride == width for stride in strides):
            width *= size
            continue
        starts = starts or strides
        if strides != [start * rows for start in starts]:
            return None
        rows *= size
    return rows, width, starts or [width] * len(tensors)
