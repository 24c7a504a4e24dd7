"""An evaluation of an MLP with its derivatives in C++ that is run backwards later."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastlik.ops.dispatch import native_module

from .native import Packed, address

Pairs = Sequence[Sequence[tuple[int, int]]]
"""For each line of second order the pairs (i, j) of vectors, from 0, of which it sums D^2 F[v_i, v_j]."""


class Tape:
    """What an evaluation left behind: all of its buffers."""

    def __init__(self, packed: Packed, rows: int, tangents: int, second: Pairs) -> None:
        self._packed, self._sizes = packed, (rows, tangents, len(second))
        self._terms = tuple(
            (1 + i, 1 + j, 1 + tangents + line) for line, pairs in enumerate(second) for i, j in pairs
        )
        self._threads = torch.get_num_threads()
        cut = native_module().mlp_tape(packed.handle, rows, tangents + len(second), self._threads)
        self._memory = torch.empty(cut[1] * cut[2], dtype=torch.uint8)
        self._cut = *cut, self._memory.data_ptr()

    @classmethod
    def record(
        cls,
        packed: Packed,
        x: Tensor,
        time: Tensor,
        conditions: dict[str, Tensor],
        vectors: Tensor,
        second: Pairs = (),
    ) -> tuple[Tape, Tensor, Tensor]:
        """(tape, F(x) (B, d), derivatives (K + len(second), B, d)): J v of the vectors v (K, B, d), and then
        those of second order."""
        tape = cls(packed, len(x), len(vectors), second)
        x, vectors, time = x.contiguous(), vectors.contiguous(), time.double().contiguous()
        kept, addresses = packed.conditions(conditions)
        value = torch.empty_like(x)
        derivatives = x.new_empty(len(vectors) + len(second), *x.shape)
        tensors = tuple(map(address, (x, None, time, vectors, value, derivatives)))
        native_module().mlp_record(
            packed.handle, tape._sizes, tensors, addresses, tape._cut, tape._terms, tape._threads
        )
        return tape, value, derivatives

    def reverse(
        self, of_value: Tensor, of_derivatives: Tensor, of_numbers: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The gradients of x (B, d), of the vectors (K, B, d) and, with ``of_numbers``, of the packed numbers
        (N,), from those of :meth:`record`'s results."""
        of_value, of_derivatives = of_value.contiguous(), of_derivatives.contiguous()
        _, tangents, _ = self._sizes
        count = len(self._packed.numbers)
        state, vectors = torch.empty_like(of_value), torch.empty_like(of_derivatives[:tangents])
        numbers = of_value.new_zeros(self._threads, count)
        tensors = tuple(map(address, (of_value, of_derivatives, state, vectors, numbers)))
        native_module().mlp_reverse(
            self._packed.handle,
            (*self._sizes, count),
            tensors,
            self._cut,
            self._terms,
            of_numbers,
            self._threads,
        )
        return state, vectors, numbers.sum(0) if of_numbers else None
