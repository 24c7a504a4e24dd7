"""A jet: a tensor with its derivatives along the directions of interest, as ordinary tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .layout import Layout

# below this many numbers a linear operation on a primal and its tangents is one call on a stack: the copy
# costs less than a second call
_STACK_UP_TO = 1 << 14


class Jet:
    """A primal (*shape) and, for each component of a layout, derivatives (K, *shape) or None for zero.

    Where the tensors lie in one allocation, primal first, ``stacked`` is that tensor (1 + ..., *shape): a
    linear operation then takes one call for all of them.  ``shared`` says that other tensors may use the
    same memory, so that in-place functions must write through to them.
    """

    __slots__ = ("layout", "parts", "primal", "shared", "stacked")

    def __init__(
        self,
        layout: Layout,
        primal: Tensor,
        parts: tuple[Tensor | None, ...],
        stacked: Tensor | None = None,
    ) -> None:
        self.layout = layout
        self.primal = primal
        self.parts = parts
        self.stacked = stacked
        self.shared = False

    @property
    def example(self) -> Tensor:
        """A tensor of the primal's shape, dtype and device, whatever its values."""
        return self.primal

    @property
    def shape(self) -> torch.Size:
        return self.example.shape

    @property
    def ndim(self) -> int:
        return self.example.dim()

    def stack(self) -> Tensor:
        """Primal and derivatives along a new first dimension."""
        if self.stacked is not None:
            return self.stacked
        parts = [self.primal[None], *[part for part in self.parts if part is not None]]
        if self.ndim == 4 and not self.primal.is_contiguous() and _channels_last(self.primal):
            return torch.cat([part.movedim(2, -1) for part in parts]).movedim(-1, 2)
        return torch.cat(parts)

    def unstack(self, stacked: Tensor) -> Jet:
        """The jet of a tensor stacked as this jet's ``stack()`` is."""
        start, parts = 1, []
        for part in self.parts:
            size = 0 if part is None else part.shape[0]
            parts.append(stacked.narrow(0, start, size) if size else None)
            start += size
        return Jet(self.layout, stacked[0], tuple(parts), stacked)

    def map(self, function: Callable[[Tensor], Tensor]) -> Jet:
        """A cheap linear function of a tensor (n, *shape) along whose first dimension it only maps."""
        if self.stacked is not None:
            return self.unstack(function(self.stacked))
        parts = [None if part is None else function(part) for part in self.parts]
        return Jet(self.layout, function(self.primal[None])[0], tuple(parts))

    def map_each(self, function: Callable[[Tensor], Tensor]) -> Jet:
        """A linear function of a tensor (*shape), applied to one after the other."""
        parts = [
            None if part is None else torch.stack([function(each) for each in part.unbind(0)])
            for part in self.parts
        ]
        return Jet(self.layout, function(self.primal), tuple(parts))

    def linear(
        self,
        function: Callable[[Tensor], Tensor],
        bias: Tensor | None = None,
        primal: Callable[[Tensor], Tensor] | None = None,
    ) -> Jet:
        """A costly linear function, as ``map``, and a bias (broadcasting with its result's event).

        ``primal``: the function with its bias, of a (1, *shape), where that is one operation.
        """
        if self.stacked is None and not self._is_small():
            parts = [None if part is None else function(part) for part in self.parts]
            value = (function if bias is None or primal is None else primal)(self.primal[None])[0]
            value = value if bias is None or primal is not None else value + bias
            return Jet(self.layout, value, tuple(parts))
        result = self.unstack(function(self.stack()))
        return result if bias is None else result._shift(bias)

    def _shift(self, bias: Tensor) -> Jet:
        """A constant added to the primal of a jet just made, which nothing else holds."""
        if nothing_recorded():
            self.primal.add_(bias)
            return self
        return Jet(self.layout, self.primal + bias, self.parts)

    def replace(self, primal: Tensor, parts: tuple[Tensor | None, ...]) -> Jet:
        return Jet(self.layout, primal, tuple(parts))

    def _is_small(self) -> bool:
        return self.primal.is_cuda or self.primal.numel() <= _STACK_UP_TO


def _channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def nothing_recorded() -> bool:
    """Whether backward kernels and writes in place may be used: no autograd or compiler looks on."""
    return not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def lift(part: Tensor, ndim: int) -> Tensor:
    """(n, *shape) with ones inserted after n, so that shape has ``ndim`` dimensions."""
    missing = ndim + 1 - part.dim()
    return part.reshape(part.shape[0], *[1] * missing, *part.shape[1:]) if missing > 0 else part


def transform(values: object, function: Callable[[Jet], object]) -> object:
    """A nest of lists, tuples and dicts with every jet replaced by function(jet)."""
    if isinstance(values, Jet):
        return function(values)
    if isinstance(values, (list, tuple)):
        results = [transform(value, function) for value in values]
        return type(values)(*results) if hasattr(values, "_fields") else type(values)(results)
    if type(values) is dict:
        return {name: transform(value, function) for name, value in values.items()}
    return values


def primals(values: object) -> object:
    """A nest of lists, tuples and dicts with every jet replaced by its primal."""
    return transform(values, lambda jet: jet.primal)


def first_jet(values: object) -> Jet | None:
    """The first jet in a nest of lists, tuples and dicts, or None."""
    if isinstance(values, Jet):
        return values
    if isinstance(values, dict):
        values = tuple(values.values())
    if isinstance(values, (list, tuple)):
        for value in values:
            found = first_jet(value)
            if found is not None:
                return found
    return None
