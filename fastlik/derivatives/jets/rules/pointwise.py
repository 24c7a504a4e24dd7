"""Functions of one number, applied to every element: Faa di Bruno's formula.

Each is a generator of f(x), f'(x), f''(x), f'''(x); only as many are taken as a jet has orders.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ..jet import Jet, lift
from ..registry import rule
from . import fused
from .arithmetic import Operand, add, div, mul, plus, primal_of, square, sub

Derivatives = Iterator[Tensor]


def compose(derivatives: Derivatives, a: Jet) -> Jet:
    """The jet of f(a), from f and its derivatives at the primal of ``a``."""
    layout = a.layout
    primal = next(derivatives)
    totals: list[Tensor | None] = [None] * len(layout.components)
    for m in range(1, layout.order + 1):
        factor = None
        for index, partitions in enumerate(layout.partitions):
            inner = _inner(a, index, partitions[m - 1][1]) if m <= len(partitions) else None
            if inner is not None:
                if factor is None:
                    factor = next(derivatives)
                totals[index] = plus(totals[index], factor * inner)
        if factor is None:  # all terms of this order vanish
            next(derivatives)
    return Jet(layout, primal, tuple(totals))


def _inner(a: Jet, index: int, products: tuple) -> Tensor | None:
    """Sum over products of derivatives of ``a``: what multiplies f^(m)."""
    total = None
    for multiplicity, blocks in products:
        factors = [a.parts[block] for block in blocks]
        if any(factor is None for factor in factors):
            continue
        term = factors[0]
        for factor in factors[1:]:
            term = term * factor
        if multiplicity != 1:
            term = multiplicity * term
        if index == a.layout.collapsed and len(factors) > 1:
            term = term.sum(0, keepdim=True)
        total = plus(total, term)
    return total


def pointwise(*names: str) -> Callable:
    """Register a generator of derivatives as a rule."""

    def register(derivatives: Callable[..., Derivatives]) -> Callable[..., Jet]:
        def apply(a: Jet, *args: object, **options: object) -> Jet:
            return compose(derivatives(a.primal, *args, **options), a)

        apply.__name__ = names[0]
        return rule(*names)(apply)

    return register


def fusible(*names: str) -> Callable:
    """As ``pointwise``, for a function without options that is in ``fused.activation`` too."""

    def register(derivatives: Callable[..., Derivatives]) -> Callable[..., Jet]:
        def apply(a: Jet, inplace: bool = False) -> Jet:
            result = fused.activation(a, names[0])
            return compose(derivatives(a.primal), a) if result is None else result

        apply.__name__ = names[0]
        return rule(*names)(apply)

    return register


@fusible("silu")
def silu(x: Tensor) -> Derivatives:
    yield F.silu(x)
    s = torch.sigmoid(x)
    slope = s * (1 - s)
    yield s + x * slope
    yield slope * (2 + x * (1 - 2 * s))
    yield slope * (3 * (1 - 2 * s) + x * (1 - 6 * slope))


@fusible("tanh")
def tanh(x: Tensor) -> Derivatives:
    y = x.tanh()
    yield y
    slope = 1 - y * y
    yield slope
    yield -2 * y * slope
    yield slope * (6 * y * y - 2)


@fusible("sigmoid", "expit", "special_expit")
def sigmoid(x: Tensor) -> Derivatives:
    s = x.sigmoid()
    yield s
    slope = s * (1 - s)
    yield slope
    yield slope * (1 - 2 * s)
    yield slope * (1 - 6 * slope)


@rule("softplus")
def softplus(a: Jet, beta: float = 1, threshold: float = 20) -> Jet:
    result = fused.activation(a, "softplus", beta) if threshold == 20 else None
    return compose(_softplus(a.primal, beta, threshold), a) if result is None else result


def _softplus(x: Tensor, beta: float, threshold: float) -> Derivatives:
    yield F.softplus(x, beta, threshold)
    smooth = x * beta <= threshold  # beyond it PyTorch takes the identity
    s = torch.sigmoid(beta * x)
    yield torch.where(smooth, s, 1.0)
    slope = torch.where(smooth, s * (1 - s), 0.0)
    yield beta * slope
    yield beta**2 * slope * (1 - 2 * s)


@pointwise("log_sigmoid", "logsigmoid")
def log_sigmoid(x: Tensor) -> Derivatives:
    yield F.logsigmoid(x)
    s = torch.sigmoid(-x)
    slope = s * (1 - s)
    yield s
    yield -slope
    yield slope * (1 - 2 * s)


def _gelu_erf(x: Tensor) -> Derivatives:
    yield F.gelu(x)
    density = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    yield torch.special.ndtr(x) + x * density
    yield density * (2 - x * x)
    yield density * x * (x * x - 4)


@rule("gelu")
def gelu(a: Jet, approximate: str = "none") -> Jet:
    result = fused.activation(a, "gelu" if approximate == "none" else "gelu_tanh")
    if result is not None:
        return result
    if approximate == "none":
        return compose(_gelu_erf(a.primal), a)
    cubic = mul(a, add(mul(square(a), 0.044715), 1))
    return mul(mul(a, 0.5), add(tanh(mul(cubic, math.sqrt(2 / math.pi))), 1))


@rule("mish")
def mish(a: Jet, inplace: bool = False) -> Jet:
    return mul(a, tanh(softplus(a)))


@rule("hardswish")
def hardswish(a: Jet, inplace: bool = False) -> Jet:
    return mul(a, hardsigmoid(a))


@rule("relu")
def relu(a: Jet, inplace: bool = False) -> Jet:
    return _by_slope(a, F.relu(a.primal), (a.primal > 0).to(a.primal.dtype))


def _by_slope(a: Jet, value: Tensor, slope: Tensor) -> Jet:
    """A piecewise linear function: every derivative is multiplied by the slope."""
    parts = [None if part is None else part * slope for part in a.parts]
    return a.replace(value, parts)


def _sided(x: Tensor, negative: float | Tensor) -> Tensor:
    """1 where x > 0, else ``negative``, in x's precision."""
    positive = (x > 0).to(x.dtype)
    return positive + (1 - positive) * negative


