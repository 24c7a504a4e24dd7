"""Choices: indexing, masks, maxima, sorted order.  The choice is the primal's."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import NoDerivative
from ..jet import Jet, lift
from ..registry import rule
from .arithmetic import Operand, layout_of, primal_of
from .reduction import _over
from .shape import Dims, from_end, jointly


class Picked(NamedTuple):
    """Values with the places that they come from."""

    values: Jet
    indices: Tensor


@rule("__getitem__", view=True)
def getitem(a: Jet, index: object) -> Jet:
    if isinstance(index, list):
        index = torch.tensor(index)
    index = index if isinstance(index, tuple) else (index,)
    index = tuple(primal_of(each) for each in index)
    if all(each is None or isinstance(each, (int, slice)) or each is Ellipsis for each in index):
        return a.map(lambda part: part[(slice(None), *index)])
    return a.map_each(lambda part: part[index])


@rule("index")
def index(a: Jet, indices: list) -> Jet:
    return getitem(a, tuple(slice(None) if each is None else each for each in indices))


@rule("index_put")
def index_put(a: Operand, indices: object, values: Operand, accumulate: bool = False) -> Jet:
    indices = tuple(slice(None) if each is None else each for each in indices)

    def write(into: Tensor, part: Tensor) -> Tensor:
        rows = [into_row.clone() for into_row in into.expand(len(part), *into.shape[1:]).unbind(0)]
        for row, value in zip(rows, part.unbind(0), strict=True):
            row[indices] = row[indices] + value if accumulate else value
        return torch.stack(rows)

    return jointly(write, a, values)


@rule("index_select")
def index_select(a: Jet, dim: int, index: Tensor) -> Jet:
    dim = from_end(dim, a.ndim)
    return a.map(lambda part: part.index_select(dim, index))


def _spread(index: Tensor, part: Tensor) -> Tensor:
    return index.expand(part.shape[0], *index.shape)


@rule("gather")
def gather(a: Jet, dim: int, index: Tensor, *, sparse_grad: bool = False) -> Jet:
    dim = from_end(dim, a.ndim)
    return a.map(lambda part: part.gather(dim, _spread(index, part)))


@rule("take_along_dim")
def take_along_dim(a: Jet, indices: Tensor, dim: int | None = None) -> Jet:
    return a.map_each(lambda part: torch.take_along_dim(part, indices, dim))


@rule("where")
def where(condition: Tensor, a: Operand, b: Operand) -> Jet:
    condition = primal_of(condition)
    layout = layout_of(a, b)
    primal = torch.where(condition, primal_of(a), primal_of(b))
    parts = []
    for component in range(len(layout.components)):
        first = a.parts[component] if isinstance(a, Jet) else None
        second = b.parts[component] if isinstance(b, Jet) else None
        if first is None and second is None:
            parts.append(None)
            continue
        first, second = (0.0 if each is None else lift(each, primal.dim()) for each in (first, second))
        parts.append(torch.where(condition, first, second).to(primal.dtype))
    return Jet(layout, primal, tuple(parts))


@rule("masked_fill")
def masked_fill(a: Operand, mask: Tensor, value: Operand) -> Jet:
    return where(mask, value, a)


@rule("maximum", "fmax")
def maximum(a: Operand, b: Operand) -> Jet:
    return _chosen(primal_of(a) > primal_of(b), a, b)


@rule("minimum", "fmin")
def minimum(a: Operand, b: Operand) -> Jet:
    return _chosen(primal_of(a) < primal_of(b), a, b)


def _chosen(first: Tensor, a: Operand, b: Operand) -> Jet:
    """Ties share the derivative equally, as in autograd."""
    from .arithmetic import add, mul

    tie = primal_of(a) == primal_of(b)
    choice = where(first, a, b)
    if isinstance(a, Jet) and isinstance(b, Jet):
        return where(tie, mul(add(a, b), 0.5), choice)
    half = [None if part is None else torch.where(tie, 0.5 * part, part) for part in _of(a, b, choice)]
    return choice.replace(choice.primal, half)


def _of(a: Operand, b: Operand, choice: Jet) -> list[Tensor | None]:
    """Derivatives of the one jet where it is chosen or tied."""
    jet = a if isinstance(a, Jet) else b
    tie = primal_of(a) == primal_of(b)
    return [
        None if part is None else torch.where(tie, lift(mine, choice.ndim).expand_as(part), part)
        for part, mine in zip(choice.parts, jet.parts, strict=True)
    ]


@rule("amax")
def amax(a: Jet, dim: Dims = (), keepdim: bool = False) -> Jet:
    return _extreme(a, dim, keepdim, torch.amax)


@rule("amin")
def amin(a: Jet, dim: Dims = (), keepdim: bool = False) -> Jet:
    return _extreme(a, dim, keepdim, torch.amin)


def _extreme(a: Jet, dim: Dims, keepdim: bool, function: object) -> Jet:
    """Ties share the derivative equally, as in autograd."""
    dims = _over(dim, a.ndim)
    top = function(a.primal, dims, keepdim=True)
    share = (a.primal == top).to(a.primal.dtype)
    share = share / share.sum(dims, keepdim=True)
    parts = [None if part is None else (part * share).sum(dims, keepdim=keepdim) for part in a.parts]
    return a.replace(top if keepdim else top.squeeze(dims), parts)


@rule("max")
def max_(a: Jet, dim: object = None, keepdim: bool = False) -> Jet | Picked:
    if isinstance(dim, (Jet, Tensor)):
        return maximum(a, dim)
    return amax(a) if dim is None else _picked(a, torch.max(a.primal, dim, keepdim=True), dim, keepdim)


@rule("min")
def min_(a: Jet, dim: object = None, keepdim: bool = False) -> Jet | Picked:
    if isinstance(dim, (Jet, Tensor)):
        return minimum(a, dim)
    return amin(a) if dim is None else _picked(a, torch.min(a.primal, dim, keepdim=True), dim, keepdim)


@rule("median", "nanmedian")
def median(a: Jet, dim: int | None = None, keepdim: bool = False) -> Picked:
    if dim is None:
        raise NoDerivative("a median over all dimensions")
    return _picked(a, torch.median(a.primal, dim, keepdim=True), dim, keepdim)


def _picked(a: Jet, result: tuple[Tensor, Tensor], dim: int, keepdim: bool) -> Picked:
    index = result[1]
    value = gather(a, dim, index)
    if not keepdim:
        from .shape import squeeze

        return Picked(squeeze(value, dim), index.squeeze(dim))
    return Picked(value, index)


@rule("sort")
def sort(a: Jet, dim: int = -1, descending: bool = False, stable: bool = False) -> Picked:
    index = torch.sort(a.primal, dim=dim, descending=descending, stable=stable)[1]
    return Picked(gather(a, dim, index), index)


@rule("topk")
def topk(a: Jet, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Picked:
    index = torch.topk(a.primal, k, dim, largest, sorted)[1]
    return Picked(gather(a, dim, index), index)


@rule("embedding")
def embedding(weight: Operand, indices: Operand, *args: object, **options: object) -> Jet:
    if not isinstance(weight, Jet):
        raise NoDerivative("an embedding of numbers that depend on x")
    return weight.map_each(lambda part: torch.embedding(part, indices, *args, **options))
