"""Sums, products and quotients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import kernels
from ..deferred import Deferred
from ..jet import Jet, lift, nothing_recorded
from ..layout import PRIMAL, Layout
from ..registry import rule

Operand = Jet | Tensor | float | complex


def primal_of(value: object) -> object:
    return value.primal if isinstance(value, Jet) else value


def part_of(value: object, component: int) -> Tensor | None:
    """A factor's derivative (n, *shape), its primal as (1, *shape), or None for zero."""
    if component == PRIMAL:
        value = primal_of(value)
        return value[None] if isinstance(value, Tensor) else value
    return value.parts[component] if isinstance(value, Jet) else None


def rank(*values: object) -> int:
    return max(primal_of(v).dim() for v in values if isinstance(primal_of(v), Tensor))


def lifted(value: object, ndim: int) -> object:
    """As ``lift``; a number stays itself."""
    return lift(value, ndim) if isinstance(value, Tensor) else value


def layout_of(*values: object) -> Layout:
    return next(value.layout for value in values if isinstance(value, Jet))


def plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """a + b where None is zero."""
    if a is None or b is None:
        return b if a is None else a
    return a + b


def multilinear(function: Callable[..., Tensor], *factors: object) -> Jet:
    """A jet of function(a, b, ...), linear in each factor, by Leibniz' rule.

    ``function`` maps over the first dimension of its arguments (n, *shape), where n = 1 broadcasts.
    """
    layout = layout_of(*factors)
    parts = []
    for index, name in enumerate(layout.components):
        deals = layout.products[index] if len(factors) == 2 else layout.assignments(name, len(factors))
        total = None
        for multiplicity, *components in deals:
            operands = [part_of(f, c) for f, c in zip(factors, components, strict=True)]
            if any(operand is None for operand in operands):
                continue
            term = function(*operands)
            if index == layout.collapsed and term.shape[0] > 1:
                term = term.sum(0, keepdim=True)
            total = plus(total, term if multiplicity == 1 else multiplicity * term)
        parts.append(total)
    primal = function(*[part_of(f, PRIMAL) for f in factors])[0]
    return Jet(layout, primal, tuple(parts))


def _scaled(a: Jet, function: Callable[[Tensor], Tensor], by: Operand) -> Jet:
    """A jet times or over a constant."""
    if isinstance(by, Tensor) and by.dim() > a.ndim:
        return a.map(lambda part: function(lift(part, by.dim())))
    return a.map(function)


@rule("mul", "multiply", "__mul__", "__rmul__")
def mul(a: Operand, b: Operand) -> Jet:
    joined = kernels.scaled(a, b)
    if joined is not None:
        return joined
    if not isinstance(b, Jet):
        return _scaled(a, lambda part: part * b, b)
    if not isinstance(a, Jet):
        return _scaled(b, lambda part: part * a, a)
    joined = kernels.product(a, b)
    if joined is not None:
        return joined
    if a is b:
        return square(a)
    ndim = rank(a, b)
    return multilinear(lambda x, y: lifted(x, ndim) * lifted(y, ndim), a, b)


@rule("square")
def square(a: Jet) -> Jet:
    """a * a, with half of Leibniz' terms."""
    if a.layout.order > 1:
        return multilinear(torch.mul, a, a)
    part = a.parts[0]
    return a.replace(a.primal.square(), (None if part is None else 2 * a.primal * part,))


@rule("div", "true_divide", "divide", "__truediv__")
def div(a: Operand, b: Operand, *, rounding_mode: str | None = None) -> Jet | Tensor:
    if rounding_mode is not None:
        return torch.div(primal_of(a), primal_of(b), rounding_mode=rounding_mode)
    if not isinstance(b, Jet):
        joined = kernels.scaled(a, 1 / b) if isinstance(b, (int, float)) and b else None
        return _scaled(a, lambda part: part / b, b) if joined is None else joined
    layout, ndim = b.layout, rank(a, b)
    inverse = b.primal.reciprocal()
    primal = primal_of(a) * inverse
    parts = []
    for index in range(len(layout.components)):
        total = part_of(a, index)
        total = None if total is None else lift(total, ndim)
        for multiplicity, of_quotient, of_b in layout.products[index]:
            divisor = part_of(b, of_b)
            quotient = primal[None] if of_quotient == PRIMAL else None
            if 0 <= of_quotient < index:
                quotient = parts[of_quotient]
            if of_b == PRIMAL or divisor is None or quotient is None:
                continue
            term = -multiplicity * quotient * lift(divisor, ndim)
            if index == layout.collapsed:
                term = term.sum(0, keepdim=True)
            total = plus(total, term)
        parts.append(None if total is None else total * inverse)
    return Jet(layout, primal, tuple(parts))


@rule("__rtruediv__", "__rdiv__")
def rdiv(a: Operand, b: Operand) -> Jet:
    return div(b, a)


@rule("reciprocal")
def reciprocal(a: Jet) -> Jet:
    return div(1, a)


