"""Calls of the fused operations as networks make them, on tensors without storage: dtype -> None."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastlik.ops.activation import FUNCTIONS
from fastlik.ops.activation.triton import FUSED as ACTIVATION
from fastlik.ops.attention.triton import FUSED as ATTENTION
from fastlik.ops.differentiable import Fused
from fastlik.ops.gate.triton import FUSED as GATE
from fastlik.ops.hutchinson.triton import FUSED as HUTCHINSON
from fastlik.ops.memory import empty_like_order
from fastlik.ops.normalisation.triton import FUSED as NORMALISATION
from fastlik.ops.residual.triton import FUSED as RESIDUAL

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


def _gate(function: str, kind: str, *shape: int) -> Case:
    """Halves of the last dimension."""

    def call(dtype: torch.dtype) -> None:
        stack = empty(5, *shape, dtype=dtype)
        a, b = stack.chunk(2, -1)
        seconds = {"none": (None, None), "along": (a[3:], b[3:]), "sum": (a[3:4], b[3:4])}[kind]
        _both_ways(GATE, 3, a[0], b[0], a[1:3], b[1:3], *seconds, function)

    return call


def _attention(size: int, count: int, kind: str, mask: str = "none") -> Case:
    def call(dtype: torch.dtype) -> None:
        if dtype == torch.float32 and size > 64:
            return  # refused
        x, v = empty(2, 8, 1024, size, dtype=dtype), empty(count, 2, 8, 1024, size, dtype=dtype)
        second = {"none": None, "along": v, "sum": v[:1]}[kind]
        kinds = {"bool": torch.bool, "sum": dtype}
        given = empty(2, 8, 1024, 1024, dtype=kinds[mask]) if mask in kinds else None
        tensors = (x, x, x, v, v, v, second, second, second)
        _both_ways(ATTENTION, 2 if second is None else 3, *tensors, given, mask == "causal", 0.125)

    return call


def _residual(dtype: torch.dtype) -> None:
    x = empty(3, 4, 64, 16, 16, dtype=dtype)
    _both_ways(RESIDUAL, 1, x, x, 0.7)


def _hutchinson(dtype: torch.dtype) -> None:
    jv, rows = empty(2, 64, 3072, dtype=dtype), empty(64, dtype=torch.int64)
    _both_ways(HUTCHINSON, 1, jv, rows, rows, 0, 0, 1)


CASES: dict[str, dict[str, Case]] = {
    "activation": {
        f"{function} {kind}": _activation(function, kind)
        for function, kind in [
            *((function, "along") for function in FUNCTIONS),
            *(("silu", kind) for kind in ("none", "sum")),
        ]
    },
    "gate": {
        f"{function} {kind} {shape[-1]}": _gate(function, kind, *shape)
        for function, kind, shape in [
            ("silu", "none", (2, 256, 8192)),
            ("silu", "along", (2, 256, 8192)),
            ("gelu", "sum", (2, 256, 8192)),
            ("identity", "none", (2, 256, 96)),
        ]
    },
    "normalisation": {
        f"{layout} {function} {kind} {shape[1]} {shape[2:]}": _normalisation(
            layout, function, kind, *shape, groups=groups
        )
        for layout, function, kind, shape, groups in [
            ("nhwc", "silu", "none", (4, 128, 32, 32), 32),
            ("nhwc", "silu", "sum", (4, 256, 16, 16), 32),
            ("nhwc", "silu", "none", (4, 96, 8, 8), 32),
            ("nchw", "silu", "none", (4, 256, 32, 32), 32),
            ("nchw", "silu", "along", (4, 256, 32, 32), 32),
            ("nchw", "identity", "none", (4, 64, 4, 4), 8),
            ("nhwc", "silu", "sum", (4, 128, 256, 256), 32),  # read twice
            ("nchw", "silu", "along", (4, 512, 32, 32), 32),
            ("tokens", "identity", "none", (512, 1152), 1),
            ("tokens", "identity", "sum", (512, 768), 1),
            ("rms", "identity", "none", (512, 4096), 1),
        ]
    },
    "attention": {
        f"head {size} tangents {count} {kind} mask {mask}": _attention(size, count, kind, mask)
        for size, count, kind, mask in [
            (32, 1, "none", "none"),
            (64, 1, "none", "none"),
            (64, 2, "none", "none"),
            (64, 1, "none", "causal"),
            (64, 1, "none", "bool"),
            (128, 2, "none", "sum"),
            (32, 1, "along", "none"),
            (64, 1, "along", "causal"),
            (64, 2, "sum", "none"),
            (128, 2, "sum", "none"),
        ]
    },
    "residual": {"sum": _residual},
    "hutchinson": {"products": _hutchinson},
}
