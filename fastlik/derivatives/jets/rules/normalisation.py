"""Layer, group, RMS, batch and instance normalisation.

To the first order the Jacobian of x -> (x - mean) / std is symmetric,

    J t = (t - mean t - y mean(y t)) / std,

so that the backward kernels give tangents in one pass where nothing is recorded for a backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import fused
from ..jet import Jet, nothing_recorded
from ..registry import rule
from .arithmetic import add, mul, square, sub
from .pointwise import rsqrt
from .reduction import mean
from .shape import reshape

aten = torch.ops.aten


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


def _expanded(x: Tensor, tangents: Tensor) -> Tensor:
    """x (*shape) once per tangent, as one batch."""
    # for one row flatten would leave the stride of 0, which the kernels do not look at
    return x if len(tangents) == 1 else x.expand_as(tangents).flatten(0, 1).contiguous()


@rule("group_norm")
def group_norm(
    a: Jet,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Jet:
    joined = fused.group_norm(a, num_groups, weight, bias, eps)
    if joined is not None:
        return joined
    channel = (-1, *[1] * (a.ndim - 2))
    weight = None if weight is None else weight.reshape(channel)
    bias = None if bias is None else bias.reshape(channel)
    if nothing_recorded() and a.layout.order == 1 and a.parts[0] is not None and a.primal.numel():
        return affine(_group_norm_fused(a, num_groups, eps), weight, bias)
    grouped = reshape(a, (a.shape[0], num_groups, -1)) if a.primal.numel() else a
    return affine(reshape(normalise(grouped, (-1,), eps), a.shape), weight, bias)


def _group_norm_fused(a: Jet, groups: int, eps: float) -> Jet:
    batch, channels, size = a.shape[0], a.shape[1], a.shape[2:].numel()
    x, tangents = a.primal.contiguous(), a.parts[0].contiguous()
    k = len(tangents)
    y, average, rstd = aten.native_group_norm(x, None, None, batch, channels, size, groups, eps)
    result, _, _ = aten.native_group_norm_backward(
        tangents.flatten(0, 1),
        _expanded(x, tangents),
        average if k == 1 else average.repeat(k, 1),
        rstd if k == 1 else rstd.repeat(k, 1),
        None,
        k * batch,
        channels,
        size,
        groups,
        [True, False, False],
    )
    return a.replace(y, (result.unflatten(0, (k, batch)),))


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
    joined = fused.layer_norm(a, len(shape), weight, bias, eps, centred=True)
    if joined is not None:
        return joined
    if nothing_recorded() and a.layout.order == 1 and a.parts[0] is not None and a.ndim > len(shape):
        return affine(_layer_norm_fused(a, shape, eps), weight, bias)
    return affine(normalise(a, tuple(range(-len(shape), 0)), eps), weight, bias)


def _layer_norm_fused(a: Jet, shape: list[int], eps: float) -> Jet:
    x, tangents = a.primal.contiguous(), a.parts[0].contiguous()
    y, average, rstd = aten.native_layer_norm(x, shape, None, None, eps)
    result, _, _ = aten.native_layer_norm_backward(
        tangents,
        x.expand_as(tangents).contiguous(),
        shape,
        average.expand(len(tangents), *average.shape).contiguous(),
        rstd.expand(len(tangents), *rstd.shape).contiguous(),
        None,
        None,
        [True, False, False],
    )
    return a.replace(y, (result,))


@rule("rms_norm")
def rms_norm(
    a: Jet, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Jet:
    eps = torch.finfo(a.primal.dtype).eps if eps is None else eps
    joined = fused.layer_norm(a, len(normalized_shape), weight, None, eps, centred=False)
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
    channel = (-1, *[1] * (a.ndim - 2))

    def shaped(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.reshape(channel)

    if training or running_mean is None:
        if running_mean is not None:  # keeps the running statistics
            F.batch_norm(a.primal.detach(), running_mean, running_var, None, None, True, momentum, eps)
        dims = tuple(d - a.ndim for d in range(a.ndim) if d != 1)
        return affine(normalise(a, dims, eps), shaped(weight), shaped(bias))
    scale = torch.rsqrt(running_var + eps)
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale
    return affine(a, shaped(scale), shaped(shift if bias is None else shift + bias))


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
    channel = (-1, *[1] * (a.ndim - 2))
    a = normalise(a, tuple(range(2 - a.ndim, 0)), eps)
    weight = None if weight is None else weight.reshape(channel)
    return affine(a, weight, None if bias is None else bias.reshape(channel))
