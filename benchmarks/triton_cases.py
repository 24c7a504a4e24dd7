"""Calls of the fused operations as networks make them, on tensors without storage: dtype -> None."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastlik.ops.activation.triton import FUSED as ACTIVATION
from fastlik.ops.attention.triton import FUSED as ATTENTION
from fastlik.ops.differentiable import Fused
from fastlik.ops.hutchinson.triton import FUSED as HUTCHINSON
from fastlik.ops.memory import empty_like_order
from fastlik.ops.normalisation.triton import FUSED as NORMALISATION

DTYPES = (torch.bfloat16, torch.float32)  # float16 is compiled as bfloat16 is
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


def _normalisation(layout: str, function: str, kind: str, *shape: int, groups: int = 32) -> Case:
    """A norm with scale and shift: "nchw", "nhwc" or "tokens"."""

    def call(dtype: torch.dtype) -> None:
        x, first = empty(*shape, dtype=dtype), empty(2, *shape, dtype=dtype)
        if layout == "nhwc":
            x = x.to(memory_format=torch.channels_last)
            first = empty_like_order(x, 2)
        second = {"none": None, "along": first, "sum": first[:1]}[kind]
        rows, results = 1 if layout == "tokens" else len(x), 2 if second is None else 3
        scale = empty(rows, shape[1], dtype=dtype)
        _both_ways(
            NORMALISATION, results, x, first, second, scale, scale, groups, 1e-5, layout != "rms", function
        )

    return call


def _attention(size: int, count: int, mask: str = "none") -> Case:
    def call(dtype: torch.dtype) -> None:
        if dtype == torch.float32 and size > 64:
            return  # refused
        x, v = empty(2, 8, 1024, size, dtype=dtype), empty(count, 2, 8, 1024, size, dtype=dtype)
        kinds = {"bool": torch.bool, "sum": dtype}
        given = empty(2, 8, 1024, 1024, dtype=kinds[mask]) if mask in kinds else None
        _both_ways(ATTENTION, 2, x, x, x, v, v, v, given, mask == "causal", 0.125)

    return call


def _hutchinson(dtype: torch.dtype) -> None:
    jv, rows = empty(2, 64, 3072, dtype=dtype), empty(64, dtype=torch.int64)
    _both_ways(HUTCHINSON, 1, jv, rows, rows, 0, 0, 1)


CASES: dict[str, dict[str, Case]] = {
    "activation": {
        f"{function} {kind}": _activation(function, kind)
        for function, kind in [("silu", "none"), ("sin", "along")]
    },
    "normalisation": {
        f"{layout} {function} {kind} {shape[1]} {shape[2:]}": _normalisation(
            layout, function, kind, *shape, groups=groups
        )
        for layout, function, kind, shape, groups in [
            ("nhwc", "silu", "none", (4, 128, 32, 32), 32),
            ("nchw", "silu", "along", (4, 512, 32, 32), 32),  # the largest
            ("tokens", "identity", "none", (512, 1152), 1),
        ]
    },
    "attention": {
        f"head {size} tangents {count} mask {mask}": _attention(size, count, mask)
        for size, count, mask in [(64, 1, "none"), (128, 2, "sum")]
    },
    "hutchinson": {"products": _hutchinson},
}
