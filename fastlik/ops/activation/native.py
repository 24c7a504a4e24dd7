"""First-order jets of pointwise functions in C++: nothing is recorded for a backward pass."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import call_native
from ..memory import dense, empty_like_order, ordered_as
from ..mlp.program import FUNCTIONS as _CODES

FUNCTIONS = ("silu", "gelu", "gelu_tanh", "tanh", "sigmoid", "softplus")


def obstacle_of(function: str, second: Tensor | None, bias: Tensor | None) -> str:
    """Why C++ cannot take these; "" if it can."""
    if second is not None or bias is not None:
        return "native activation takes first-order jets without a bias"
    return "" if function in FUNCTIONS else f"native activation takes {', '.join(FUNCTIONS)}, not {function}"


def activation(x: Tensor, first: Tensor, function: str, parameter: float) -> Tensor:
    """f(x) and f'(x) first, (1 + K, *x.shape), in x's order of memory."""
    x = dense(x)
    first = ordered_as(x, first)
    out = empty_like_order(x, 1 + len(first))
    call_native(
        "jet_activation",
        x,
        x.dtype == torch.float64,
        _CODES.index(function),
        parameter,
        (x.numel(), len(first)),
        (x.data_ptr(), first.data_ptr(), out.data_ptr(), out.data_ptr() + x.nbytes),
    )
    return out
