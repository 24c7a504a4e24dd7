"""Jacobian products of a batched function f: (B, *event) -> (B, *event), rows independent.

Plain PyTorch autograd, forward and reverse mode.  Gradients flow through the results where grad mode is
enabled, and nothing is stored where it is not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def jvp(f: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """(f(x), J v) by forward-mode differentiation, J = df/dx of each row.

    x: (B, *event).  v: like x, or (K, *x.shape) for K tangents that share one primal evaluation; J v has
    the shape of v.

    Raises ValueError where v does not fit x.
    """
    if v.shape == x.shape:
        return torch.func.jvp(f, (x,), (v,))
    _check_stack(x, v)
    return torch.func.vmap(lambda w: torch.func.jvp(f, (x,), (w,)), out_dims=(None, 0))(v)


def vjp(f: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """(f(x), v' J) by reverse-mode differentiation; shapes as in :func:`jvp`."""
    if v.shape != x.shape:
        _check_stack(x, v)
    create_graph = torch.is_grad_enabled()
    with _grad_mode():
        if torch.is_inference(x):
            x = x.clone()
        if not (create_graph and x.requires_grad):
            x = x.detach().requires_grad_()
        value = f(x)
        stack = v.reshape(-1, *x.shape)
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


def _check_stack(x: Tensor, v: Tensor) -> None:
    if v.shape[1:] != x.shape:
        raise ValueError(
            f"v has shape {tuple(v.shape)}; for x of shape {tuple(x.shape)} it must be like x or "
            f"(K, {', '.join(map(str, x.shape))}) for K vectors"
        )