@rule("leaky_relu")
def leaky_relu(a: Jet, negative_slope: float = 0.01, inplace: bool = False) -> Jet:
    slope = _sided(a.primal, negative_slope)
    return _by_slope(a, F.leaky_relu(a.primal, negative_slope), slope)


@rule("prelu")
def prelu(a: Jet, weight: Tensor) -> Jet:
    channel = (-1, *[1] * (a.ndim - 2)) if a.ndim > 1 else (-1,)
    slope = _sided(a.primal, weight.reshape(channel))
    return _by_slope(a, F.prelu(a.primal, weight), slope)


def _inside(x: Tensor, low: object, high: object) -> Tensor:
    inside = torch.ones_like(x)
    if low is not None:
        inside = inside * (x > low)
    return inside if high is None else inside * (x < high)


@rule("clamp", "clip")
def clamp(a: Jet, min: object = None, max: object = None) -> Jet:
    low, high = primal_of(min), primal_of(max)
    if isinstance(min, Jet) or isinstance(max, Jet):
        from .selection import maximum, minimum

        a = a if min is None else maximum(a, min)
        return a if max is None else minimum(a, max)
    inside = torch.ones_like(a.primal)
    inside = inside if low is None else inside * (a.primal >= low)
    inside = inside if high is None else inside * (a.primal <= high)
    return _by_slope(a, torch.clamp(a.primal, low, high), inside)


@rule("clamp_min")
def clamp_min(a: Jet, min: object) -> Jet:
    return clamp(a, min, None)


@rule("clamp_max")
def clamp_max(a: Jet, max: object) -> Jet:
    return clamp(a, None, max)


