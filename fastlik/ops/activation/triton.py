"""Triton kernels of jets of pointwise functions."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastlik.ops.differentiable import Fused
from fastlik.ops.memory import empty_jet, ordered_as

from . import reference

BLOCK, WARPS = 1024, 4


@triton.jit
def _sigmoid_pair(x):
    """s(x) and s(-x), both to full relative precision."""
    e = tl.exp(-tl.abs(x))
    large, small = 1 / (1 + e), e / (1 + e)
    return tl.where(x >= 0, large, small), tl.where(x >= 0, small, large)


@triton.jit
def derivatives(x, parameter, FUNCTION: tl.constexpr):
    """f and its first three derivatives at float32 ``x``; what is not used costs nothing."""
    f0, f1, f2, f3 = x, x * 0 + 1, x * 0, x * 0
    if FUNCTION == "silu":
        s, q = _sigmoid_pair(x)
        slope = s * q
        f0 = x * s
        f1 = s + x * slope
        f2 = slope * (2 + x * (q - s))
        f3 = slope * (3 * (q - s) + x * (1 - 6 * slope))
    elif FUNCTION == "gelu":
        mass = 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)
        density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
        f0 = x * mass
        f1 = mass + x * density
        f2 = density * (2 - x * x)
        f3 = density * x * (x * x - 4)
    elif FUNCTION == "gelu_tanh":
        # x s(v) with v = 2 sqrt(2 / pi) (x + 0.044715 x^3)
        s, q = _sigmoid_pair(1.5957691216057308 * x * (1 + 0.044715 * x * x))
        v1 = 1.5957691216057308 * (1 + 0.134145 * x * x)
        v2 = 1.5957691216057308 * 0.26829 * x
        v3 = 1.5957691216057308 * 0.26829
        slope = s * q
        bend = slope * (q - s)
        u2 = bend * v1 * v1 + slope * v2
        f0 = x * s
        f1 = s + x * slope * v1
        f2 = 2 * slope * v1 + x * u2
        f3 = 3 * u2 + x * (slope * (1 - 6 * slope) * v1 * v1 * v1 + 3 * bend * v1 * v2 + slope * v3)
    elif FUNCTION == "tanh":
        e = tl.exp(-2 * tl.abs(x))
        large = (1 - e) / (1 + e)
        square = x * x
        # 1 - e loses its digits near 0
        near = x * (1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315))))
        f0 = tl.where(tl.abs(x) < 0.15, near, tl.where(x < 0, -large, large))
        f1 = 4 * e / ((1 + e) * (1 + e))
        f2 = -2 * f0 * f1
        f3 = f1 * (6 * f0 * f0 - 2)
    elif FUNCTION == "sigmoid":
        s, q = _sigmoid_pair(x)
        slope = s * q
        f0 = s
        f1 = slope
        f2 = slope * (q - s)
        f3 = slope * (1 - 6 * slope)
    elif FUNCTION == "softplus":
        v = parameter * x
        s, q = _sigmoid_pair(v)
        smooth = v <= 20  # beyond it PyTorch takes the identity
        e = tl.exp(-tl.abs(v))
        u = 1 + e
        # log(1 + e), to full relative precision where e is small
        tail = tl.where(u == 1, e, tl.log(u) * (e / tl.where(u == 1, 1.0, u - 1)))
        f0 = tl.where(smooth, (tl.maximum(v, 0.0) + tail) / parameter, x)
        f1 = tl.where(smooth, s, 1.0)
        f2 = tl.where(smooth, parameter * s * q, 0.0)
        f3 = f2 * parameter * (q - s)
    elif FUNCTION == "sin":
        s, c = tl.sin(x), tl.cos(x)
        f0 = s
        f1 = c
        f2 = -s
        f3 = -c
    return f0, f1, f2, f3


@triton.jit
def _load_x(x, bias, offsets, inside, CHANNELS, INNER, BIASED: tl.constexpr):
    value = tl.load(x + offsets, inside, 0.0).to(tl.float32)
    if BIASED:
        channel = (offsets // INNER) % CHANNELS
        value += tl.load(bias + channel, inside, 0.0).to(tl.float32)
    return value


@triton.jit
def forward_kernel(
    x, first, second, bias, y, y1, y2, size, count, channels, inner, parameter,
    FUNCTION: tl.constexpr, SECOND: tl.constexpr, BIASED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """SECOND: "none", "along" (K second derivatives) or "sum" (theirs)."""
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < size
    value = _load_x(x, bias, offsets, inside, channels, inner, BIASED)
    f0, f1, f2, f3 = derivatives(value, parameter, FUNCTION)
    tl.store(y + offsets, f0.to(y.dtype.element_ty), inside)
    total = tl.zeros_like(value)
    first, y1, second, y2 = first + offsets, y1 + offsets, second + offsets, y2 + offsets
    for _ in range(count):
        t = tl.load(first, inside, 0.0).to(tl.float32)
        tl.store(y1, (f1 * t).to(y1.dtype.element_ty), inside)
        if SECOND == "along":
            s = tl.load(second, inside, 0.0).to(tl.float32)
            tl.store(y2, (f2 * t * t + f1 * s).to(y2.dtype.element_ty), inside)
            second += size
            y2 += size
        if SECOND == "sum":
            total += t * t
        first += size
        y1 += size
    if SECOND == "sum":
        s = tl.load(second, inside, 0.0).to(tl.float32)
        tl.store(y2, (f2 * total + f1 * s).to(y2.dtype.element_ty), inside)


@triton.jit
def backward_kernel(
    x, first, second, bias, g, g1, g2, gx, gfirst, gsecond, size, count, channels, inner,
    parameter,
    FUNCTION: tl.constexpr, SECOND: tl.constexpr, BIASED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < size
    value = _load_x(x, bias, offsets, inside, channels, inner, BIASED)
    f0, f1, f2, f3 = derivatives(value, parameter, FUNCTION)
    grad = f1 * tl.load(g + offsets, inside, 0.0).to(tl.float32)
    first, second, gfirst, gsecond = first + offsets, second + offsets, gfirst + offsets, gsecond + offsets
    g1, g2 = g1 + offsets, g2 + offsets
    h2 = tl.zeros_like(value)
    if SECOND == "sum":
        h2 = tl.load(g2, inside, 0.0).to(tl.float32)
        grad += f2 * tl.load(second, inside, 0.0).to(tl.float32) * h2
        tl.store(gsecond, (f1 * h2).to(gsecond.dtype.element_ty), inside)
    for _ in range(count):
        t = tl.load(first, inside, 0.0).to(tl.float32)
        h1 = tl.load(g1, inside, 0.0).to(tl.float32)
        if SECOND == "along":
            s = tl.load(second, inside, 0.0).to(tl.float32)
            h2 = tl.load(g2, inside, 0.0).to(tl.float32)
            grad += f2 * s * h2
            tl.store(gsecond, (f1 * h2).to(gsecond.dtype.element_ty), inside)
            second += size
            gsecond += size
            g2 += size
        grad += f2 * t * h1 + f3 * t * t * h2
        tl.store(gfirst, (f1 * h1 + 2 * f2 * t * h2).to(gfirst.dtype.element_ty), inside)
        first += size
        gfirst += size
        g1 += size
    tl.store(gx + offsets, grad.to(gx.dtype.element_ty), inside)


def _options(first: Tensor, second: Tensor | None, bias: Tensor | None, function: str) -> dict[str, object]:
    along = second is not None and len(second) == len(first)
    kind = "none" if second is None else "along" if along else "sum"
    return {
        "FUNCTION": function,
        "SECOND": kind,
        "BIASED": bias is not None,
        "BLOCK": BLOCK,
        "num_warps": WARPS,
        "enable_fp_fusion": True,
    }


def _grid(x: Tensor) -> tuple[int]:
    return (triton.cdiv(x.numel(), BLOCK),)


def _channels(x: Tensor, channel: int) -> tuple[int, int]:
    """How many channels there are, and how far apart they lie."""
    return (x.shape[channel], x.stride(channel)) if x.dim() else (1, 1)


def allocate(
    x: Tensor, first: Tensor, second: Tensor | None, *settings: object, together: bool
) -> list[Tensor]:
    return empty_jet(x, [len(each) for each in (first, second) if each is not None], together)


def forward(
    results: list[Tensor],
    x: Tensor,
    first: Tensor,
    second: Tensor | None,
    bias: Tensor | None,
    function: str,
    parameter: float,
    channel: int,
) -> None:
    y, y1, *y2 = results
    forward_kernel[_grid(x)](
        x,
        first,
        x if second is None else second,
        x if bias is None else bias,
        y,
        y1,
        *(y2 or [y1]),
        x.numel(),
        len(first),
        *_channels(x, channel),
        parameter,
        **_options(first, second, bias, function),
    )


def backward(
    gradients: list[Tensor],
    grads: list[Tensor],
    results: list[Tensor],
    x: Tensor,
    first: Tensor,
    second: Tensor | None,
    bias: Tensor | None,
    function: str,
    parameter: float,
    channel: int,
) -> None:
    g = ordered_as(x, grads[0][None])[0]
    g1, *g2 = (ordered_as(x, grad) for grad in grads[1:])
    gx, gfirst, *others = gradients
    backward_kernel[_grid(x)](
        x,
        first,
        x if second is None else second,
        x if bias is None else bias,
        g,
        g1,
        *(g2 or [g1]),
        gx,
        gfirst,
        gfirst if second is None else others[0],
        x.numel(),
        len(first),
        *_channels(x, channel),
        parameter,
        **_options(first, second, bias, function),
    )
    if bias is not None:
        others[-1].copy_(gx.sum([d for d in range(x.dim()) if d != channel]))


FUSED = Fused(
    "activation",
    "Tensor x, Tensor first, Tensor? second, Tensor? bias, str function, float parameter, int channel",
    reference.activation,
    allocate,
    forward,
    backward,
)
