"""Layer, group, RMS, batch and instance normalisation.

To the first order, J t = (t - mean t - y mean(y t)) / std for y = (x - mean) / std.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..jet import Jet
from ..registry import rule
from . import fused
from .arithmetic import add, mul, square, sub
from .pointwise import rsqrt
from .reduction import mean
from .shape import reshape


def normalise(a: Jet, dims: tuple[int, ...], eps: float, centred: bool = True) -> Jet:
    """(x - mean) / sqrt(mean of squares + eps) over negative ``dims``; without the mean if not centred."""
    if a.layout.order > 1 or a.parts[0] is None:
        c = sub(a, mean(a, dims, True)) if centred else a
        return mul(c, rsqrt(add(mean(square(c), dims, True), eps)))
    x, tangents = a.primal, a.parts[0]
    if centred:
        x = x - x.mean(dims, keepdim=True)
        tangents = tangents - tangents.mean(dims, keepdim=True)
    rstd = torch.rsqrt(x.square().mean(dims, keepdim=True) + eps)
    y = x * rstd
    return a.replace(
        y, (torch.addcmul(tangents, y, (y * tangents).mean(dims, keepdim=True), value=-1) * rstd,)
    )


def affine(a: Jet, weight: Tensor | None, bias: Tensor | None) -> Jet:
    a = a if weight is None else mul(a, weight)
    return a if bias is None else add(a, bias)


@rule("group_norm")
def group_norm(
    a: Jet,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Jet:
    result = fused.group_norm(a, num_groups, weight, bias, eps)
    if result is not None:
        return result
    grouped = reshape(a, (a.shape[0], num_groups, -1)) if a.primal.numel() else a
    result = reshape(normalise(grouped, (-1,), eps), a.shape)
    return affine(result, _of_channels(weight, a.ndim), _of_channels(bias, a.ndim))


def _of_channels(values: Tensor | None, ndim: int) -> Tensor | None:
    return None if values is None else values.reshape(-1, *[1] * (ndim - 2))


@rule("layer_norm")
def layer_norm(
    a: Jet,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Jet:
    shape = list(normalized_shape)
    result = fused.layer_norm(a, shape, weight, bias, eps)
    if result is not None:
        return result
    return affine(normalise(a, tuple(range(-len(shape), 0)), eps), weight, bias)


@rule("rms_norm")
def rms_norm(
    a: Jet, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Jet:
    eps = torch.finfo(a.primal.dtype).eps if eps is None else eps
    joined = fused.layer_norm(a, list(normalized_shape), weight, None, eps, centred=False)
    if joined is not None:
        return joined
    return affine(normalise(a, tuple(range(-len(normalized_shape), 0)), eps, centred=False), weight, None)


@rule("batch_norm")
def batch_norm(
    a: Jet,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Jet:
    if training or running_mean is None:
        if running_mean is not None:  # keeps the running statistics
            F.batch_norm(a.primal.detach(), running_mean, running_var, None, None, True, momentum, eps)
        dims = tuple(d - a.ndim for d in range(a.ndim) if d != 1)
        return affine(normalise(a, dims, eps), _of_channels(weight, a.ndim), _of_channels(bias, a.ndim))
    scale = torch.rsqrt(running_var + eps)
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale
    shift = shift if bias is None else shift + bias
    return affine(a, _of_channels(scale, a.ndim), _of_channels(shift, a.ndim))


@rule("instance_norm")
def instance_norm(
    a: Jet,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Jet:
    if not use_input_stats or running_mean is not None:
        return batch_norm(a, weight, bias, running_mean, running_var, False, momentum, eps)
    a = normalise(a, tuple(range(2 - a.ndim, 0)), eps)
    return affine(a, _of_channels(weight, a.ndim), _of_channels(bias, a.ndim))
