"""Jets of normalisation, scale, shift and activation: primal and all tangents in one pass over memory.

Layer and RMS normalisation of tokens are group normalisation with one group and no space.
"""

from __future__ import annotations

from torch import Tensor

from fastlik.checks import check_choice
from fastlik.ops.activation import FUNCTIONS, check_jet
from fastlik.ops.dispatch import choose, fall_back
from fastlik.ops.memory import image_order, ordered_as

from . import native, reference

__all__ = ["normalise", "obstacle_of"]


def normalise(
    x: Tensor,
    first: Tensor,
    second: Tensor | None = None,
    *,
    groups: int = 1,
    eps: float = 1e-5,
    centred: bool = True,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    function: str = "identity",
    backend: str = "auto",
) -> list[Tensor]:
    """y = function(scale * (x - mean) / sqrt(variance + eps) + shift) with its derivatives.

    Args:
        x: (N, C, *space), a floating-point tensor, contiguous or channels last; Triton takes float16,
            bfloat16 and float32, and computes in float32.
        first, second: derivatives (K, *x.shape), and (K, *x.shape) or their sum (1, *x.shape), as for
            :func:`fastlik.ops.activation.activation`.
        groups: of channels; mean and variance are those of a group of one sample.
        centred: False leaves the mean where it is, as in RMS normalisation.
        scale, shift: (M, C) where M divides N: each row is for N / M successive samples.
        function: one of ``fastlik.ops.activation.FUNCTIONS``, without a parameter.
        backend: "auto", "native" (CPU, float32 and float64, order 1: group normalisation alone), "triton" or
            "torch".

    Returns:
        [y, y1] or [y, y1, y2], shaped like the arguments, in x's order of memory.  Differentiable.

    Raises:
        ValueError: shapes that do not fit, or an unknown function.
        RuntimeError: a backend asked for by name that cannot run.
    """
    check_choice("function", function, FUNCTIONS)
    check_jet(x, first, second)
    if x.dim() < 2 or x.shape[1] % groups:
        raise ValueError(f"x must be (N, C, *space) with C divisible by {groups}, got {tuple(x.shape)}")
    for name, values in (("scale", scale), ("shift", shift)):
        matches = values is None or (
            values.dim() == 2 and values.shape[1] == x.shape[1] and len(x) % max(1, len(values)) == 0
        )
        if not matches:
            raise ValueError(
                f"{name} must be (M, {x.shape[1]}) where M divides {len(x)}, got {tuple(values.shape)}"
            )
    if scale is not None and shift is not None and len(scale) != len(shift):
        raise ValueError(f"scale and shift must have as many rows, got {len(scale)} and {len(shift)}")
    others = [each for each in (first, second, scale, shift) if each is not None]
    chosen = choose("normalisation", backend, x, *others)
    if chosen == "triton" and (obstacle := obstacle_of(x, groups)):
        chosen = fall_back(backend, obstacle)
    if chosen == "native" and (obstacle := native.obstacle_of(second, scale, shift, centred, function)):
        chosen = fall_back(backend, obstacle)
    if chosen == "torch":
        return reference.normalise(x, first, second, scale, shift, groups, eps, centred, function)
    if chosen == "native":
        weight, bias = (None if each is None else each[0] for each in (scale, shift))
        stack = native.group_norm(x, first, groups, weight, bias, eps)
        return [stack[0], stack[1:]]
    from .triton import FUSED

    x = image_order(x)
    second = None if second is None else ordered_as(x, second)
    scale, shift = (None if each is None else each.contiguous() for each in (scale, shift))
    results = FUSED(x, ordered_as(x, first), second, scale, shift, groups, float(eps), centred, function)
    return results[: 2 if second is None else 3]


def obstacle_of(x: Tensor, groups: int) -> str:
    """Why the Triton kernel cannot take x (N, C, *space); "" if it can."""
    from .triton import LIMIT, fits

    if fits(x, groups):
        return ""
    return f"Triton's normalise takes groups of up to {LIMIT} channels"
