"""Derivatives of a batched function f: (B, *event) -> (B, *event), rows independent, by plain autograd.

The reference that jets are held to.  Everything is reverse mode, applied repeatedly: forward-mode duals lack
rules for fused attention and the second derivative of SiLU, and drop the tangents of custom operators without
a word (torch 2.13).  Gradients flow through the results where grad mode is enabled, and nothing is stored
where it is not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


def jvp(f: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """(f(x), J v), J = df/dx of each row, as the derivative of the vector-Jacobian product w' J by w.

    x: (B, *event).  v: like x, or (K, *x.shape) for K tangents that share one primal evaluation; J v has
    the shape of v.

    Raises ValueError where v does not fit x.
    """
    if v.shape != x.shape:
        check_stack(x, v)
    keep = torch.is_grad_enabled()
    with _grad_mode(), sdpa_kernel(SDPBackend.MATH):  # the only one with a second derivative
        x = _leaf(x, keep)
        value = f(x)
        if v.shape == x.shape:
            product = _forward(value, x, v)
        else:
            product = torch.stack([_forward(value, x, w) for w in v])
    return (value, product) if keep else (value.detach(), product.detach())


def derivatives_along(f: Callable[[Tensor], Tensor], x: Tensor, v: Tensor, order: int) -> tuple[Tensor, ...]:
    """(f(x), D f[v], ..., D^order f[v, ..., v]) for v (K, *x.shape)."""
    return _surfaces(f, x, [v], [(0,) * n for n in range(1, order + 1)])


def mixed_derivatives(f: Callable[[Tensor], Tensor], x: Tensor, directions: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """(f(x), D f[u], D f[v], D^2 f[u, v]) for directions (K, *x.shape), and likewise for three."""
    names = [(0,), (1,), (0, 1)]
    if len(directions) == 3:
        names = [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
    return _surfaces(f, x, directions, names)


def _surfaces(f: Callable, x: Tensor, directions: Sequence[Tensor], names: list[tuple]) -> tuple[Tensor, ...]:
    keep = torch.is_grad_enabled()
    with _grad_mode(), sdpa_kernel(SDPBackend.MATH):  # the only one with a second derivative
        x = _leaf(x, keep)
        rows = [_surface(f, x, vectors, names) for vectors in zip(*directions, strict=True)]
    results = (rows[0][0], *[torch.stack(each) for each in list(zip(*rows, strict=True))[1:]])
    return results if keep else tuple(result.detach() for result in results)


def _surface(f: Callable, x: Tensor, vectors: Sequence[Tensor], names: list[tuple]) -> list[Tensor]:
    steps = [torch.zeros((), dtype=x.dtype, device=x.device, requires_grad=True) for _ in vectors]
    derivatives = {(): f(x + sum(step * vector for step, vector in zip(steps, vectors, strict=True)))}
    for name in names:
        derivatives[name] = _forward(derivatives[name[:-1]], steps[name[-1]], torch.ones_like(steps[0]))
    return list(derivatives.values())


def _forward(value: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """d value / dx times v, inside a graph that is kept."""
    w = torch.zeros_like(value, requires_grad=True)
    if not value.requires_grad:
        return torch.zeros_like(value)
    (pulled,) = torch.autograd.grad(value, x, w, create_graph=True, materialize_grads=True)
    if not pulled.requires_grad:
        return torch.zeros_like(value)
    return torch.autograd.grad(pulled, w, v, create_graph=True, materialize_grads=True)[0]


def _leaf(x: Tensor, keep: bool) -> Tensor:
    """x as something to differentiate by, inside its own graph where that is kept."""
    x = x.clone() if x.is_inference() else x
    return x if keep and x.requires_grad else x.detach().requires_grad_()


def vjp(f: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """(f(x), v' J) by reverse-mode differentiation; shapes as in :func:`jvp`."""
    if v.shape != x.shape:
        check_stack(x, v)
    create_graph = torch.is_grad_enabled()
    with _grad_mode():
        x = _leaf(x, create_graph)
        value = f(x)
        stack = v[None] if v.shape == x.shape else v
        products = [
            torch.autograd.grad(
                value,
                x,
                w,
                retain_graph=create_graph or k + 1 < len(stack),
                create_graph=create_graph,
                materialize_grads=True,
            )[0]
            for k, w in enumerate(stack)
        ]
    product = torch.stack(products).reshape(v.shape)
    return (value, product) if create_graph else (value.detach(), product)


@contextlib.contextmanager
def _grad_mode() -> Iterator[None]:
    with torch.inference_mode(False), torch.enable_grad():
        yield


def check_stack(x: Tensor, v: Tensor) -> None:
    """Raise ValueError unless v is (K, *x.shape)."""
    if v.shape[1:] != x.shape:
        raise ValueError(
            f"v has shape {tuple(v.shape)}; for x of shape {tuple(x.shape)} it must be like x or "
            f"(K, {', '.join(map(str, x.shape))}) for K vectors"
        )
