"""A jet: a tensor with its derivatives along the directions of interest, as ordinary tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .layout import Layout

# below this many numbers a linear operation on a primal and its tangents is one call on a stack: the copy
# costs less than a second call
_STACK_UP_TO = 1 << 17


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
        pieces = [self.primal[None], *[part for part in self.parts if part is not None]]
        if self.primal.is_contiguous():
            return torch.cat(pieces)
        if nothing_recorded():
            return torch.cat(pieces, out=new_stack(self.primal, sum(map(len, pieces))))
        if is_channels_last(self.primal):
            return torch.cat([piece.movedim(2, -1) for piece in pieces]).movedim(-1, 2)
        return torch.cat(pieces)

    def stacks_like(self, other: Jet) -> bool:
        """Whether both lie in one allocation each, with the same derivatives."""
        if self.stacked is None or other.stacked is None or len(self.stacked) != len(other.stacked):
            return False
        return [p is None for p in self.parts] == [p is None for p in other.parts]

    def unstack(self, stacked: Tensor) -> Jet:
        """The jet of a tensor stacked as this jet's ``stack()`` is."""
        if len(self.parts) == 1 and self.parts[0] is not None:
            return Jet(self.layout, stacked[0], (stacked[1:],), stacked)
        start, parts = 1, []
        for part in self.parts:
            size = 0 if part is None else part.shape[0]
            parts.append(stacked.narrow(0, start, size) if size else None)
            start += size
        return Jet(self.layout, stacked[0], tuple(parts), stacked)

    def empty_like(self) -> Jet:
        """An uninitialised jet with the same derivatives, in one allocation."""
        return self.unstack(new_stack(self.primal, 1 + sum(len(p) for p in self.parts if p is not None)))

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
        return result if bias is None else result.shift(bias)

    def shift(self, bias: Tensor) -> Jet:
        """A constant added to the primal of a jet just made, which nothing else holds."""
        bias = bias.to(self.primal.dtype)  # under autocast the layer's result is narrower than its bias
        if nothing_recorded():
            self.primal.add_(bias)
            return self
        return Jet(self.layout, self.primal + bias, self.parts)

    def replace(self, primal: Tensor, parts: tuple[Tensor | None, ...]) -> Jet:
        return Jet(self.layout, primal, tuple(parts))

    def _is_small(self) -> bool:
        return self.primal.is_cuda or self.primal.numel() <= _STACK_UP_TO


def jet_of(layout: Layout, value: Tensor, parts: Sequence[Tensor]) -> Jet:
    """The jet of the results of a kernel, which may lie in one stack."""
    # operators of a traced graph have results of their own
    base = None if torch.compiler.is_compiling() else value._base
    count = 1 + sum(map(len, parts))
    if base is not None and base.numel() == count * value.numel():
        stack = base.as_strided((count, *value.shape), (value.numel(), *value.stride()))
        return Jet(layout, value, tuple(parts), stack)
    return Jet(layout, value, tuple(parts))


def nothing_recorded() -> bool:
    """Whether kernels without a derivative and writes in place may be used: nothing looks on."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return not torch._C._are_functorch_transforms_active() and forward_ad._current_level < 0


def new_stack(like: Tensor, count: int) -> Tensor:
    """An uninitialised (count, *like.shape), each in the order of memory of ``like``."""
    if not like.is_contiguous() and not is_channels_last(like):
        return like.new_empty(count, *like.shape)
    return like.new_empty_strided((count, *like.shape), (like.numel(), *like.stride()))


def is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


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
