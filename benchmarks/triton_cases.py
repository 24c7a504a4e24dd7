"""Calls of the fused operations as networks make them, on tensors without storage: dtype -> None."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from fastlik.ops.activation import FUNCTIONS
from fastlik.ops.activation.triton import FUSED as ACTIVATION
from fastlik.ops.differentiable import Fused

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
Case = Callable[[torch.dtype], None]


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def _both_ways(op: Fused, results: int, *args: object) -> None:
    """Forward and backward; ``results``: how many of the outputs callers see."""
    outputs = op.run(*args)
    op.run_backward(outputs[:results], outputs, *args)


def _activation(function: str, kind: str) -> Case:
    def call(dtype: torch.dtype) -> None:
        x, first = empty(4, 64, 16, 16, dtype=dtype), empty(2, 4, 64, 16, 16, dtype=dtype)
        second = {"none": None, "along": first, "sum": first[:1]}[kind]
        _both_ways(ACTIVATION, 3, x, first, second, None, function, 1.0, 1)

    return call


CASES: dict[str, dict[str, Case]] = {
    "activation": {
        # "along" holds everything that the others do
        f"{function} {kind}": _activation(function, kind)
        for function, kind in [("silu", "none"), ("silu", "sum"), *product(FUNCTIONS, ("along",))]
    },
}
