"""Jets by kernels that take a primal and all its tangents in one pass over memory: on GPUs, by Triton.

A normalisation is deferred: the scale, the shift and the activation that follow it join its pass.  So is an
activation, which a product may follow, and the bias of a linear layer, which is for the primal alone and
joins an activation, and a sum, which a scale may follow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ...ops.activation import FUNCTIONS
from ...ops.attention import attention as attention_op
from ...ops.attention import obstacle_of as attention_obstacle
from ...ops.dispatch import fall_back, takes_triton
from ...ops.gate import gate as gate_op
from ...ops.normalisation import obstacle_of as normalisation_obstacle
from .deferred import Activation, Bias, Deferred, Normalisation, Parts, Pending, Sum
from .jet import Jet, jet_of
from .layout import ALONG, COLLAPSED

_LAYOUTS = (ALONG[1], ALONG[2], COLLAPSED)


def _fits(op: str, a: Jet) -> bool:
    """Whether the kernel of ``op`` takes a jet of this layout, where it is."""
    if a.parts[0] is None or not takes_triton(op, a.primal, a.parts[0]):
        return False
    return any(a.layout is each for each in _LAYOUTS)


def carried(op: str, a: Jet, *others: Tensor | None) -> Parts | None:
    """First and second derivatives for the kernel of ``op``; None where it is not to run."""
    if any(each is not None and each.dtype != a.example.dtype for each in others) or not _fits(op, a):
        return None
    if a.layout.order == 1:
        return a.parts[0], None
    first, second = a.parts
    if second is None:  # x moves along a straight line
        count = 1 if a.layout.collapsed is not None else len(first)
        second = torch.zeros_like(first[:1]).expand(count, *a.shape)
    return first, second


def _unhindered(obstacle: str) -> bool:
    """Whether there is none; where there is, a warning says it once."""
    if obstacle:
        fall_back("auto", obstacle)
    return not obstacle


def activation(a: Jet, function: str, parameter: float = 1.0) -> Jet | None:
    """The jet of a function of one number; None where there is no kernel for it."""
    if function not in FUNCTIONS:
        return None
    normalisation = _waiting(a, Normalisation)
    if normalisation is not None and function != "softplus":
        return replace(normalisation, function=function).run()
    affine = _waiting(a, Bias)
    a = a if affine is None else affine.product
    parts = carried("activation", a)
    if parts is None:
        return None
    if affine is None:
        return _deferred(Activation(a.layout, a.primal, parts, function, parameter))
    # at once: the bias may be added to the product when that is used again
    return Activation(a.layout, a.primal, parts, function, parameter, affine.bias).run()


def _waiting(a: object, kind: type[Pending]) -> Pending | None:
    """What a jet waits for, if that is of a kind that can be joined."""
    return a.joins(kind) if isinstance(a, Deferred) else None


def affine(a: Jet, multiply: Callable[[Jet], Jet], bias: Tensor | None) -> Jet | None:
    """The jet of a linear layer whose bias, broadcasting, waits for an activation; None where it does not."""
    if bias is None or not _fits("activation", a) or torch.compiler.is_compiling():
        return None
    product = multiply(a)
    if bias.dtype != product.primal.dtype:  # under autocast
        return product.shift(bias)
    return Deferred(Bias(product.layout, product.primal, product, bias))


def _deferred(pending: Pending) -> Jet:
    # what torch.compile traces is computed at once
    return pending.run() if torch.compiler.is_compiling() else Deferred(pending)


def product(a: Jet, b: Jet) -> Jet | None:
    """The jet of a product of two, into which a deferred activation of one joins; None where there is no
    kernel for it."""
    if a.shape != b.shape or a.example.dtype != b.example.dtype or a.layout is not b.layout:
        return None
    gated = _activation_of(a)
    if gated is None and _activation_of(b) is not None:
        a, b, gated = b, a, _activation_of(b)
    parts = carried("gate", b), carried("gate", a) if gated is None else gated.parts
    if None in parts:
        return None
    (b1, b2), (a1, a2) = parts
    x, function = (a.primal, "identity") if gated is None else (gated.x, gated.function)
    value, *derivatives = gate_op(x, b.primal, a1, b1, a2, b2, function=function)
    return jet_of(a.layout, value, derivatives)


def _activation_of(a: Jet) -> Activation | None:
    """The activation that a jet waits for, if the kernel of products takes it."""
    pending = _waiting(a, Activation)
    return None if pending is None or pending.function == "softplus" else pending


def attention(
    query: object,
    key: object,
    value: object,
    mask: object,
    dropout: float,
    causal: bool,
    scale: float | None,
    grouped: bool,
) -> Jet | None:
    """The jet of softmax attention; None where the kernel is not to run."""
    jets = (query, key, value)
    if not all(isinstance(each, Jet) and each.ndim == 4 for each in jets):
        return None
    if dropout or grouped or isinstance(mask, Jet):
        return None
    parts = [carried("attention", each) for each in jets]
    if None in parts or not _unhindered(attention_obstacle(query.primal, mask)):
        return None
    firsts, seconds = zip(*parts, strict=True)
    primals = (each.primal for each in jets)
    result, *derivatives = attention_op(*primals, *firsts, *seconds, mask=mask, causal=causal, scale=scale)
    return jet_of(query.layout, result, derivatives)


def group_norm(a: Jet, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Jet | None:
    """Weight and bias (C,) or None; None where the kernel is not to run."""
    if a.ndim < 3 or not a.example.numel():
        return None
    return _normalised(a, tuple(a.shape), groups, weight, bias, eps, True)


def layer_norm(
    a: Jet, dims: int, weight: Tensor | None, bias: Tensor | None, eps: float, centred: bool
) -> Jet | None:
    """Over the last dimension, of which weight and bias are; None where the kernel is not to run."""
    if dims != 1 or a.ndim < 2 or not a.example.numel():
        return None
    return _normalised(a, (-1, a.shape[-1]), 1, weight, bias, eps, centred)


def _normalised(
    a: Jet,
    shape: tuple[int, ...],
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    centred: bool,
) -> Jet | None:
    parts = carried("normalisation", a, weight, bias)
    if parts is None:
        return None
    weight, bias = (None if each is None else each.reshape(1, -1) for each in (weight, bias))
    if not _unhindered(normalisation_obstacle(a.primal.reshape(shape), groups)):
        return None
    return _deferred(Normalisation(a.layout, a.primal, parts, shape, groups, eps, centred, weight, bias))


def total(a: Jet, b: Jet) -> Jet | None:
    """The sum of two jets, which waits for a scale; None where it is not to."""
    if not (_fits("residual", a) and _fits("residual", b)) or torch.compiler.is_compiling():
        return None
    if a.shape != b.shape or a.primal.dtype != b.primal.dtype or not a.stacks_like(b):
        return None
    like = Jet(a.layout, a.primal, a.parts)
    return Deferred(Sum(a.layout, a.primal, like, (a.stacked, b.stacked)))


def scaled(a: object, b: object) -> Jet | None:
    """A deferred jet times a constant, in either order; None where the pass cannot take it."""
    if isinstance(a, (int, float)):
        a, b = b, a
    pending = _waiting(a, Sum)
    if pending is not None and isinstance(b, (int, float)):
        scale = b if pending.scale is None else b * pending.scale
        return Deferred(replace(pending, scale=scale))
    return _joined(a, b, Normalisation.scaled)


def shifted(a: object, b: object) -> Jet | None:
    """A deferred jet plus a constant, in either order; None where the pass cannot take it."""
    return _joined(a, b, Normalisation.shifted)


def _joined(a: object, by: object, step: Callable[[Normalisation, Tensor], Normalisation]) -> Jet | None:
    if isinstance(by, Deferred):
        a, by = by, a
    pending = _waiting(a, Normalisation)
    if pending is None or isinstance(by, Jet):
        return None
    rows = pending.rows(by)
    return None if rows is None else Deferred(step(pending, rows))