@rule("hardtanh")
def hardtanh(a: Jet, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Jet:
    return _by_slope(a, F.hardtanh(a.primal, min_val, max_val), _inside(a.primal, min_val, max_val))


@rule("relu6")
def relu6(a: Jet, inplace: bool = False) -> Jet:
    return hardtanh(a, 0.0, 6.0)


@rule("hardsigmoid")
def hardsigmoid(a: Jet, inplace: bool = False) -> Jet:
    return _by_slope(a, F.hardsigmoid(a.primal), _inside(a.primal, -3, 3) / 6)


@rule("threshold")
def threshold(a: Jet, threshold: float, value: float, inplace: bool = False) -> Jet:
    return _by_slope(a, F.threshold(a.primal, threshold, value), (a.primal > threshold).to(a.primal.dtype))


@rule("abs", "absolute", "__abs__")
def absolute(a: Jet) -> Jet:
    if a.primal.is_complex():
        from .shape import imag, real

        return sqrt(add(square(real(a)), square(imag(a))))
    return _by_slope(a, a.primal.abs(), a.primal.sign())


@pointwise("elu")
def elu(
    x: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0, inplace: bool = False
) -> Derivatives:
    value = torch.ops.aten.elu(x, alpha, scale, input_scale)
    yield value
    tail = torch.where(x > 0, 0.0, alpha * scale * torch.exp(input_scale * x.clamp(max=0)))
    yield torch.where(x > 0, scale, input_scale * tail)
    yield input_scale**2 * tail
    yield input_scale**3 * tail


@rule("selu")
def selu(a: Jet, inplace: bool = False) -> Jet:
    return elu(a, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946)


@rule("celu")
def celu(a: Jet, alpha: float = 1.0, inplace: bool = False) -> Jet:
    return elu(a, alpha, 1.0, 1.0 / alpha)


@pointwise("exp")
def exp(x: Tensor) -> Derivatives:
    y = x.exp()
    while True:
        yield y


@pointwise("exp2")
def exp2(x: Tensor) -> Derivatives:
    y = x.exp2()
    while True:
        yield y
        y = y * math.log(2)


@pointwise("expm1")
def expm1(x: Tensor) -> Derivatives:
    yield x.expm1()
    y = x.exp()
    while True:
        yield y


def _log_derivatives(inverse: Tensor) -> Derivatives:
    yield inverse
    yield -inverse.square()
    yield 2 * inverse**3


@pointwise("log")
def log(x: Tensor) -> Derivatives:
    yield x.log()
    yield from _log_derivatives(x.reciprocal())


@pointwise("log1p")
def log1p(x: Tensor) -> Derivatives:
    yield x.log1p()
    yield from _log_derivatives((1 + x).reciprocal())


@rule("log2")
def log2(a: Jet) -> Jet:
    return mul(log(a), 1 / math.log(2))


@rule("log10")
def log10(a: Jet) -> Jet:
    return mul(log(a), 1 / math.log(10))


@fusible("sin")
def sin(x: Tensor) -> Derivatives:
    s, c = x.sin(), x.cos()
    yield s
    yield c
    yield -s
    yield -c


@pointwise("cos")
def cos(x: Tensor) -> Derivatives:
    s, c = x.sin(), x.cos()
    yield c
    yield -s
    yield -c
    yield s


@pointwise("tan")
def tan(x: Tensor) -> Derivatives:
    y = x.tan()
    yield y
    slope = 1 + y * y
    yield slope
    yield 2 * y * slope
    yield slope * (2 + 6 * y * y)


@pointwise("sinh")
def sinh(x: Tensor) -> Derivatives:
    s, c = x.sinh(), x.cosh()
    yield s
    yield c
    yield s
    yield c


@pointwise("cosh")
def cosh(x: Tensor) -> Derivatives:
    s, c = x.sinh(), x.cosh()
    yield c
    yield s
    yield c
    yield s


@pointwise("atan", "arctan")
def atan(x: Tensor) -> Derivatives:
    yield x.atan()
    slope = 1 / (1 + x * x)
    yield slope
    yield -2 * x * slope**2
    yield (6 * x * x - 2) * slope**3


@pointwise("asinh", "arcsinh")
def asinh(x: Tensor) -> Derivatives:
    yield x.asinh()
    slope = torch.rsqrt(1 + x * x)
    yield slope
    yield -x * slope**3
    yield (2 * x * x - 1) * slope**5


@pointwise("erf", "special_erf")
def erf(x: Tensor) -> Derivatives:
    yield x.erf()
    slope = 2 / math.sqrt(math.pi) * torch.exp(-x * x)
    yield slope
    yield -2 * x * slope
    yield (4 * x * x - 2) * slope


@rule("special_ndtr")
def ndtr(a: Jet) -> Jet:
    return mul(add(erf(mul(a, math.sqrt(0.5))), 1), 0.5)


def _power(x: Tensor, exponent: object) -> Derivatives:
    yield x**exponent
    factor = exponent
    while True:
        exponent = exponent - 1
        # a vanished factor: nothing of x is left, whatever its power would be at 0
        gone = isinstance(factor, (int, float)) and factor == 0
        yield torch.zeros_like(x) if gone else factor * x**exponent
        factor = factor * exponent


@rule("sqrt")
def sqrt(a: Jet) -> Jet:
    return compose(_power(a.primal, 0.5), a)


@rule("rsqrt")
def rsqrt(a: Jet) -> Jet:
    return compose(_power(a.primal, -0.5), a)


@rule("pow", "__pow__", "float_power")
def power(a: Operand, exponent: Operand) -> Jet:
    if isinstance(exponent, Jet):
        if not isinstance(a, Jet):
            log_base = a.log() if isinstance(a, Tensor) else math.log(a)
            return exp(mul(exponent, log_base))
        return exp(mul(exponent, log(a)))
    if isinstance(exponent, Tensor) and exponent.dim() > 0:
        widened = a.map(lambda part: lift(part, exponent.dim()))
        shape = torch.broadcast_shapes(a.shape, exponent.shape)
        widened = widened.map(lambda part: part.expand(part.shape[0], *shape))
        return compose(_power(widened.primal, exponent), widened)
    if exponent == 2:
        return square(a)
    return compose(_power(a.primal, exponent), a)


@rule("__rpow__")
def rpower(exponent: Jet, base: Operand) -> Jet:
    return power(base, exponent)


@rule("atan2", "arctan2")
def atan2(y: Operand, x: Operand) -> Jet:
    """The angle's derivatives are those of atan(y / x) or -atan(x / y), whichever is regular."""
    y0, x0 = torch.broadcast_tensors(torch.as_tensor(primal_of(y)), torch.as_tensor(primal_of(x)))
    upright = y0.abs() > x0.abs()
    from .selection import where

    one = torch.ones_like(y0)
    lying = atan(div(y, where(upright, one, x)))
    standing = atan(div(mul_or(x, -1.0), where(upright, y, one)))
    angle = where(upright, standing, lying)
    return angle.replace(torch.atan2(y0, x0), angle.parts)


def mul_or(a: Operand, b: Operand) -> Operand:
    return mul(a, b) if isinstance(a, Jet) or isinstance(b, Jet) else a * b


@rule("sinc", "special_sinc")
def sinc(a: Jet) -> Jet:
    angle = mul(a, math.pi)
    return div(sin(angle), angle)


@rule("logit", "special_logit")
def logit(a: Jet, eps: float | None = None) -> Jet:
    a = a if eps is None else clamp(a, eps, 1 - eps)
    return sub(log(a), log1p(mul(a, -1.0)))


@rule("softsign")
def softsign(a: Jet) -> Jet:
    return div(a, add(absolute(a), 1))


@rule("tanhshrink")
def tanhshrink(a: Jet) -> Jet:
    return sub(a, tanh(a))


@rule("glu")
def glu(a: Jet, dim: int = -1) -> Jet:
    from .shape import chunk

    value, gate = chunk(a, 2, dim)
    return mul(value, sigmoid(gate))
