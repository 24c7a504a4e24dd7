"""First and second directional derivatives of a network, and gradients of the first, by one evaluation.

The one place where the objectives differentiate: jets, and a reverse pass over them for gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .taylor import jet, jvp

Field = Callable[[Tensor], Tensor]


class Expansion(NamedTuple):
    """``value`` f(x) (B, *event); the others are stacked along a new first dimension: ``first[k]`` Df[v_k],
    ``second[k]`` D^2 f[v_k, v_k] or D^2 f[u, v_k], or one sum of the former over k; ``gradient[k]`` of
    <c_k, Df[v_k]> in x, or one of their sum; None where not asked for."""

    value: Tensor
    first: Tensor
    second: Tensor | None = None
    gradient: Tensor | None = None


def expand(
    f: Field,
    x: Tensor,
    directions: Tensor,
    *,
    second: bool = False,
    collapse: bool = False,
    mixing: Tensor | None = None,
    cotangents: Tensor | None = None,
    joint: bool = False,
    backend: str = "auto",
) -> Expansion:
    """Derivatives of f at x (B, *event) along ``directions`` v (K, B, *event), rows independent.

    Costs 1 + K forward passes, 1 + 2 K with ``second``, 2 + K with ``collapse``, 1 + 3 K with ``mixing``;
    each gradient as much again.

    Args:
        second: the second derivatives along each direction.
        collapse: their sum over the directions alone.
        mixing: u (B, *event), for the mixed second derivatives along u and each direction.
        cotangents: c (K, B, *event) of the gradients wanted.
        joint: one gradient of the sum over k, instead of K gradients.
        backend: "jets", "torch" (plain autograd) or "auto".
    """
    if cotangents is not None:
        x = x.detach().requires_grad_()
    if mixing is not None:
        us = mixing.expand_as(directions)
        value, _, first, curvature = jet(f, x, (us, directions), backend=backend)
    elif collapse:
        value, first, laplacian = jet(f, x, directions, 2, collapse=True, backend=backend)
        curvature = laplacian[None]
    elif second:
        value, first, curvature = jet(f, x, directions, 2, backend=backend)
    else:
        (value, first), curvature = jvp(f, x, directions, backend=backend), None
    if cotangents is None:
        return Expansion(value, first, curvature)
    products = cotangents * first
    scalars = [products.sum()] if joint else [product.sum() for product in products]
    gradients = [_gradient(scalar, x) for scalar in scalars]
    return Expansion(value, first, curvature, torch.stack(gradients))


def _gradient(scalar: Tensor, x: Tensor) -> Tensor:
    if not scalar.requires_grad:  # linear in x
        return torch.zeros_like(x)
    return torch.autograd.grad(scalar, x, create_graph=True, materialize_grads=True)[0]
