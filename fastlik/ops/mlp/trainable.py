"""An MLP's value and derivatives with gradients by its inputs and parameters, both ways in C++."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from fastlik.ops.dispatch import native_module

from .native import Packed
from .recognise import Unrecognised, recognise
from .tape import Pairs, Tape

# as the kernels' tiles: all lines of a row go together
MAX_LINES = 47
"""Vectors and second derivatives at most."""


@dataclass(frozen=True)
class _Part:
    """A tensor of the program as a part of parameter ``leaf``: where it begins, and its strides."""

    leaf: int
    offset: int


class Trainable:
    """A network's program on the network's own tensors, packed anew at each call.

    ``tensors`` are all that the network has.  With ``gradients``, those that require some get them.  A change
    of their values is followed, for :meth:`follows` says whether they are where they were; one of anything
    else is not noticed.

    Raises:
        Unrecognised: the kernels cannot run the network, or its weights are computed from its parameters.
    """

    def __init__(
        self,
        f: Callable[..., Tensor],
        dim: int,
        conditions: dict[str, int],
        times: Tensor,
        dtype: torch.dtype,
        tensors: list[Tensor],
        *,
        gradients: bool = True,
    ) -> None:
        self.program = recognise(f, dim, conditions, times, dtype, torch.device("cpu"), live=True)
        self.dtype = dtype
        self._tensors, self._places = tensors, _places(tensors)
        self.leaves = [tensor for tensor in tensors if gradients and tensor.requires_grad]
        self.packed = Packed(self.program, dtype, transposed=True)
        weights = (op.weight for op in self.program.ops if op.weight is not None)
        constants = (buffer.constant for buffer in self.program.buffers if buffer.constant is not None)
        self._weights, self._constants = list(map(self._own, weights)), list(map(self._own, constants))
        # what depends on parameters, with where its gradients are found: offset, rows, and length of a row
        self._parts: list[tuple[Tensor, _Part, tuple[int, int, int]]] = []
        for tensor, place in zip((*self._weights, *self._constants), self.packed.places, strict=True):
            part = self._part(tensor) if gradients else None
            if part is not None:
                self._parts.append((tensor, part, place))

    def __call__(
        self,
        x: Tensor,
        time: Tensor,
        conditions: dict[str, Tensor],
        vectors: Tensor,
        second: Pairs = (),
    ) -> tuple[Tensor, Tensor]:
        """(F(x) (B, d), derivatives (K + len(second), B, d)), all in one dtype.

        The derivatives are J v for the vectors v (K, B, d), and then for each of ``second`` the sum of
        D^2 F[v_i, v_j] over its pairs (i, j): MAX_LINES at most.  Differentiable once, by x, vectors and the
        network's parameters.
        """
        return _Evaluation.apply(self, x, time, conditions, vectors, second, *self.leaves)

    def pulled(
        self, x: Tensor, time: Tensor, conditions: dict[str, Tensor], vectors: Tensor, cotangents: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(F(x) (B, d), J v (K, B, d), gradient (B, d)) for vectors v and cotangents c (K, B, d).

        The gradient is that of the sum over k of <c_k, J v_k> by x.  Differentiable once, by x, vectors,
        cotangents and the network's parameters; the backward pass has 1 + 2 K lines, MAX_LINES at most.
        """
        return _Pulled.apply(self, x, time, conditions, vectors, cotangents, *self.leaves)

    def pack(self) -> None:
        """The numbers as the network has them now."""
        weights = tuple((w.data_ptr(), *w.stride()) for w in self._weights)
        constants = tuple((c.data_ptr(), *c.stride(), 0) for c in self._constants)
        native_module().mlp_pack(self.packed.handle, weights, constants)

    def follows(self) -> bool:
        """Whether the network's tensors are where they were, and require what they did."""
        return self._places == _places(self._tensors)

    def versions(self) -> list[int]:
        """Of the leaves' values."""
        return [leaf._version for leaf in self.leaves]

    def gradients(self, numbers: Tensor | None) -> list[Tensor | None]:
        """Of the leaves, from those of the packed numbers (N,); None of those that are not used."""
        if numbers is None:
            return [None] * len(self.leaves)
        used = {part.leaf for _, part, _ in self._parts}
        found = [torch.zeros_like(leaf) if n in used else None for n, leaf in enumerate(self.leaves)]
        for tensor, part, (offset, rows, row) in self._parts:
            block = numbers[offset : offset + rows * row].view(rows, row)[:, : len(tensor)]
            gradient = block.T if tensor.dim() == 2 else block[0]
            found[part.leaf].as_strided(tensor.shape, tensor.stride(), part.offset).add_(gradient)
        return found

    def _own(self, tensor: Tensor) -> Tensor:
        """``tensor`` in the kernels' precision: itself, or a copy of what is no parameter."""
        if tensor.dtype != self.dtype and tensor.requires_grad:
            raise Unrecognised("a parameter has another precision than x")
        return tensor.to(self.dtype)

    def _part(self, tensor: Tensor) -> _Part | None:
        """Where ``tensor`` lies in a parameter; None where it does not depend on any."""
        if not tensor.requires_grad:
            return None
        reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        for number, leaf in enumerate(self.leaves):
            offset = tensor.storage_offset() - leaf.storage_offset()
            shared = leaf.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
            if shared and 0 <= offset <= offset + reach < leaf.numel():
                return _Part(number, offset)
        raise Unrecognised("a weight is computed from parameters")


