"""An MLP's value and tangents with gradients by its inputs and parameters, both ways in C++."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from fastlik.ops.dispatch import native_module

from .native import Packed, address
from .recognise import Unrecognised, recognise

# as the kernels' tiles: all tangents of a row go together
MAX_TANGENTS = 47


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
        self, x: Tensor, time: Tensor, conditions: dict[str, Tensor], vectors: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(F(x) (B, d), J v (K, B, d)) for vectors (K, B, d), K at most MAX_TANGENTS; all in one dtype.

        Differentiable once, by x, vectors and the network's parameters.
        """
        return _Evaluation.apply(self, x, time, conditions, vectors, *self.leaves)

    def pack(self) -> None:
        """The numbers as the network has them now."""
        weights = tuple((w.data_ptr(), *w.stride()) for w in self._weights)
        constants = tuple((c.data_ptr(), *c.stride(), 0) for c in self._constants)
        native_module().mlp_pack(self.packed.handle, weights, constants)

    def follows(self) -> bool:
        """Whether the network's tensors are where they were, and require what they did."""
        return self._places == _places(self._tensors)

    def gradients(self, numbers: Tensor) -> list[Tensor | None]:
        """Of the leaves, from those of the packed numbers (N,); None of those that are not used."""
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
        *leaves: Tensor,
    ) -> tuple[Tensor, Tensor]:
        trainable.pack()
        x, vectors, threads = x.contiguous(), vectors.contiguous(), torch.get_num_threads()
        native, packed, sizes = native_module(), trainable.packed, (len(x), len(vectors))
        kept, addresses = packed.conditions(conditions)
        rows, tiles, size = native.mlp_tape(packed.handle, *sizes, threads)
        tape = torch.empty(tiles * size, dtype=torch.uint8)
        value, products, time = torch.empty_like(x), torch.empty_like(vectors), time.double().contiguous()
        ctx.cut = rows, tiles, size, tape.data_ptr()
        tensors = (x, None, time, vectors, value, products)
        native.mlp_record(packed.handle, sizes, tuple(map(address, tensors)), addresses, ctx.cut, threads)
        ctx.trainable, ctx.tape, ctx.threads = trainable, tape, threads
        ctx.versions = [leaf._version for leaf in leaves]
        return value, products

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, of_value: Tensor, of_products: Tensor) -> tuple[Tensor | None, ...]:
        trainable, of_weights = ctx.trainable, any(ctx.needs_input_grad[5:])
        if ctx.versions != [leaf._version for leaf in trainable.leaves]:
            raise RuntimeError("a parameter was changed between the evaluation and its backward pass")
        of_value, of_products = of_value.contiguous(), of_products.contiguous()
        state, vectors = torch.empty_like(of_value), torch.empty_like(of_products)
        count = len(trainable.packed.numbers)
        numbers = of_value.new_zeros(ctx.threads, count)
        tensors = (of_value, of_products, state, vectors, numbers)
        native_module().mlp_reverse(
            trainable.packed.handle,
            (len(of_value), len(of_products), count),
            tuple(map(address, tensors)),
            ctx.cut,
            of_weights,
            ctx.threads,
        )
        leaves = trainable.gradients(numbers.sum(0)) if of_weights else [None] * len(trainable.leaves)
        return None, state, None, None, vectors, *leaves
