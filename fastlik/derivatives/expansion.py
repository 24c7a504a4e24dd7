"""Directional derivatives of a network, of first and second order, that can be trained through.

The one place where the objectives differentiate: everything above it is arithmetic on its results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Field = Callable[[Tensor], Tensor]


class Expansion(NamedTuple):
    """``value`` f(x) (B, *event); the others are stacked along a new first dimension: ``first[k]`` Df[v_k],
    ``second[p]`` D^2 f[v_i, v_j] of the p-th pair, ``gradient[k]`` of <c_k, Df[v_k]> in x, or one of their
    sum."""

    value: Tensor
    first: Tensor
    second: Tensor
    gradient: Tensor


def expand(
    f: Field,
    x: Tensor,
    directions: Tensor,
    pairs: Sequence[tuple[int, int]] = (),
    cotangents: Tensor | None = None,
    joint: bool = False,
) -> Expansion:
    """Derivatives of f at x (B, *event) along ``directions`` (K, B, *event), rows independent.

    Args:
        pairs: which mixed second derivatives are wanted, as indices into the directions.
        cotangents: c (K, B, *event) of the gradients wanted, by reverse mode over the first derivatives.
        joint: one gradient of the sum over k, instead of K gradients.
    """
    if pairs or cotangents is not None:
        x = x.detach().requires_grad_()
    value, first = _first(f, x, directions)
    second = [_along(first[j], x, directions[i]) for i, j in pairs]
    gradient: list[Tensor] = []
    if cotangents is not None:
        products = cotangents * first
        scalars = [products.sum()] if joint else [product.sum() for product in products]
        gradient = [_gradient(scalar, x) for scalar in scalars]
    return Expansion(value, first, _stack(second, x), _stack(gradient, x))


def _first(f: Field, x: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    if len(directions) == 1:
        value, first = torch.func.jvp(f, (x,), (directions[0],))
        return value, first[None]

    def along(v: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.jvp(f, (x,), (v,))

    # dropout: one mask for the value and all its derivatives
    return torch.func.vmap(along, out_dims=(None, 0), randomness="same")(directions)


def _gradient(scalar: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(scalar, x, create_graph=True, materialize_grads=True)[0]


def _along(y: Tensor, x: Tensor, direction: Tensor) -> Tensor:
    """The derivative of y along ``direction`` by two reverse passes, linear in a dummy cotangent: forward
    mode over forward mode has no rule for common layers (torch 2.13: the derivative of SiLU)."""
    dummy = torch.zeros_like(y, requires_grad=True)
    product = torch.autograd.grad(y, x, dummy, create_graph=True, materialize_grads=True)[0]
    return torch.autograd.grad(product, dummy, direction, create_graph=True, materialize_grads=True)[0]


def _stack(tensors: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(tensors) if tensors else like.new_empty(0, *like.shape)