@rule("add", "__add__", "__radd__")
def add(a: Operand, b: Operand, *, alpha: float = 1) -> Jet:
    joined = kernels.shifted(a, b) if alpha == 1 else None
    if joined is not None:
        return joined
    if not isinstance(b, Jet):
        primal = a.primal + b if alpha == 1 else torch.add(a.primal, b, alpha=alpha)
        return a.replace(primal, [spread(part, primal) for part in a.parts])
    parts = b.parts if alpha == 1 else [None if part is None else alpha * part for part in b.parts]
    if not isinstance(a, Jet):
        primal = a + b.primal if alpha == 1 else a + alpha * b.primal
        return b.replace(primal, [spread(part, primal) for part in parts])
    joined = kernels.total(a, b) if alpha == 1 else None
    if joined is not None:
        return joined
    if alpha == 1 and a.stacks_like(b) and a.shape == b.shape:
        return a.unstack(a.stacked + b.stacked)
    if _alike(a, b) and nothing_recorded():
        total = a.empty_like()
        torch.add(a.primal, b.primal, alpha=alpha, out=total.primal)
        _each_part(lambda x, y, out: torch.add(x, y, alpha=alpha, out=out), a.parts, b.parts, total.parts)
        return total
    primal = torch.add(a.primal, b.primal, alpha=alpha)
    ndim = primal.dim()
    return a.replace(
        primal,
        [
            spread(theirs if mine is None else mine, primal)
            if mine is None or theirs is None
            else lift(mine, ndim) + lift(theirs, ndim)
            for mine, theirs in zip(a.parts, parts, strict=True)
        ],
    )


def _alike(a: Jet, b: Jet) -> bool:
    """Whether two jets have the same shape, dtype and derivatives."""
    if a.shape != b.shape or a.primal.dtype != b.primal.dtype:
        return False
    return [p if p is None else p.shape for p in a.parts] == [p if p is None else p.shape for p in b.parts]


def _holds(a: Jet, *others: Tensor) -> bool:
    """Whether the sum or product of a jet and tensors has the jet's shape and dtype."""
    x = a.primal
    return all(other.dtype == x.dtype and _fits(other.shape, x.shape) for other in others)


def _fits(shape: torch.Size, into: torch.Size) -> bool:
    """Whether a shape broadcasts to another; torch.broadcast_shapes takes ten times as long."""
    pairs = zip(reversed(shape), reversed(into), strict=False)
    return len(shape) <= len(into) and all(mine in (1, theirs) for mine, theirs in pairs)


def _each_part(write: Callable[..., object], *parts: tuple[Tensor | None, ...]) -> None:
    for each in zip(*parts, strict=True):
        if each[0] is not None:
            write(*each)


def spread(part: Tensor | None, total: Tensor) -> Tensor | None:
    """A summand's derivative in the shape and dtype of the sum, which the other summand may have widened."""
    if part is None:
        return None
    part = part if part.dtype == total.dtype else part.to(total.dtype)
    if part.shape[1:] == total.shape:
        return part
    return lift(part, total.dim()).expand(part.shape[0], *total.shape)


@rule("sub", "subtract", "__sub__")
def sub(a: Operand, b: Operand, *, alpha: float = 1) -> Jet:
    return add(a, b, alpha=-alpha)


@rule("rsub", "__rsub__")
def rsub(a: Operand, b: Operand, alpha: float = 1) -> Jet:
    return sub(b, a, alpha=alpha)


@rule("neg", "negative", "__neg__")
def neg(a: Jet) -> Jet:
    return a.map(torch.neg)


@rule("addcmul")
def addcmul(a: Operand, b: Operand, c: Operand, *, value: float = 1) -> Jet | Tensor:
    if isinstance(b, Jet) and isinstance(a, Tensor) and isinstance(c, Tensor):  # FiLM
        factor = c if value == 1 else c * value
        if isinstance(b, Deferred):
            return add(mul(b, factor), a)
        if _holds(b, a, factor) and nothing_recorded():
            total = b.empty_like()
            torch.addcmul(a, b.primal, factor, out=total.primal)
            _each_part(lambda x, out: torch.mul(x, factor, out=out), b.parts, total.parts)
            return total
        primal = torch.addcmul(a, b.primal, c, value=value)
        parts = [None if p is None else spread(lift(p, primal.dim()) * factor, primal) for p in b.parts]
        return b.replace(primal, parts)
    product = b * c if not isinstance(b, Jet) and not isinstance(c, Jet) else mul(b, c)
    return add(a, product, alpha=value)


@rule("addcdiv")
def addcdiv(a: Operand, b: Operand, c: Operand, *, value: float = 1) -> Jet:
    quotient = b / c if not isinstance(b, Jet) and not isinstance(c, Jet) else div(b, c)
    return add(a, quotient, alpha=value)


@rule("lerp")
def lerp(start: Operand, end: Operand, weight: Operand) -> Jet:
    step = end - start if not isinstance(start, Jet) and not isinstance(end, Jet) else sub(end, start)
    product = (
        step * weight if not isinstance(step, Jet) and not isinstance(weight, Jet) else mul(step, weight)
    )
    return add(start, product) if isinstance(start, Jet) or isinstance(product, Jet) else start + product


@rule("complex")
def make_complex(real: Operand, imag: Operand) -> Jet:
    imag = mul(imag, 1j) if isinstance(imag, Jet) else 1j * imag
    return add(real, imag)


@rule("polar")
def polar(radius: Operand, angle: Operand) -> Jet:
    from .pointwise import cos, sin

    turn = make_complex(cos(angle), sin(angle)) if isinstance(angle, Jet) else torch.exp(1j * angle)
    return mul(radius, turn)
