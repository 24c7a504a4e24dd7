"""Fused operations with gradients, that torch.compile takes as single nodes.

A fused operation computes a jet: primal and tangents are ordinary tensors, so that its first-order backward
is all that training needs.  Where that backward is itself differentiated, the reference takes its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Results = list[Tensor]


class Fused:
    """An operation f(*args) -> tensors, of which some arguments are tensors, made of kernels.

    Args:
        name: in torch.ops.fastlik.
        arguments: the arguments as in an ATen schema, without parentheses.
        reference: f(*args) in plain PyTorch: the results that callers see.
        allocate: (*args, together=) -> tensors for the results, and for what the backward pass wants to keep
            besides; ``together``: parts of one stack (1 + ..., *shape), where the results are a jet.
        forward: (results, *args) -> None, fills them.
        backward: (gradients, grads, results, *args) -> None, fills ``gradients``, one for every argument of
            floating-point numbers, from ``grads``, one for every result of ``reference``.
        has_backward: (*args) -> whether ``backward`` takes them; the reference does where it does not.
    """

    def __init__(
        self,
        name: str,
        arguments: str,
        reference: Callable[..., Sequence[Tensor]],
        allocate: Callable[..., Results],
        forward: Callable[..., None],
        backward: Callable[..., None],
        has_backward: Callable[..., bool] = lambda *args: True,
    ) -> None:
        self.reference = reference
        self.allocate = allocate
        self.forward = forward
        self.backward = backward
        self.has_backward = has_backward
        self.operator, self.backward_operator = _register(self, name, arguments)

    def __call__(self, *args: object) -> Results:
        """The results, and what was kept for the backward pass."""
        if torch.compiler.is_compiling():
            return self.operator(*args)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in _leaves(args)):
            return list(_Function.apply(self, *args))
        return self.run(*args, together=True)

    def run(self, *args: object, together: bool = False) -> Results:
        results = self.allocate(*args, together=together)
        if results[0].numel():
            self.forward(results, *args)
        return results

    def run_backward(self, grads: Sequence[Tensor], results: Sequence[Tensor], *args: object) -> Results:
        if not results[0].numel() or not self.has_backward(*args):
            return self.by_reference(grads, args)
        gradients = _gradients(args)
        self.backward(gradients, grads, results, *args)
        return gradients

    def by_reference(self, grads: Sequence[Tensor], args: Sequence[object]) -> Results:
        """The gradients by autograd, themselves differentiable where the arguments are."""
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            if not again:
                args = [a.detach().requires_grad_() if _has_gradient(a) else a for a in args]
            # results of their own, not those of the kernel: they lead to the arguments
            inputs = [a.view_as(a) if _has_gradient(a) else a for a in args]
            leaves = [a if a.requires_grad else a.requires_grad_() for a in _leaves(inputs)]
            outputs = self.reference(*inputs)
            gradients = torch.autograd.grad(
                outputs, leaves, grads[: len(outputs)], create_graph=again, materialize_grads=True
            )
        return [g.to(leaf.dtype) for g, leaf in zip(gradients, leaves, strict=True)]


def _has_gradient(a: object) -> bool:
    return isinstance(a, Tensor) and a.is_floating_point()


def _leaves(args: Sequence[object]) -> Results:
    """The tensors that have gradients."""
    return [a for a in args if _has_gradient(a)]


def _gradients(args: Sequence[object]) -> Results:
    """A dense tensor, unset, for every gradient, in its argument's order of memory."""
    return [torch.empty_like(tensor) for tensor in _leaves(args)]


def _spread(gradients: Results, args: Sequence[object]) -> tuple[Tensor | None, ...]:
    """One gradient an argument, None for those that have none."""
    supply = iter(gradients)
    return tuple(next(supply) if _has_gradient(a) else None for a in args)


def _restored(tensors: Sequence[Tensor], args: Sequence[object]) -> list[object]:
    supply = iter(tensors)
    return [next(supply) if a is Tensor else a for a in args]


def _keep(ctx: object, args: Sequence[object], results: Sequence[Tensor]) -> None:
    """Save arguments, and the results beyond what the reference has."""
    ctx.save_for_backward(*(a for a in args if isinstance(a, Tensor)), *results)
    ctx.args = [Tensor if isinstance(a, Tensor) else a for a in args]


def _kept(ctx: object) -> tuple[list[object], Results]:
    count = sum(a is Tensor for a in ctx.args)
    saved = list(ctx.saved_tensors)
    return _restored(saved[:count], ctx.args), saved[count:]


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, op: Fused, *args: object) -> tuple[Tensor, ...]:
        results = op.run(*args)
        ctx.op = op
        _keep(ctx, args, results)
        return tuple(results)

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> tuple[Tensor | None, ...]:
        args, results = _kept(ctx)
        if torch.is_grad_enabled():
            gradients = ctx.op.by_reference(grads, args)
        else:
            gradients = ctx.op.run_backward(grads, results, *args)
        return None, *_spread(gradients, args)


def _register(op: Fused, name: str, arguments: str) -> tuple[Callable, Callable]:
    """The operation and its backward pass in torch.ops.fastlik."""

    def keep(ctx: object, inputs: tuple, output: Results) -> None:
        _keep(ctx, inputs, output)

    def backward(ctx: object, grads: Results) -> tuple[Tensor | None, ...]:
        args, results = _kept(ctx)
        grads = [torch.zeros_like(r) if g is None else g for g, r in zip(grads, results, strict=True)]
        return _spread(operator_backward(grads, results, *args), args)

    operator = torch.library.custom_op(
        f"fastlik::{name}", op.run, mutates_args=(), schema=f"({arguments}) -> Tensor[]"
    )
    operator_backward = torch.library.custom_op(
        f"fastlik::{name}_backward",
        op.run_backward,
        mutates_args=(),
        schema=f"(Tensor[] grads, Tensor[] results, {arguments}) -> Tensor[]",
    )
    operator.register_fake(lambda *args: op.allocate(*args, together=False))
    operator_backward.register_fake(lambda grads, results, *args: _gradients(args))
    operator.register_autograd(backward, setup_context=keep)
    return operator, operator_backward
