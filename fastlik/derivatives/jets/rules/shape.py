"""Operations that only move numbers: views, permutations, joins.

Dimensions are counted from the end, so that one call serves a tensor and a stack of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import NoDerivative
from ..jet import Jet, lift
from ..registry import rule
from .arithmetic import layout_of, primal_of

Dims = int | Sequence[int]


def from_end(dim: int, ndim: int) -> int:
    return dim - ndim if dim >= 0 else dim


def dims_from_end(dims: Dims, ndim: int) -> int | tuple[int, ...]:
    if isinstance(dims, int):
        return from_end(dims, ndim)
    return tuple(from_end(dim, ndim) for dim in dims)


def map_many(a: Jet, function: Callable[[Tensor], Sequence[Tensor]]) -> tuple[Jet, ...]:
    """As ``Jet.map`` for a function with several results."""
    if a.stacked is not None:
        return tuple(a.unstack(each) for each in function(a.stacked))
    primals = function(a.primal[None])
    pieces = [None if part is None else function(part) for part in a.parts]
    return tuple(
        a.replace(primal[0], [None if piece is None else piece[i] for piece in pieces])
        for i, primal in enumerate(primals)
    )


@rule("view", "reshape", "_unsafe_view", view=True)
def reshape(a: Jet, *sizes: object, shape: object = None) -> Jet:
    if len(sizes) == 1 and isinstance(sizes[0], torch.dtype):
        raise NoDerivative("a view in another dtype")
    shape = tuple(shape) if shape is not None else _flat(sizes)
    # a -1 is filled in here: an empty stack would leave it undetermined
    shape = a.primal.reshape(shape).shape if -1 in shape else shape
    return a.map(lambda part: part.reshape(part.shape[0], *shape))


def _flat(sizes: tuple) -> tuple:
    """The sizes of f(2, 3) and f((2, 3)) alike."""
    return tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else tuple(sizes)


@rule("view_as", "reshape_as", view=True)
def reshape_as(a: Jet, other: object) -> Jet:
    return reshape(a, tuple(other.shape))


@rule("flatten", view=True)
def flatten(a: Jet, start_dim: int = 0, end_dim: int = -1) -> Jet:
    if a.ndim == 0:
        return reshape(a, (1,))
    start, end = from_end(start_dim, a.ndim), from_end(end_dim, a.ndim)
    return a.map(lambda part: part.flatten(start, end))


@rule("ravel", view=True)
def ravel(a: Jet) -> Jet:
    return flatten(a)


@rule("unflatten", view=True)
def unflatten(a: Jet, dim: int, sizes: Sequence[int]) -> Jet:
    dim = from_end(dim, a.ndim)
    return a.map(lambda part: part.unflatten(dim, tuple(sizes)))


@rule("permute", view=True)
def permute(a: Jet, *dims: object) -> Jet:
    order = [d % a.ndim + 1 for d in _flat(dims)]
    return a.map(lambda part: part.permute(0, *order))


@rule("transpose", "swapaxes", "swapdims", view=True)
def transpose(a: Jet, dim0: int, dim1: int) -> Jet:
    first, second = from_end(dim0, a.ndim), from_end(dim1, a.ndim)
    return a.map(lambda part: part.transpose(first, second))


@rule("t", "T", view=True)
def matrix_transpose(a: Jet) -> Jet:
    return a if a.ndim < 2 else permute(a, *reversed(range(a.ndim)))


@rule("mT", "H", "adjoint", view=True)
def last_transpose(a: Jet) -> Jet:
    assert not a.primal.is_complex()
    return transpose(a, -2, -1)


@rule("movedim", "moveaxis", view=True)
def movedim(a: Jet, source: Dims, destination: Dims) -> Jet:
    source, destination = dims_from_end(source, a.ndim), dims_from_end(destination, a.ndim)
    return a.map(lambda part: part.movedim(source, destination))


@rule("unsqueeze", view=True)
def unsqueeze(a: Jet, dim: int) -> Jet:
    dim = from_end(dim, a.ndim + 1)
    return a.map(lambda part: part.unsqueeze(dim))


@rule("squeeze", view=True)
def squeeze(a: Jet, dim: Dims | None = None) -> Jet:
    if dim is None:
        dim = [d for d, size in enumerate(a.shape) if size == 1]
    dims = dims_from_end(dim, a.ndim)
    return a.map(lambda part: part.squeeze(dims))


@rule("expand", view=True)
def expand(a: Jet, *sizes: object, implicit: bool = False) -> Jet:
    sizes = _flat(sizes)
    return a.map(lambda part: lift(part, len(sizes)).expand(-1, *sizes))


@rule("expand_as", view=True)
def expand_as(a: Jet, other: object) -> Jet:
    return expand(a, *other.shape)


@rule("broadcast_to", view=True)
def broadcast_to(a: Jet, size: Sequence[int]) -> Jet:
    return expand(a, *size)


@rule("repeat", "tile")
def repeat(a: Jet, *repeats: object) -> Jet:
    repeats = _flat(repeats)
    repeats = (1,) * (a.ndim - len(repeats)) + repeats
    return a.map(lambda part: lift(part, len(repeats)).repeat(1, *repeats))


@rule("repeat_interleave")
def repeat_interleave(
    a: Jet, repeats: object, dim: int | None = None, *, output_size: int | None = None
) -> Jet:
    if dim is None:
        a, dim = flatten(a), 0
    dim = from_end(dim, a.ndim)
    return a.map(lambda part: torch.repeat_interleave(part, repeats, dim, output_size=output_size))


def jointly(function: Callable[..., Tensor], *operands: object) -> Jet:
    """A function linear in all its tensors at once, each (n, *shape): joins and writes.

    A constant's derivatives are zero.
    """
    layout = layout_of(*operands)
    parts = []
    for component in range(len(layout.components)):
        given = [each.parts[component] if isinstance(each, Jet) else None for each in operands]
        live = next((part for part in given if part is not None), None)
        if live is None:
            parts.append(None)
            continue
        filled = [
            live.new_zeros(()).expand(live.shape[0], *primal_of(each).shape) if part is None else part
            for part, each in zip(given, operands, strict=True)
        ]
        parts.append(function(*filled))
    return Jet(layout, function(*[primal_of(each)[None] for each in operands])[0], tuple(parts))


@rule("cat", "concat", "concatenate")
def cat(tensors: Sequence[object], dim: int = 0) -> Jet:
    # an empty vector is allowed beside tensors of any shape
    tensors = [each for each in tensors if tuple(each.shape) != (0,)]
    dim = from_end(dim, len(tensors[0].shape))
    jets = [each for each in tensors if isinstance(each, Jet)]
    if len(jets) == len(tensors) and all(each.stacks_like(jets[0]) for each in jets):
        return jets[0].unstack(_join([each.stacked for each in jets], dim))
    return jointly(lambda *parts: _join(parts, dim), *tensors)


def _join(parts: Sequence[Tensor], dim: int) -> Tensor:
    """torch.cat, which keeps the order of memory of images but not that of stacks of them."""
    if parts[0].dim() != 5 or dim == -4:
        return torch.cat(parts, dim)
    return torch.cat([part.flatten(0, 1) for part in parts], dim).unflatten(0, parts[0].shape[:2])


@rule("stack")
def stack(tensors: Sequence[object], dim: int = 0) -> Jet:
    dim = from_end(dim, len(tensors[0].shape) + 1)
    return jointly(lambda *parts: torch.stack(parts, dim), *tensors)


@rule("slice_scatter")
def slice_scatter(
    a: object, source: object, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Jet:
    dim = from_end(dim, len(a.shape))
    return jointly(lambda into, part: torch.slice_scatter(into, part, dim, start, end, step), a, source)


@rule("select_scatter")
def select_scatter(a: object, source: object, dim: int, index: int) -> Jet:
    dim = from_end(dim, len(a.shape))
    return jointly(lambda into, part: torch.select_scatter(into, part, dim, index), a, source)


@rule("copy")
def copy_into(a: object, source: object, non_blocking: bool = False) -> Jet | Tensor:
    """What ``a`` holds after a.copy_(source)."""
    if isinstance(source, Jet):
        return convert(expand(source, *a.shape), a.dtype)
    return source.expand(a.shape).to(a.dtype)


@rule("split", "split_with_sizes", view=True)
def split(a: Jet, size: object, dim: int = 0) -> tuple[Jet, ...]:
    dim = from_end(dim, a.ndim)
    return map_many(a, lambda part: torch.split(part, size, dim))


@rule("chunk", view=True)
def chunk(a: Jet, chunks: int, dim: int = 0) -> tuple[Jet, ...]:
    dim = from_end(dim, a.ndim)
    return map_many(a, lambda part: torch.chunk(part, chunks, dim))


@rule("tensor_split", view=True)
def tensor_split(a: Jet, sections: object, dim: int = 0) -> tuple[Jet, ...]:
    dim = from_end(dim, a.ndim)
    return map_many(a, lambda part: torch.tensor_split(part, sections, dim))


@rule("unbind", view=True)
def unbind(a: Jet, dim: int = 0) -> tuple[Jet, ...]:
    dim = from_end(dim, a.ndim)
    return map_many(a, lambda part: torch.unbind(part, dim))


@rule("narrow", view=True)
def narrow(a: Jet, dim: int, start: int, length: int) -> Jet:
    dim = from_end(dim, a.ndim)
    return a.map(lambda part: part.narrow(dim, start, length))


@rule("select", view=True)
def select(a: Jet, dim: int, index: int) -> Jet:
    dim = from_end(dim, a.ndim)
    return a.map(lambda part: part.select(dim, index))


@rule("slice", view=True)
def slice_(a: Jet, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Jet:
    index = (slice(None),) * (dim % a.ndim + 1) + (slice(start, end, step),)
    return a.map(lambda part: part[index])


@rule("flip")
def flip(a: Jet, *dims: object) -> Jet:
    dims = dims_from_end(_flat(dims), a.ndim)
    return a.map(lambda part: part.flip(dims))


@rule("roll")
def roll(a: Jet, shifts: object, dims: object = None) -> Jet:
    if dims is None or dims == []:
        return reshape(roll(flatten(a), shifts, 0), a.shape)
    dims = dims_from_end(dims, a.ndim)
    return a.map(lambda part: part.roll(shifts, dims))


@rule("tril")
def tril(a: Jet, diagonal: int = 0) -> Jet:
    return a.map(lambda part: part.tril(diagonal))


@rule("triu")
def triu(a: Jet, diagonal: int = 0) -> Jet:
    return a.map(lambda part: part.triu(diagonal))


@rule("diagonal", view=True)
def diagonal(a: Jet, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Jet:
    first, second = from_end(dim1, a.ndim), from_end(dim2, a.ndim)
    return a.map(lambda part: part.diagonal(offset, first, second))


@rule("unfold", view=True)
def unfold(a: Jet, dimension: int, size: int, step: int) -> Jet:
    dim = from_end(dimension, a.ndim)
    return a.map(lambda part: part.unfold(dim, size, step))


@rule("clone", "contiguous", "alias", "lift_fresh_copy")
def clone(a: Jet, *, memory_format: torch.memory_format = torch.preserve_format) -> Jet:
    if memory_format in (torch.channels_last, torch.channels_last_3d):
        return a.map(
            lambda part: _fold(part).contiguous(memory_format=memory_format).unflatten(0, part.shape[:2])
        )
    if memory_format == torch.contiguous_format:
        return a.map(torch.Tensor.contiguous)
    return a.map(torch.clone)


def _fold(part: Tensor) -> Tensor:
    return part.reshape(-1, *part.shape[2:])


@rule("to", "_to_copy", "type_as", "type", "float", "double", "half", "bfloat16", "cpu", "cuda", view=True)
def convert(a: Jet | Tensor, *args: object, method: str = "to", **options: object) -> Jet | Tensor:
    """Another dtype, device or memory format; integers have no derivatives."""
    args = tuple(primal_of(arg) for arg in args)
    options.pop("memory_format", None)
    if not isinstance(a, Jet):  # a constant, to the dtype of a jet
        return getattr(a, method)(*args, **options)
    primal = getattr(a.primal, method)(*args, **options)
    if not (primal.is_floating_point() or primal.is_complex()):
        return primal
    return a.map(lambda part: part.to(primal))


@rule("real", view=True)
def real(a: Jet) -> Jet:
    return a.map(torch.real) if a.primal.is_complex() else a


@rule("imag", view=True)
def imag(a: Jet) -> Jet:
    return a.map(torch.imag)


@rule("conj", "_conj", "resolve_conj", "conj_physical", view=True)
def conj(a: Jet) -> Jet:
    return a.map(torch.conj) if a.primal.is_complex() else a


@rule("view_as_complex", view=True)
def view_as_complex(a: Jet) -> Jet:
    return a.map(torch.view_as_complex)


@rule("view_as_real", view=True)
def view_as_real(a: Jet) -> Jet:
    return a.map(torch.view_as_real)
