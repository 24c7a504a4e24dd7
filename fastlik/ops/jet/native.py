"""Jets in C++: tensors as addresses and sizes.  Nothing is recorded for a backward pass."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import call_native
from ..mlp.program import FUNCTIONS


def activation(x: Tensor, tangents: Tensor, function: str, parameter: float) -> Tensor:
    """``reference.activation`` as (1 + K, *shape), in x's order of memory."""
    x, tangents, _ = _dense(x, tangents)
    out, (y, products) = _stack(x, len(tangents))
    call_native(
        "jet_activation",
        x,
        x.dtype == torch.float64,
        FUNCTIONS.index(function),
        parameter,
        (x.numel(), len(tangents)),
        (x.data_ptr(), tangents.data_ptr(), y, products),
    )
    return out


def group_norm(
    x: Tensor, tangents: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """``reference.group_norm`` as (1 + K, *shape), in x's order of memory."""
    x, tangents, channels_last = _dense(x, tangents)
    affine = [None if each is None else each.to(x.dtype).contiguous() for each in (weight, bias)]
    out, (y, products) = _stack(x, len(tangents))
    rows, channels = x.shape[:2]
    call_native(
        "jet_group_norm",
        x,
        x.dtype == torch.float64,
        eps,
        channels_last,
        (rows, channels, x.shape[2:].numel(), groups, len(tangents)),
        (x.data_ptr(), tangents.data_ptr(), *map(_address, affine), y, products),
    )
    return out


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _dense(x: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor, bool]:
    """x and tangents without gaps in one order of memory, and whether it has channels last."""
    if x.is_contiguous():
        return x, tangents.contiguous(), False
    if x.dim() != 4 or not x.is_contiguous(memory_format=torch.channels_last):
        return x.contiguous(), tangents.contiguous(), False
    if tangents.stride() != (x.numel(), *x.stride()):
        order = torch.channels_last
        tangents = tangents.flatten(0, 1).contiguous(memory_format=order).unflatten(0, tangents.shape[:2])
    return x, tangents, True


def _stack(x: Tensor, count: int) -> tuple[Tensor, tuple[int, int]]:
    """(1 + count, *x.shape) like x, with the addresses of its first and its second part."""
    size = x.numel()
    out = x.new_empty_strided((1 + count, *x.shape), (size, *x.stride()))
    return out, (out.data_ptr(), out.data_ptr() + size * x.element_size())
