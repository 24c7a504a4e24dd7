"""Multilayer perceptrons as programs of a few operations: their values, derivatives and ODEs.

``recognise`` makes a program of an unmodified network, or says why it cannot.  ``value``, ``jvp``, ``jet``
and ``divergence`` run it; ``Packed`` (``native.py``) integrates its ODE, and ``reference.py`` says in plain
PyTorch what all of them compute.  A program keeps the weights that the network had when it was recognised.

``Trainable`` is a network's value with first and second derivatives on its own parameters, with gradients:
those of a loss, and by x the products v' J of reverse mode, which have gradients in turn.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastlik.ops.dispatch import choose

from . import reference
from .grid import GridTable, Ode
from .native import Divergence, Packed
from .program import Program
from .recognise import Unrecognised, recognise
from .trainable import Trainable

ORDERS = (1, 2, 3)

__all__ = [
    "Divergence",
    "GridTable",
    "Ode",
    "Packed",
    "Program",
    "Trainable",
    "Unrecognised",
    "divergence",
    "jet",
    "jvp",
    "recognise",
    "value",
]


def value(
    program: Program,
    x: Tensor,
    time: Tensor,
    conditions: dict[str, Tensor] | None = None,
    backend: str = "auto",
) -> Tensor:
    """F(x, time, conditions) (B, d).

    Args:
        program: from :func:`recognise`.
        x: (B, d) float32 or float64.
        time: (B,) the network's time, rounded to x's precision.
        conditions: name -> (B, width), those that the program was made with.
        backend: "auto", "native" or "torch"; under autograd "auto" is "torch", differentiable in x.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: a dtype other than the above.
        RuntimeError: a backend asked for by name that cannot run.
    """
    return _run(program, x, time, conditions, backend, None, False)[0]


def jvp(
    program: Program,
    x: Tensor,
    time: Tensor,
    vectors: Tensor,
    conditions: dict[str, Tensor] | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """(F(x), J v) of shapes (B, d) and (K, B, d) for vectors (K, B, d); see :func:`value`."""
    output, products, _ = _run(program, x, time, conditions, backend, vectors, False)
    return output, products


def jet(
    program: Program,
    x: Tensor,
    time: Tensor,
    directions: Tensor,
    order: int = 2,
    conditions: dict[str, Tensor] | None = None,
    backend: str = "auto",
) -> tuple[Tensor, ...]:
    """(F(x), D F[v], D^2 F[v, v], D^3 F[v, v, v]) up to ``order``, as :func:`fastlik.jet`.

    Args:
        directions: v, like x, or (K, *x.shape) for K directions that share one evaluation of F.
        order: 1, 2 or 3.
        program, x, time, conditions, backend, errors: as in :func:`value`.

    Returns:
        F(x) (B, d), and the derivatives in the shape of the directions.
    """
    if order not in ORDERS:
        raise ValueError(f"order must be 1, 2 or 3, got {order!r}")
    conditions = conditions or {}
    stack = directions[None] if directions.shape == x.shape else directions
    _check(program, x, time, conditions, stack)
    if choose("mlp", backend, x, *conditions.values(), stack) == "native":
        output, derivatives = Packed.of(program, x.dtype).jet(x, time, conditions, stack, order)
    else:
        output, derivatives = reference.jet(program, x, time, conditions, stack, order)
    return output, *(derivative.reshape(directions.shape) for derivative in derivatives)


def divergence(
    program: Program,
    x: Tensor,
    time: Tensor,
    conditions: dict[str, Tensor] | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """(F(x) (B, d), tr J (B,) float64), in closed form where there is one; see :func:`value`."""
    output, _, trace = _run(program, x, time, conditions, backend, None, True)
    return output, trace


def _run(
    program: Program,
    x: Tensor,
    time: Tensor,
    conditions: dict[str, Tensor] | None,
    backend: str,
    vectors: Tensor | None,
    exact: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    conditions = conditions or {}
    _check(program, x, time, conditions, vectors)
    others = [*conditions.values(), *([] if vectors is None else [vectors])]
    if choose("mlp", backend, x, *others) == "native":
        return Packed.of(program, x.dtype).evaluate(x, time, conditions, vectors, exact)
    given = x.new_zeros(0, *x.shape) if vectors is None else vectors
    result = reference.evaluate(program, x, time, conditions, given)
    trace = reference.exact_divergence(program, x, time, conditions) if exact else None
    return result.output, None if vectors is None else result.products, trace


def _check(
    program: Program, x: Tensor, time: Tensor, conditions: dict[str, Tensor], vectors: Tensor | None
) -> None:
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x must be float32 or float64, got {x.dtype}; convert it with x.float()")
    if x.dim() != 2 or x.shape[1] != program.dim:
        raise ValueError(f"x must have shape (B, {program.dim}), got {tuple(x.shape)}")
    if time.shape != x.shape[:1]:
        raise ValueError(f"time must have shape ({len(x)},), got {tuple(time.shape)}")
    if vectors is not None and (vectors.shape[1:] != x.shape or vectors.dtype != x.dtype):
        raise ValueError(
            f"vectors must be (K, *{tuple(x.shape)}) {x.dtype}, got {tuple(vectors.shape)} {vectors.dtype}"
        )
    if conditions.keys() != program.conditions.keys():
        wanted = ", ".join(program.conditions) or "none"
        raise ValueError(f"the program takes the conditions {wanted}, got {', '.join(conditions) or 'none'}")
    for name, buffer in program.conditions.items():
        shape = (len(x), program.buffers[buffer].width)
        if conditions[name].shape != shape:
            raise ValueError(
                f"condition {name!r} must have shape {shape}, got {tuple(conditions[name].shape)}"
            )
    for tensor in (time, *conditions.values(), *([] if vectors is None else [vectors])):
        if tensor.device != x.device:
            raise ValueError(
                f"all tensors must be on the device of x, {x.device}, got one on {tensor.device}"
            )
