"""Jets by kernels that take a primal and all its tangents in one pass over memory: on GPUs, by Triton.

A normalisation is deferred: the scale, the shift and the activation that follow it join its pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...ops.activation import FUNCTIONS
from ...ops.activation import activation as activation_op
from ...ops.attention import attention as attention_op
from ...ops.attention import obstacle_of as attention_obstacle
from ...ops.dispatch import TRITON_DTYPES, choose, fall_back, interpreted
from ...ops.normalisation import normalise as normalise_op
from ...ops.normalisation import obstacle_of as normalisation_obstacle
from .jet import Jet
from .layout import ALONG, COLLAPSED

_LAYOUTS = (ALONG[1], ALONG[2], COLLAPSED)


def carried(op: str, a: Jet, *others: Tensor | None) -> tuple[Tensor, Tensor | None] | None:
    """First and second derivatives for the kernel of ``op``; None where it is not to run."""
    x = a.primal
    if not (x.is_cuda or interpreted()) or x.dtype not in TRITON_DTYPES:
        return None
    if not any(a.layout is each for each in _LAYOUTS) or a.parts[0] is None:
        return None
    if any(each is not None and each.dtype != x.dtype for each in others):
        return None
    if choose(op, "auto", x, a.parts[0]) != "triton":
        return None
    if a.layout.order == 1:
        return a.parts[0], None
    first, second = a.parts
    if second is None:  # x moves along a straight line
        count = 1 if a.layout.collapsed is not None else len(first)
        second = torch.zeros_like(first[:1]).expand(count, *x.shape)
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
    if isinstance(a, Deferred) and a.pending is not None and function != "softplus":
        return replace(a.pending, function=function).run(a)
    parts = carried("activation", a)
    if parts is None:
        return None
    value, *derivatives = activation_op(a.primal, *parts, function=function, parameter=parameter)
    return _jet_of(a, value, derivatives)


def _jet_of(a: Jet, value: Tensor, parts: Sequence[Tensor]) -> Jet:
    """The results of a kernel, which may lie in one stack."""
    # operators of a traced graph have results of their own
    stack = None if torch.compiler.is_compiling() else value._base
    count = 1 + sum(map(len, parts))
    if stack is not None and stack.numel() == count * value.numel():
        return Jet(a.layout, value, tuple(parts), stack.reshape(count, *value.shape))
    return Jet(a.layout, value, tuple(parts))


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
    return _jet_of(query, result, derivatives)


@dataclass(frozen=True)
class Normalisation:
    """What a normalisation is to do: ``shape`` is the kernel's (N, C, *space), scale and shift are (M, C)."""

    source: Jet
    parts: tuple[Tensor, Tensor | None]
    shape: tuple[int, ...]
    groups: int
    eps: float
    centred: bool
    scale: Tensor | None = None
    shift: Tensor | None = None
    function: str = "identity"

    def run(self, a: Jet) -> Jet:
        """The jet, shaped as ``a``."""
        first, second = self.parts
        value, *derivatives = normalise_op(
            self.source.primal.reshape(self.shape),
            first.reshape(len(first), *self.shape),
            None if second is None else second.reshape(len(second), *self.shape),
            groups=self.groups,
            eps=self.eps,
            centred=self.centred,
            scale=self.scale,
            shift=self.shift,
            function=self.function,
        )
        parts = [part.reshape(len(part), *a.shape) for part in derivatives]
        return _jet_of(a, value.reshape(a.shape), parts)

    def rows(self, values: object) -> Tensor | None:
        """A constant factor or summand as (M, C) where it is one number for each sample and channel."""
        x = self.source.primal
        if not isinstance(values, Tensor) or values.dtype != x.dtype or values.device != x.device:
            return None
        channel = 1 if len(self.shape) > 2 else x.dim() - 1  # group normalisation has space
        if values.dim() > x.dim():
            return None
        shape = (*[1] * (x.dim() - values.dim()), *values.shape)
        wanted = [1] * x.dim()
        wanted[channel] = x.shape[channel]
        wanted[0] = shape[0]
        if list(shape) != wanted or shape[0] not in (1, x.shape[0]):
            return None
        return values.reshape(shape[0], x.shape[channel])

    def scaled(self, by: Tensor) -> Normalisation:
        scale = by if self.scale is None else self.scale * by
        shift = None if self.shift is None else self.shift * by
        return self._with(scale, shift)

    def shifted(self, by: Tensor) -> Normalisation:
        return self._with(self.scale, by if self.shift is None else self.shift + by)

    def _with(self, scale: Tensor | None, shift: Tensor | None) -> Normalisation:
        if scale is not None and shift is not None:
            scale, shift = torch.broadcast_tensors(scale, shift)
        return replace(self, scale=scale, shift=shift)


class Deferred(Jet):
    """A normalised jet that is computed when something asks for its tensors."""

    __slots__ = ("_normalisation", "_recording")

    def __init__(self, normalisation: Normalisation) -> None:
        self.layout = normalisation.source.layout
        self.shared = False
        self._normalisation = normalisation
        self._recording = torch.is_grad_enabled()

    @property
    def example(self) -> Tensor:
        return self._normalisation.source.primal

    @property
    def pending(self) -> Normalisation | None:
        """What is still to be done; None once it is, or something else was written here."""
        try:
            Jet.primal.__get__(self)
        except AttributeError:
            return self._normalisation
        return None

    def __getattr__(self, name: str) -> object:
        # reached where a slot has no value yet
        if name not in ("primal", "parts", "stacked"):
            raise AttributeError(name)
        with torch.set_grad_enabled(self._recording):
            result = self._normalisation.run(self)
        self.primal, self.parts, self.stacked = result.primal, result.parts, result.stacked
        return getattr(self, name)


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
    normalisation = Normalisation(a, parts, shape, groups, eps, centred, weight, bias)
    if not _unhindered(normalisation_obstacle(a.primal.reshape(shape), groups)):
        return None
    if torch.compiler.is_compiling():
        return normalisation.run(a)
    return Deferred(normalisation)


def scaled(a: object, b: object) -> Jet | None:
    """A deferred jet times a constant, in either order; None where the pass cannot take it."""
    return _joined(a, b, Normalisation.scaled)


def shifted(a: object, b: object) -> Jet | None:
    """A deferred jet plus a constant, in either order; None where the pass cannot take it."""
    return _joined(a, b, Normalisation.shifted)


def _joined(a: object, by: object, step: Callable[[Normalisation, Tensor], Normalisation]) -> Jet | None:
    if isinstance(by, Deferred):
        a, by = by, a
    if not isinstance(a, Deferred) or isinstance(by, Jet) or a.pending is None:
        return None
    rows = a.pending.rows(by)
    return None if rows is None else Deferred(step(a.pending, rows))
