"""Sums, means and other reductions over dimensions of the event."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..errors import NoDerivative
from ..jet import Jet
from ..registry import rule
from . import fused
from .arithmetic import Operand, add, div, mul, square, sub
from .pointwise import absolute, clamp_min, exp, log, power, sqrt
from .shape import Dims, dims_from_end, from_end


def _over(dim: Dims | None, ndim: int) -> tuple[int, ...]:
    if dim is None or dim == [] or dim == ():
        return tuple(range(-ndim, 0))
    dims = dims_from_end(dim, ndim)
    return (dims,) if isinstance(dims, int) else dims


def _reduce(a: Jet, function: Callable, dim: Dims | None, keepdim: bool, dtype: torch.dtype | None) -> Jet:
    if a.ndim == 0:
        return a if dtype is None else a.map(lambda part: part.to(dtype))
    dims = _over(dim, a.ndim)
    return a.map(lambda part: function(part, dims, keepdim=keepdim, dtype=dtype))


@rule("sum")
def sum_(a: Jet, dim: Dims | None = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Jet:
    return _reduce(a, torch.sum, dim, keepdim, dtype)


@rule("mean")
def mean(a: Jet, dim: Dims | None = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Jet:
    return _reduce(a, torch.mean, dim, keepdim, dtype)


@rule("cumsum")
def cumsum(a: Jet, dim: int, *, dtype: torch.dtype | None = None) -> Jet:
    dim = from_end(dim, a.ndim)
    return a.map(lambda part: part.cumsum(dim, dtype=dtype))


@rule("var")
def var(
    a: Jet,
    dim: Dims | bool | None = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Jet:
    if isinstance(dim, bool):  # var(x, unbiased)
        dim, unbiased = None, dim
    correction = (1 if unbiased in (None, True) else 0) if correction is None else correction
    dims = _over(dim, a.ndim)
    size = 1
    for d in dims:
        size = size * a.shape[d]
    total = sum_(square(sub(a, mean(a, dims, True))), dims, keepdim)
    return mul(total, 1 / (size - correction))


@rule("std")
def std(
    a: Jet,
    dim: Dims | bool | None = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Jet:
    return sqrt(var(a, dim, unbiased, keepdim, correction=correction))


@rule("var_mean")
def var_mean(a: Jet, *args: object, **options: object) -> tuple[Jet, Jet]:
    keepdim = options.get("keepdim", False)
    return var(a, *args, **options), mean(a, options.get("dim", args[0] if args else None), keepdim)


@rule("linalg_vector_norm", "norm", "frobenius_norm")
def norm(
    a: Jet,
    ord: object = 2,
    dim: Dims | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Jet:
    if ord in (None, "fro"):
        ord = 2
    if not isinstance(ord, (int, float)) or ord in (0, float("inf"), float("-inf")):
        raise NoDerivative(f"the norm of order {ord}")
    a = a if dtype is None else a.map(lambda part: part.to(dtype))
    size = absolute(a) if a.primal.is_complex() or ord != 2 else a
    total = sum_(power(size, ord), dim, keepdim)
    return sqrt(total) if ord == 2 else power(total, 1 / ord)


@rule("prod")
def prod(a: Jet, dim: int | None = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Jet:
    dims = _over(dim, a.ndim)
    if len(dims) > 1:
        from .shape import flatten

        return prod(flatten(a), 0)
    from .shape import unbind, unsqueeze

    factors = unbind(a, dims[0])
    total = factors[0]
    for factor in factors[1:]:
        total = mul(total, factor)
    return unsqueeze(total, dims[0]) if keepdim else total


@rule("logsumexp", "special_logsumexp")
def logsumexp(a: Jet, dim: Dims, keepdim: bool = False) -> Jet:
    dims = _over(dim, a.ndim)
    top = a.primal.detach().amax(dims, keepdim=True)
    total = log(sum_(exp(sub(a, top)), dims, keepdim))
    return add(total, top if keepdim else top.squeeze(dims))


def log_softmax_by_parts(a: Jet, dim: int) -> Jet:
    return sub(a, logsumexp(a, dim, True))


def softmax_by_parts(a: Jet, dim: int) -> Jet:
    e = exp(sub(a, a.primal.detach().amax(dim, keepdim=True)))
    return div(e, sum_(e, dim, True))


def _converted(a: Jet, dtype: torch.dtype | None) -> Jet:
    return a if dtype is None else a.map(lambda part: part.to(dtype))


@rule("softmax", "_softmax", "special_softmax")
def softmax(a: Jet, dim: int, dtype: torch.dtype | bool | None = None) -> Jet:
    a = _converted(a, dtype or None)
    dim = from_end(dim, a.ndim)
    result = fused.softmax(a, dim)
    return softmax_by_parts(a, dim) if result is None else result


@rule("log_softmax", "_log_softmax", "special_log_softmax")
def log_softmax(a: Jet, dim: int, dtype: torch.dtype | bool | None = None) -> Jet:
    return log_softmax_by_parts(_converted(a, dtype or None), from_end(dim, a.ndim))


@rule("cosine_similarity")
def cosine_similarity(a: Operand, b: Operand, dim: int = 1, eps: float = 1e-8) -> Jet:
    lengths = [
        clamp_min(norm(x, 2, dim), eps) if isinstance(x, Jet) else x.norm(dim=dim).clamp_min(eps)
        for x in (a, b)
    ]
    product = sum_(mul(a, b), dim)
    for length in lengths:
        product = div(product, length)
    return product
