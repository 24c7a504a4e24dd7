"""Jets of the first order through pointwise functions and group normalisation, in one pass over memory.

Results are (1 + K, *shape), value first, in one allocation and in x's order of memory (channels last or not).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import choose
from . import native, reference

__all__ = ["FUNCTIONS", "activation", "group_norm"]

FUNCTIONS = ("silu", "gelu", "gelu_tanh", "tanh", "sigmoid", "softplus")


def activation(
    x: Tensor, tangents: Tensor, function: str, parameter: float = 1.0, backend: str = "auto"
) -> Tensor:
    """f(x) and f'(x) t_k.

    Args:
        x: (*shape), float32 or float64.
        tangents: (K, *shape).
        function: one of ``FUNCTIONS``.
        parameter: of softplus, its beta.
        backend: "auto", "native" or "torch"; "native" is not differentiable.
    """
    if choose("jet", backend, x, tangents) == "torch":
        value, products = reference.activation(x, tangents, function, parameter)
        return torch.cat((value[None], products))
    return native.activation(x, tangents, function, parameter)


def group_norm(
    x: Tensor,
    tangents: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    backend: str = "auto",
) -> Tensor:
    """torch.nn.functional.group_norm of x and its derivatives.

    Args:
        x: (B, C, *event), float32 or float64.
        tangents: (K, *x.shape).
        groups: a divisor of C.
        weight, bias: (C,), dtype of x.
        backend: "auto", "native" or "torch"; "native" is not differentiable.
    """
    if choose("jet", backend, x, tangents) == "torch":
        value, products = reference.group_norm(x, tangents, groups, weight, bias, eps)
        return torch.cat((value[None], products))
    return native.group_norm(x, tangents, groups, weight, bias, eps)
