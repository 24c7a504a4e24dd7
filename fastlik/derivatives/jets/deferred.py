"""Jets that are computed when something asks for their tensors, so that what follows can join the pass."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ...ops.activation import activation as activation_op
from ...ops.normalisation import normalise as normalise_op
from ...ops.residual import residual as residual_op
from .jet import Jet, jet_of
from .layout import Layout

Parts = tuple[Tensor, Tensor | None]


class Pending(Protocol):
    """What is still to be done with a jet's tensors, which it holds: the jet itself may be written to."""

    layout: Layout
    x: Tensor

    def run(self) -> Jet:
        """The jet, shaped as ``x``."""


@dataclass(frozen=True)
class Bias:
    """A bias, shaped to broadcast, of a layer's ``product``, to which it is added where it lies."""

    layout: Layout
    x: Tensor
    product: Jet
    bias: Tensor

    def run(self) -> Jet:
        return self.product.shift(self.bias)


@dataclass(frozen=True)
class Sum:
    """A sum of two jets in one allocation each, times a number."""

    layout: Layout
    x: Tensor
    a: Jet
    stacks: tuple[Tensor, Tensor]
    scale: float | None = None

    def run(self) -> Jet:
        if self.scale is None:
            return self.a.unstack(self.stacks[0] + self.stacks[1])
        return self.a.unstack(residual_op(*self.stacks, self.scale))


@dataclass(frozen=True)
class Activation:
    """A function of one number, with a bias or without."""

    layout: Layout
    x: Tensor
    parts: Parts
    function: str
    parameter: float
    bias: Tensor | None = None

    def run(self) -> Jet:
        bias, channel = self.bias, -1
        if bias is not None:
            bias, channel = bias.flatten(), -bias.dim()
        value, *derivatives = activation_op(
            self.x,
            *self.parts,
            function=self.function,
            parameter=self.parameter,
            bias=bias,
            channel=channel,
        )
        return jet_of(self.layout, value, derivatives)


@dataclass(frozen=True)
class Normalisation:
    """A normalisation, scale, shift and activation: ``shape`` is the kernel's (N, C, *space), scale and shift
    are (M, C)."""

    layout: Layout
    x: Tensor
    parts: Parts
    shape: tuple[int, ...]
    groups: int
    eps: float
    centred: bool
    scale: Tensor | None = None
    shift: Tensor | None = None
    function: str = "identity"

    def run(self) -> Jet:
        first, second = self.parts
        value, *derivatives = normalise_op(
            self.x.reshape(self.shape),
            first.reshape(len(first), *self.shape),
            None if second is None else second.reshape(len(second), *self.shape),
            groups=self.groups,
            eps=self.eps,
            centred=self.centred,
            scale=self.scale,
            shift=self.shift,
            function=self.function,
        )
        parts = [part.reshape(len(part), *self.x.shape) for part in derivatives]
        return jet_of(self.layout, value.reshape(self.x.shape), parts)

    def rows(self, values: object) -> Tensor | None:
        """A constant factor or summand as (M, C) where it is one number for each sample and channel."""
        x = self.x
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
    """The jet of what is pending."""

    __slots__ = ("__weakref__", "_pending", "_recording")

    def __init__(self, pending: Pending) -> None:
        self.layout = pending.layout
        self.shared = False
        self._pending = pending
        self._recording = torch.is_grad_enabled()
        _waiting[id(self)] = weakref.ref(self)
        weakref.finalize(self, _waiting.pop, id(self), None)

    @property
    def example(self) -> Tensor:
        pending = self.pending
        return self.primal if pending is None else pending.x

    @property
    def pending(self) -> Pending | None:
        """What is still to be done; None once it is, or something else was written here."""
        try:
            Jet.primal.__get__(self)
        except AttributeError:
            return self._pending
        self._pending = None  # its tensors may be freed
        return None

    def __getattr__(self, name: str) -> object:
        # reached where a slot has no value yet
        if name not in ("primal", "parts", "stacked"):
            raise AttributeError(name)
        with torch.set_grad_enabled(self._recording):
            result = self._pending.run()
        self.primal, self.parts, self.stacked = result.primal, result.parts, result.stacked
        self._pending = None
        return getattr(self, name)

    def joins(self, kind: type[Pending]) -> Pending | None:
        """What is pending, if it is of a kind and what follows it is recorded as it is."""
        pending = self.pending if self._recording == torch.is_grad_enabled() else None
        return pending if isinstance(pending, kind) else None


_waiting: dict[int, weakref.ref[Deferred]] = {}


def settle() -> None:
    """Compute what is deferred: tensors that it may be computed from are about to be written to."""
    for reference in list(_waiting.values()):
        jet = reference()
        if jet is not None and jet.pending is not None:
            _ = jet.primal
