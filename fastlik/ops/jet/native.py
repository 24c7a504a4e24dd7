"""Jets in C++: checked tensors as addresses and sizes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import call_native
from ..mlp.program import FUNCTIONS


def activation(x: Tensor, tangents: Tensor, out: Tensor, function: str, parameter: float) -> None:
    """``reference.activation`` into out (1 + K, *shape); all are dense, in one order of memory."""
    call_native(
        "jet_activation",
        x,
        x.dtype == torch.float64,
        FUNCTIONS.index(function),
        parameter,
        (x.numel(), len(tangents)),
        _addresses(x, tangents, *_halves(out)),
    )


def group_norm(
    x: Tensor,
    tangents: Tensor,
    out: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    channels_last: bool,
) -> None:
    """``reference.group_norm`` into out (1 + K, *shape); all are dense, in one order of memory."""
    rows, channels = x.shape[:2]
    call_native(
        "jet_group_norm",
        x,
        x.dtype == torch.float64,
        eps,
        channels_last,
        (rows, channels, x.shape[2:].numel(), groups, len(tangents)),
        _addresses(x, tangents, weight, bias, *_halves(out)),
    )


def _halves(out: Tensor) -> tuple[Tensor, Tensor]:
    return out[0], out[1:]


def _addresses(*tensors: Tensor | None) -> tuple[int, ...]:
    return tuple(0 if tensor is None else tensor.data_ptr() for tensor in tensors)
