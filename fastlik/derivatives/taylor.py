"""Derivatives along directions, ``fastlik.jvp`` and ``fastlik.jet``: by jets, or by plain autograd."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..checks import check_choice
from . import products
from .jets import NoDerivative, push

BACKENDS = ("auto", "jets", "torch")
Field = Callable[[Tensor], Tensor]


def jvp(f: Field, x: Tensor, v: Tensor, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """(f(x), J v), J = df/dx of each row: 1 + K forward passes' work for K tangents.

    Args:
        f: a module or function, rows independent, (B, *event) -> (B, *event).
        x: (B, *event).
        v: like x, or (K, *x.shape) for K tangents that share one evaluation of f.
        backend: "jets", "torch" (autograd, twice in reverse), or "auto": jets, and autograd where they
            cannot go.

    Returns:
        f(x), and J v in the shape of v.  Gradients flow through both where grad mode is enabled.

    Raises:
        ValueError: v does not fit x, or an unknown backend.
    """
    value, product = _attempt(
        backend,
        lambda: push.along(f, x, _stacked(x, v), 1),
        lambda: products.jvp(f, x, _stacked(x, v)),
    )
    return value, product.reshape(*v.shape[: v.dim() - x.dim()], *value.shape)


def jet(
    f: Field,
    x: Tensor,
    directions: Tensor | Sequence[Tensor],
    order: int | None = None,
    *,
    collapse: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, ...]:
    """f(x) with its higher directional derivatives.

    * ``directions`` a tensor v: (f(x), D f[v], D^2 f[v, v], D^3 f[v, v, v]) up to ``order`` (default 2).
    * ``directions`` a sequence (u, v): the mixed derivatives (f(x), D f[u], D f[v], D^2 f[u, v]); of three,
      (f(x), u, v, w, uv, uw, vw, uvw).
    * ``collapse``: (f(x), D f[v], sum over k of D^2 f[v_k, v_k]) for v (K, *x.shape), at 2 + K evaluations'
      work instead of 1 + 2 K: a Laplacian for the K unit vectors, its estimate for probes.

    Args:
        f: a module or function, rows independent, (B, *event) -> (B, *event).
        x: (B, *event).
        directions: each like x, or (K, *x.shape) for K directions that share one evaluation of f.
        order: 1, 2 or 3; of a sequence, its length.
        backend: as in :func:`jvp`; "torch" nests reverse-mode derivatives.

    Returns:
        f(x) and derivatives in the shape of the directions (the collapsed sum in the shape of f(x)).

    Raises:
        ValueError: directions that do not fit x, an order out of range.
    """
    if isinstance(directions, Tensor):
        return _along(f, x, directions, 2 if order is None else order, collapse, backend)
    directions = list(directions)
    if len(directions) == 1:
        return _along(f, x, directions[0], 1 if order is None else order, collapse, backend)
    if len(directions) not in (2, 3) or order not in (None, len(directions)) or collapse:
        raise ValueError(
            f"mixed derivatives are of 2 or 3 directions and of that order, got {len(directions)} "
            f"directions, order={order}, collapse={collapse}"
        )
    if any(v.shape != directions[0].shape for v in directions):
        raise ValueError(f"the directions have different shapes: {[tuple(v.shape) for v in directions]}")
    stacks = [_stacked(x, v) for v in directions]
    results = _attempt(
        backend, lambda: push.mixed(f, x, stacks), lambda: products.mixed_derivatives(f, x, stacks)
    )
    return _like(directions[0], x, results)


def _along(f: Field, x: Tensor, v: Tensor, order: int, collapse: bool, backend: str) -> tuple[Tensor, ...]:
    if order not in (1, 2, 3):
        raise ValueError(f"order must be 1, 2 or 3, got {order}")
    if collapse and order != 2:
        raise ValueError(f"only second derivatives are collapsed, got order={order}")
    stack = _stacked(x, v)
    if collapse:
        value, first, second = _attempt(
            backend,
            lambda: push.collapsed(f, x, stack),
            lambda: _summed(products.derivatives_along(f, x, stack, 2)),
        )
        return *_like(v, x, (value, first)), second
    results = _attempt(
        backend,
        lambda: push.along(f, x, stack, order),
        lambda: products.derivatives_along(f, x, stack, order),
    )
    return _like(v, x, results)


def _summed(results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return results[0], results[1], results[2].sum(0)


def _stacked(x: Tensor, v: Tensor) -> Tensor:
    """Directions as (K, *x.shape)."""
    if v.shape == x.shape:
        return v[None]
    products.check_stack(x, v)
    return v


def _like(v: Tensor, x: Tensor, results: Sequence[Tensor]) -> tuple[Tensor, ...]:
    value, *derivatives = results
    if v.shape == x.shape:
        derivatives = [derivative[0] for derivative in derivatives]
    return value, *derivatives


def _attempt(backend: str, by_jets: Callable[[], tuple], by_torch: Callable[[], tuple]) -> tuple:
    """Jets, or plain autograd where asked for or where jets cannot go, which a warning says."""
    check_choice("backend", backend, BACKENDS)
    if backend == "torch":
        return by_torch()
    if backend == "jets" or torch.compiler.is_compiling():
        return by_jets()
    try:
        return by_jets()
    except NoDerivative as reason:
        warnings.warn(f"plain autograd instead of jets: {reason}", stacklevel=4)
        return by_torch()
