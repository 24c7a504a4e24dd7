"""The jet of a product f(a) b of two tensors that both depend on x: SwiGLU, GEGLU, and any plain product."""

from __future__ import annotations

from torch import Tensor

from fastlik.checks import check_choice
from fastlik.ops.activation import FUNCTIONS, check_jet
from fastlik.ops.dispatch import choose
from fastlik.ops.memory import in_rows, ordered_as

from . import reference

__all__ = ["gate"]


def gate(
    a: Tensor,
    b: Tensor,
    a1: Tensor,
    b1: Tensor,
    a2: Tensor | None = None,
    b2: Tensor | None = None,
    *,
    function: str = "identity",
    backend: str = "auto",
) -> list[Tensor]:
    """y = f(a) b with its first and second derivatives along K directions, in one pass over memory.

    Args:
        a, b: (*shape), floating-point tensors of one dtype, which may be the halves of one tensor; Triton
            takes float16, bfloat16 and float32, and computes in float32.
        a1, b1: (K, *shape), first derivatives.
        a2, b2: (K, *shape), second derivatives along the same directions, or (1, *shape), their sum over k;
            both None: order 1.
        function: one of ``fastlik.ops.activation.FUNCTIONS``, without a parameter.
        backend: "auto", "triton" or "torch".

    Returns:
        [y, y1] or [y, y1, y2], shaped like the arguments, in a's order of memory.  Differentiable.

    Raises:
        ValueError: shapes that do not fit, or an unknown function.
        RuntimeError: a backend asked for by name that cannot run.
    """
    check_choice("function", function, FUNCTIONS)
    check_jet(a, a1, a2)
    check_jet(b, b1, b2)
    lengths = [[None if each is None else len(each) for each in pair] for pair in ((a1, a2), (b1, b2))]
    if a.shape != b.shape or a.dtype != b.dtype or lengths[0] != lengths[1]:
        raise ValueError(
            f"a and b must be alike with as many derivatives, got {tuple(a.shape)} {a.dtype} {lengths[0]} "
            f"and {tuple(b.shape)} {b.dtype} {lengths[1]}"
        )
    tensors = [each for each in (a, b, a1, b1, a2, b2) if each is not None]
    if choose("gate", backend, *tensors) == "torch" or not len(a1):
        return reference.gate(a, b, a1, b1, a2, b2, function)
    from .triton import FUSED

    if in_rows(a, b, *(each[0] for each in tensors[2:])) is None:
        a = a.contiguous()
        b, a1, b1 = ordered_as(a, b[None])[0], ordered_as(a, a1), ordered_as(a, b1)
        a2, b2 = (None if each is None else ordered_as(a, each) for each in (a2, b2))
    return FUSED(a, b, a1, b1, a2, b2, function)