def _places(tensors: list[Tensor]) -> list[tuple]:
    return [(each.data_ptr(), each.shape, each.stride(), each.requires_grad) for each in tensors]


class _Evaluation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        trainable: Trainable,
        x: Tensor,
        time: Tensor,
        conditions: dict[str, Tensor],
        vectors: Tensor,
        second: Pairs,
        *leaves: Tensor,
    ) -> tuple[Tensor, Tensor]:
        trainable.pack()
        ctx.tape, *results = Tape.record(trainable.packed, x, time, conditions, vectors, second)
        ctx.trainable, ctx.versions = trainable, trainable.versions()
        return tuple(results)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, of_value: Tensor, of_derivatives: Tensor) -> tuple[Tensor | None, ...]:
        _check_unchanged(ctx)
        state, vectors, numbers = ctx.tape.reverse(of_value, of_derivatives, any(ctx.needs_input_grad[6:]))
        return None, state, None, None, vectors, None, *ctx.trainable.gradients(numbers)


class _Pulled(torch.autograd.Function):
    """Forward a reverse pass.  With G the gradient that comes for its result, <G, grad <c, J v>> is
    <c, D^2 F[G, v]>: backward evaluates that and runs it backwards."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        trainable: Trainable,
        x: Tensor,
        time: Tensor,
        conditions: dict[str, Tensor],
        vectors: Tensor,
        cotangents: Tensor,
        *leaves: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        trainable.pack()
        tape, value, products = Tape.record(trainable.packed, x, time, conditions, vectors)
        gradient, _, _ = tape.reverse(torch.zeros_like(value), cotangents, False)
        ctx.save_for_backward(x, time, vectors, cotangents)
        ctx.trainable, ctx.versions, ctx.conditions = trainable, trainable.versions(), conditions
        return value, products, gradient

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, of_value: Tensor, of_products: Tensor, of_gradient: Tensor
    ) -> tuple[Tensor | None, ...]:
        _check_unchanged(ctx)
        x, time, vectors, cotangents = ctx.saved_tensors
        moved = torch.cat((of_gradient[None], vectors))
        mixed = [[(0, 1 + k)] for k in range(len(vectors))]
        tape, _, derivatives = Tape.record(ctx.trainable.packed, x, time, ctx.conditions, moved, mixed)
        seeds = torch.cat((torch.zeros_like(x)[None], of_products, cotangents))
        state, lines, numbers = tape.reverse(of_value, seeds, any(ctx.needs_input_grad[6:]))
        curvatures = derivatives[len(moved) :]
        return None, state, None, None, lines[1:], curvatures, *ctx.trainable.gradients(numbers)


def _check_unchanged(ctx: FunctionCtx) -> None:
    if ctx.versions != ctx.trainable.versions():
        raise RuntimeError("a parameter was changed between the evaluation and its backward pass")
