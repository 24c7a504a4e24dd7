"""Operations that do a rule's work on value and tangents at once, where there is one that fits.

Each function takes a jet and returns a jet, or None where the rule has to do it by parts.  On GPUs the
kernels of ``kernels.py`` come first, which have derivatives themselves; then, at first order and where
neither autograd nor a compiler looks on, fastlik's native ones for CPUs, and PyTorch's backward kernels,
which give tangents too, because the Jacobians of these operations are symmetric.
"""

from __future__ import annotations

import functools
import os

import torch
from torch import Tensor
from torch.nn import functional as F

from ....ops.activation import native as native_activation
from ....ops.dispatch import NATIVE_DTYPES, choose
from ....ops.normalisation import native as native_normalisation
from .. import kernels
from ..jet import Jet, nothing_recorded

aten = torch.ops.aten


def is_first_order(a: Jet) -> bool:
    """Whether a jet has nothing but tangents, of which nothing is recorded."""
    live = a.layout.order == 1 and a.parts[0] is not None and a.primal.numel() > 0
    return live and nothing_recorded()


def is_native(a: Jet) -> bool:
    """Whether fastlik's kernels take a jet of the first order."""
    x = a.primal
    return x.is_cpu and _has_kernels(x.dtype, os.environ.get("FASTLIK_BACKEND"))


@functools.cache
def _has_kernels(dtype: torch.dtype, backend: str | None) -> bool:
    if backend == "triton" or dtype not in NATIVE_DTYPES:
        return False
    return choose("activation", "auto", torch.empty(0, dtype=dtype)) == "native"


def activation(a: Jet, function: str, parameter: float = 1.0) -> Jet | None:
    """A pointwise function by its name in ``fastlik.ops``."""
    joined = kernels.activation(a, function, parameter)
    if joined is not None or not is_first_order(a) or function not in native_activation.FUNCTIONS:
        return joined
    if is_native(a):
        return a.unstack(native_activation.activation(a.primal, a.parts[0], function, parameter))
    x, tangents = a.primal, a.parts[0]
    if function == "silu":
        return a.replace(F.silu(x), (aten.silu_backward(tangents, x),))
    if function.startswith("gelu"):
        approximate = "tanh" if function == "gelu_tanh" else "none"
        slope = aten.gelu_backward(tangents, x.expand_as(tangents), approximate=approximate)
        return a.replace(F.gelu(x, approximate=approximate), (slope,))
    if function == "softplus":
        slope = aten.softplus_backward(tangents, x.expand_as(tangents), parameter, 20)
        return a.replace(F.softplus(x, parameter), (slope,))
    y = getattr(x, function)()
    return a.replace(y, (getattr(aten, f"{function}_backward")(tangents, y),))


def group_norm(a: Jet, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Jet | None:
    joined = kernels.group_norm(a, groups, weight, bias, eps)
    if joined is not None or not is_first_order(a):
        return joined
    if is_native(a):
        return a.unstack(native_normalisation.group_norm(a.primal, a.parts[0], groups, weight, bias, eps))
    batch, channels, size = a.shape[0], a.shape[1], a.shape[2:].numel()
    x, tangents = a.primal.contiguous(), a.parts[0].contiguous()
    k = len(tangents)
    weight, bias = (None if each is None else each.contiguous() for each in (weight, bias))
    y, average, rstd = aten.native_group_norm(x, weight, bias, batch, channels, size, groups, eps)
    products, _, _ = aten.native_group_norm_backward(
        tangents.flatten(0, 1),
        # for one row flatten would leave a stride of 0, which the kernel does not look at
        x.expand_as(tangents).flatten(0, 1).contiguous(),
        average.repeat(k, 1),
        rstd.repeat(k, 1),
        None,
        k * batch,
        channels,
        size,
        groups,
        [True, False, False],
    )
    if weight is not None:
        products = products * weight.reshape(-1, *[1] * (a.ndim - 2))
    return a.replace(y, (products.unflatten(0, (k, batch)),))


def layer_norm(
    a: Jet, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float, centred: bool = True
) -> Jet | None:
    joined = kernels.layer_norm(a, len(shape), weight, bias, eps, centred)
    if joined is not None or not centred or not is_first_order(a) or a.ndim == len(shape):
        return joined
    x, tangents = a.primal.contiguous(), a.parts[0].contiguous()
    y, average, rstd = aten.native_layer_norm(x, shape, weight, bias, eps)
    products, _, _ = aten.native_layer_norm_backward(
        tangents,
        x.expand_as(tangents).contiguous(),
        shape,
        average.expand(len(tangents), *average.shape).contiguous(),
        rstd.expand(len(tangents), *rstd.shape).contiguous(),
        None,
        None,
        [True, False, False],
    )
    return a.replace(y, (products if weight is None else products * weight,))


def softmax(a: Jet, dim: int) -> Jet | None:
    if a.layout.order > 1 or a.parts[0] is None:
        return None
    p, tangents = torch.softmax(a.primal, dim), a.parts[0]
    # this kernel has a derivative of its own, so that it serves under autograd as well
    products = aten._softmax_backward_data(tangents, p.expand_as(tangents), dim, tangents.dtype)
    return a.replace(p, (products,))
