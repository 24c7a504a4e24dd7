"""The first-order jet of group normalisation in C++: nothing is recorded for a backward pass."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import call_native
from ..memory import empty_like_order, image_order, ordered_as


def obstacle_of(
    second: Tensor | None, scale: Tensor | None, shift: Tensor | None, centred: bool, function: str
) -> str:
    """Why C++ cannot take these; "" if it can."""
    if second is not None or not centred or function != "identity":
        return "native normalisation takes first-order jets of group normalisation, without an activation"
    if any(each is not None and len(each) > 1 for each in (scale, shift)):
        return "native normalisation takes one scale and shift for all samples"
    return ""


def group_norm(
    x: Tensor, first: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """group_norm(x) and its derivatives, (1 + K, *x.shape), in x's order of memory.

    x: (B, C, *space).  weight, bias: (C,).
    """
    x = image_order(x)
    first = ordered_as(x, first)
    affine = [None if each is None else each.to(x.dtype).contiguous() for each in (weight, bias)]
    out = empty_like_order(x, 1 + len(first))
    rows, channels = x.shape[:2]
    call_native(
        "jet_group_norm",
        x,
        x.dtype == torch.float64,
        eps,
        not x.is_contiguous(),
        (rows, channels, x.shape[2:].numel(), groups, len(first)),
        (
            x.data_ptr(),
            first.data_ptr(),
            *(0 if each is None else each.data_ptr() for each in affine),
            out.data_ptr(),
            out.data_ptr() + x.nbytes,
        ),
    )
    return out
