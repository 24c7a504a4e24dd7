"""The jet of a pointwise function: primal and all tangents in one pass over memory."""

from __future__ import annotations

from torch import Tensor

from fastlik.checks import check_choice
from fastlik.ops.dispatch import choose, fall_back
from fastlik.ops.memory import dense, ordered_as

from . import native, reference
from .reference import FUNCTIONS

__all__ = ["FUNCTIONS", "activation", "check_jet"]


def activation(
    x: Tensor,
    first: Tensor,
    second: Tensor | None = None,
    *,
    function: str,
    bias: Tensor | None = None,
    parameter: float = 1.0,
    channel: int = -1,
    backend: str = "auto",
) -> list[Tensor]:
    """y = f(x + bias) with its derivatives f'(x) x1 and f''(x) x1^2 + f'(x) x2 along K directions.

    Args:
        x: (*shape), a floating-point tensor; Triton takes float16, bfloat16 and float32, and computes in
            float32.
        first: (K, *shape), first derivatives, dtype of ``x``.
        second: (K, *shape), second derivatives along the same directions, or (1, *shape), their sum over k;
            None: order 1.
        function: one of ``FUNCTIONS``.
        bias: (shape[channel],), added to x.
        parameter: beta of softplus, which is the identity where beta x > 20.
        channel: the dimension of x that ``bias`` runs along.
        backend: "auto", "native" (CPU, float32 and float64, order 1), "triton" or "torch".

    Returns:
        [y, y1] or [y, y1, y2], shaped like the arguments, in x's order of memory.  Differentiable.

    Raises:
        ValueError: shapes that do not fit, or an unknown function.
        RuntimeError: a backend asked for by name that cannot run.
    """
    check_choice("function", function, FUNCTIONS)
    check_jet(x, first, second)
    channel = channel % x.dim() if x.dim() else 0
    if bias is not None and bias.shape != x.shape[channel : channel + 1]:
        raise ValueError(f"bias must have shape ({x.shape[channel]},), got {tuple(bias.shape)}")
    tensors = [each for each in (first, second, bias) if each is not None]
    chosen = choose("activation", backend, x, *tensors)
    if chosen == "native" and (obstacle := native.obstacle_of(function, second, bias)):
        chosen = fall_back(backend, obstacle)
    if chosen == "native":
        stack = native.activation(x, first, function, parameter)
        return [stack[0], stack[1:]]
    if chosen == "torch":
        return reference.activation(x, first, second, bias, function, parameter, channel)
    from .triton import FUSED

    x = dense(x)
    second = None if second is None else ordered_as(x, second)
    bias = None if bias is None else bias.contiguous()
    return FUSED(x, ordered_as(x, first), second, bias, function, float(parameter), channel)


def check_jet(x: Tensor, first: Tensor, second: Tensor | None) -> None:
    """Raise ValueError unless first is (K, *x.shape), second (K, *x.shape) or (1, *x.shape), all alike."""
    counts = {len(first), 1}
    if first.shape[1:] != x.shape or first.dtype != x.dtype:
        raise ValueError(
            f"first must be (K, *{tuple(x.shape)}) {x.dtype}, got {tuple(first.shape)} {first.dtype}"
        )
    if second is None:
        return
    if second.shape[1:] != x.shape or len(second) not in counts or second.dtype != x.dtype:
        raise ValueError(
            f"second must be like first, {tuple(first.shape)} {x.dtype}, or one sum over its {len(first)} "
            f"directions, got {tuple(second.shape)} {second.dtype}"
        )
