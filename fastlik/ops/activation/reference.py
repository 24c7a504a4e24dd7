"""Jets of pointwise functions in plain PyTorch: the specification of the kernels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

# name -> (x, parameter) -> f(x); the parameter is softplus' beta
FUNCTIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "identity": lambda x, _: x * 1,
    "silu": lambda x, _: F.silu(x),
    "gelu": lambda x, _: F.gelu(x),
    "gelu_tanh": lambda x, _: F.gelu(x, approximate="tanh"),
    "tanh": lambda x, _: x.tanh(),
    "sigmoid": lambda x, _: x.sigmoid(),
    "softplus": lambda x, beta: F.softplus(x, beta),
    "sin": lambda x, _: x.sin(),
}


def derivatives(function: str, x: Tensor, parameter: float, order: int) -> list[Tensor]:
    """f(x), f'(x), ... up to the derivative of that order, by autograd."""
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        results = [FUNCTIONS[function](x, parameter)]
        for _ in range(order):
            linear = not results[-1].requires_grad
            slope = None if linear else torch.autograd.grad(results[-1].sum(), x, create_graph=True)[0]
            results.append(torch.zeros_like(x) if linear else slope)
    return results


def activation(
    x: Tensor,
    first: Tensor,
    second: Tensor | None,
    bias: Tensor | None,
    function: str,
    parameter: float,
    channel: int,
) -> list[Tensor]:
    """Faa di Bruno's formula; see ``fastlik.ops.activation.activation``, which checks the arguments."""
    if bias is not None:
        shape = [1] * x.dim()
        shape[channel] = -1
        x = x + bias.view(shape)
    value, slope, *curvature = derivatives(function, x, parameter, 1 if second is None else 2)
    results = [value, slope * first]
    if second is not None:
        quadratic = curvature[0] * first.square()
        if len(second) != len(first):
            quadratic = quadratic.sum(0, keepdim=True)
        results.append(quadratic + slope * second)
    return results if torch.is_grad_enabled() else [result.detach() for result in results]
