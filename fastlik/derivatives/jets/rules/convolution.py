"""Convolutions: the stack of derivatives becomes part of the batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..jet import Jet
from ..registry import rule


def over_batch(a: Jet, function: Callable[[Tensor], Tensor], ndim: int, bias: Tensor | None = None) -> Jet:
    """A linear function of batches (N, ...) with ``ndim`` dimensions; (N, ...) may lack N."""

    def folded(part: Tensor) -> Tensor:
        if part.dim() == ndim:  # no batch: the stack is one
            return function(part)
        return function(part.flatten(0, 1)).unflatten(0, part.shape[:2])

    return a.linear(folded, bias)


def _convolve(function: Callable, spatial: int) -> Callable[..., Jet]:
    def convolution(a: Jet, weight: Tensor, bias: Tensor | None = None, *args: object, **options: object) -> Jet:
        if not isinstance(a, Jet) or isinstance(weight, Jet) or isinstance(bias, Jet):
            raise NotImplementedError("a convolution whose kernel depends on x")
        if bias is not None:
            bias = bias.reshape(-1, *[1] * spatial)
        return over_batch(a, lambda part: function(part, weight, None, *args, **options), spatial + 2, bias)

    return convolution


for _spatial in (1, 2, 3):
    for _name in (f"conv{_spatial}d", f"conv_transpose{_spatial}d"):
        rule(_name)(_convolve(getattr(F, _name), _spatial))


@rule("convolution", "_convolution")
def convolution(
    a: Jet, weight: Tensor, bias: Tensor | None, stride: list, padding: list, dilation: list, *more: object
) -> Jet:
    transposed, output_padding, groups = more[:3]
    spatial = weight.dim() - 2
    if bias is not None:
        bias = bias.reshape(-1, *[1] * spatial)
    return over_batch(
        a,
        lambda part: torch.convolution(
            part, weight, None, stride, padding, dilation, transposed, output_padding, groups
        ),
        spatial + 2,
        bias,
    )
