"""Convolutions: the stack of derivatives becomes part of the batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import NoDerivative
from ..jet import Jet
from ..registry import rule


def over_batch(
    a: Jet,
    function: Callable[[Tensor], Tensor],
    ndim: int,
    bias: Tensor | None = None,
    primal: Callable[[Tensor], Tensor] | None = None,
) -> Jet:
    """A linear function of batches (N, ...) with ``ndim`` dimensions; (N, ...) may lack N.

    bias, primal: as in ``Jet.linear``.
    """

    def folded(function: Callable[[Tensor], Tensor], part: Tensor) -> Tensor:
        if part.dim() == ndim:  # no batch: the stack is one
            return function(part)
        return function(part.flatten(0, 1)).unflatten(0, part.shape[:2])

    return a.linear(
        lambda part: folded(function, part),
        bias,
        None if primal is None else lambda part: folded(primal, part),
    )


def _convolve(function: Callable, spatial: int) -> Callable[..., Jet]:
    def convolution(
        a: Jet, weight: Tensor, bias: Tensor | None = None, *args: object, **options: object
    ) -> Jet:
        if not isinstance(a, Jet) or isinstance(weight, Jet) or isinstance(bias, Jet):
            raise NoDerivative("a convolution whose kernel depends on x")
        return over_batch(
            a,
            lambda part: function(part, weight, None, *args, **options),
            spatial + 2,
            None if bias is None else bias.reshape(-1, *[1] * spatial),
            lambda part: function(part, weight, bias, *args, **options),
        )

    return convolution


for _spatial in (1, 2, 3):
    for _name in (f"conv{_spatial}d", f"conv_transpose{_spatial}d"):
        rule(_name)(_convolve(getattr(F, _name), _spatial))


@rule("convolution", "_convolution")
def convolution(a: Jet, weight: Tensor, bias: Tensor | None, *settings: object) -> Jet:
    """stride, padding, dilation, transposed, output_padding, groups, and backend flags that are ignored."""
    return _convolve(lambda part, w, b, *more: torch.convolution(part, w, b, *more), weight.dim() - 2)(
        a, weight, bias, *settings[:6]
    )
