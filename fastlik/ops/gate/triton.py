"""Triton kernels of the jet of a product f(a) b: over rows, which may be parts of longer ones."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from fastlik.ops.activation.triton import derivatives
from fastlik.ops.differentiable import Fused
from fastlik.ops.memory import empty_jet, in_rows, ordered_as

from . import reference

BLOCK, WARPS = 1024, 4


@triton.jit
def _place(rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    blocks = tl.cdiv(width, COLUMNS)
    row = (tl.program_id(0) // blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = (tl.program_id(0) % blocks).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return row, column, (row < rows) & (column < width)


@triton.jit
def _load(pointer, inside):
    return tl.load(pointer, inside, 0.0).to(tl.float32)


@triton.jit
def _store(pointer, values, inside):
    tl.store(pointer, values.to(pointer.dtype.element_ty), inside)


@triton.jit
def forward_kernel(
    a, b, a1, b1, a2, b2, y, y1, y2, rows, width, count,
    a_row, b_row, a1_row, b1_row, a2_row, b2_row, a1_part, b1_part, a2_part, b2_part,
    FUNCTION: tl.constexpr, SECOND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """SECOND: as in the kernel of activations."""
    row, column, inside = _place(rows, width, ROWS, COLUMNS)
    f0, f1, f2, f3 = derivatives(_load(a + row * a_row + column, inside), 1.0, FUNCTION)
    factor = _load(b + row * b_row + column, inside)
    out, size = row * width + column, rows.to(tl.int64) * width
    _store(y + out, f0 * factor, inside)
    a1, b1, y1 = a1 + row * a1_row + column, b1 + row * b1_row + column, y1 + out
    a2, b2, y2 = a2 + row * a2_row + column, b2 + row * b2_row + column, y2 + out
    total = tl.zeros_like(factor)
    for _ in range(count):
        t, u = _load(a1, inside), _load(b1, inside)
        _store(y1, f1 * t * factor + f0 * u, inside)
        bend = f2 * t * t * factor + 2 * f1 * t * u
        if SECOND == "along":
            bend += f1 * _load(a2, inside) * factor + f0 * _load(b2, inside)
            _store(y2, bend, inside)
            a2 += a2_part
            b2 += b2_part
            y2 += size
        if SECOND == "sum":
            total += bend
        a1 += a1_part
        b1 += b1_part
        y1 += size
    if SECOND == "sum":
        _store(y2, total + f1 * _load(a2, inside) * factor + f0 * _load(b2, inside), inside)


@triton.jit
def backward_kernel(
    a, b, a1, b1, a2, b2, g, g1, g2, ga, gb, ga1, gb1, ga2, gb2, rows, width, count,
    a_row, b_row, a1_row, b1_row, a2_row, b2_row, a1_part, b1_part, a2_part, b2_part,
    FUNCTION: tl.constexpr, SECOND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row, column, inside = _place(rows, width, ROWS, COLUMNS)
    f0, f1, f2, f3 = derivatives(_load(a + row * a_row + column, inside), 1.0, FUNCTION)
    factor = _load(b + row * b_row + column, inside)
    out, size = row * width + column, rows.to(tl.int64) * width
    h = _load(g + out, inside)
    of_a, of_b = h * f1 * factor, h * f0
    a1, b1, g1 = a1 + row * a1_row + column, b1 + row * b1_row + column, g1 + out
    a2, b2, g2 = a2 + row * a2_row + column, b2 + row * b2_row + column, g2 + out
    ga1, gb1, ga2, gb2 = ga1 + out, gb1 + out, ga2 + out, gb2 + out
    h2 = tl.zeros_like(factor)
    if SECOND == "sum":
        h2 = _load(g2, inside)
        s = _load(a2, inside)
        of_a += h2 * (f2 * s * factor + f1 * _load(b2, inside))
        of_b += h2 * f1 * s
        _store(ga2, h2 * f1 * factor, inside)
        _store(gb2, h2 * f0, inside)
    for _ in range(count):
        t, u, h1 = _load(a1, inside), _load(b1, inside), _load(g1, inside)
        if SECOND == "along":
            h2 = _load(g2, inside)
            s = _load(a2, inside)
            of_a += h2 * (f2 * s * factor + f1 * _load(b2, inside))
            of_b += h2 * f1 * s
            _store(ga2, h2 * f1 * factor, inside)
            _store(gb2, h2 * f0, inside)
            a2 += a2_part
            b2 += b2_part
            g2 += size
            ga2 += size
            gb2 += size
        of_a += h1 * (f2 * t * factor + f1 * u) + h2 * t * (f3 * t * factor + 2 * f2 * u)
        of_b += h1 * f1 * t + h2 * f2 * t * t
        _store(ga1, h1 * f1 * factor + 2 * h2 * (f2 * t * factor + f1 * u), inside)
        _store(gb1, h1 * f0 + 2 * h2 * f1 * t, inside)
        a1 += a1_part
        b1 += b1_part
        g1 += size
        ga1 += size
        gb1 += size
    _store(ga + out, of_a, inside)
    _store(gb + out, of_b, inside)


def _filled(jets: Sequence[Tensor | None]) -> list[Tensor]:
    """a, b and their derivatives; first ones stand for second ones that there are not."""
    a, b, a1, b1, a2, b2 = jets
    return [a, b, a1, b1, a1 if a2 is None else a2, b1 if b2 is None else b2]


def _launch(
    jets: Sequence[Tensor | None], function: str
) -> tuple[tuple[int], tuple[int, ...], dict[str, object]]:
    """The grid, the sizes and the constants of a kernel."""
    a, b, *parts = _filled(jets)
    rows, width, strides = in_rows(a, b, *(part[0] for part in parts))
    columns = min(BLOCK, triton.next_power_of_2(width))
    block = BLOCK // columns
    second = jets[4]
    kind = "none" if second is None else "along" if len(second) == len(parts[0]) else "sum"
    sizes = (rows, width, len(parts[0]), *strides, *(part.stride(0) for part in parts))
    options = {
        "FUNCTION": function,
        "SECOND": kind,
        "ROWS": block,
        "COLUMNS": columns,
        "num_warps": WARPS,
        "enable_fp_fusion": True,
    }
    return (triton.cdiv(rows, block) * triton.cdiv(width, columns),), sizes, options


def allocate(
    a: Tensor, b: Tensor, a1: Tensor, b1: Tensor, a2: Tensor | None, *others: object, together: bool
) -> list[Tensor]:
    return empty_jet(a, [len(each) for each in (a1, a2) if each is not None], together)


def forward(results: list[Tensor], *args: object) -> None:
    *jets, function = args
    y, y1, *y2 = results
    grid, sizes, options = _launch(jets, function)
    forward_kernel[grid](*_filled(jets), y, y1, *(y2 or [y1]), *sizes, **options)


def backward(
    gradients: list[Tensor], grads: Sequence[Tensor], results: Sequence[Tensor], *args: object
) -> None:
    *jets, function = args
    g = ordered_as(results[0], grads[0][None])[0]
    g1, *g2 = (ordered_as(results[0], grad) for grad in grads[1:])
    grid, sizes, options = _launch(jets, function)
    # without second derivatives their gradients are not written
    outputs = gradients if len(gradients) == 6 else (*gradients, *gradients[2:])
    backward_kernel[grid](*_filled(jets), g, g1, *(g2 or [g1]), *outputs, *sizes, **options)


FUSED = Fused(
    "gate",
    "Tensor a, Tensor b, Tensor a1, Tensor b1, Tensor? a2, Tensor? b2, str function",
    reference.gate,
    allocate,
    forward,
    backward,
)
