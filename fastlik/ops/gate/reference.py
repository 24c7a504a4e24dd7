"""The jet of a product f(a) b in plain PyTorch: the specification of the kernels."""

from __future__ import annotations

from torch import Tensor

from fastlik.ops.activation import reference as pointwise


def gate(
    a: Tensor,
    b: Tensor,
    a1: Tensor,
    b1: Tensor,
    a2: Tensor | None,
    b2: Tensor | None,
    function: str,
) -> list[Tensor]:
    """Leibniz' rule for f(a) and b; see ``fastlik.ops.gate.gate``, which checks the arguments."""
    f, f1, *f2 = pointwise.activation(a, a1, a2, None, function, 1.0, 0)
    results = [f * b, f1 * b + f * b1]
    if a2 is not None:
        cross = 2 * f1 * b1
        cross = cross if len(a2) == len(a1) else cross.sum(0, keepdim=True)
        results.append(f2[0] * b + cross + f * b2)
    return results
