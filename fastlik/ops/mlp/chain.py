"""A plain MLP, x -> W_out f(... f(W_1 x + shift_1) ...) + shift_out, for the CUDA kernel.

Whatever depends on the time or on the condition alone is a shift of a layer, computed here with PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastlik.ops.dispatch import call_native

from . import reference
from .graph import CONDITION, STATE, TIME
from .grid import GridTable
from .native import Divergence, address
from .program import FUNCTIONS, Program, View
from .recognise import Unrecognised

PRECISIONS = ("fp16", "fp16x2", "fp32")
MAX_DIM, MAX_HIDDEN, WIDTHS = 16, 8, (64, 128)
_ACTIVATIONS = FUNCTIONS[: FUNCTIONS.index("cos")]


@dataclass(frozen=True)
class Chain:
    """weights[l] (outputs, inputs) and shifts[l], what is added (or None); the last is the output's."""

    program: Program
    function: str
    parameter: float
    weights: tuple[Tensor, ...]
    shifts: tuple[View | None, ...]

    @property
    def width(self) -> int:
        """Of the padded hidden layers."""
        widest = max(len(weight) for weight in self.weights[:-1])
        return next(width for width in WIDTHS if width >= widest)


def chain_of(program: Program) -> Chain:
    """``program`` as a chain.

    Raises:
        Unrecognised: it is something else, or too large; the message says what.
    """
    ops = [op for op in program.ops[: program.value_ops] if op.depends & STATE]
    hidden = (len(ops) - 1) // 2
    if [op.code for op in ops] != ["linear", "function"] * hidden + ["linear"] or not hidden:
        raise Unrecognised("the CUDA kernel takes plain chains of layers only")
    if len({(op.function, op.parameter) for op in ops[1::2]}) > 1 or ops[1].function not in _ACTIVATIONS:
        raise Unrecognised("the CUDA kernel takes one activation function for all layers")
    sources = [View(program.input, 0, program.dim), *(op.out for op in ops[:-1])]
    for op, source in zip(ops, sources, strict=True):
        if op.a != source or (op.code == "linear" and op.b is not None and _depends(program, op.b) & STATE):
            raise Unrecognised("the CUDA kernel takes no skip connections")
    weights = tuple(op.weight for op in ops[::2])
    widest = max(len(weight) for weight in weights[:-1])
    if program.dim > MAX_DIM or hidden > MAX_HIDDEN or widest > WIDTHS[-1]:
        raise Unrecognised(
            f"the CUDA kernel takes up to {MAX_DIM} dimensions and {MAX_HIDDEN} x {WIDTHS[-1]} hidden units"
        )
    shifts = tuple(op.b for op in ops[::2])
    if shifts[-1] is not None and _depends(program, shifts[-1]) not in (0, TIME):
        raise Unrecognised("the CUDA kernel takes no output shift that depends on the condition")
    for view in shifts:
        _split(program, view)
    return Chain(program, ops[1].function, ops[1].parameter, weights, shifts)


def _depends(program: Program, view: View) -> int:
    return program.buffers[view.buffer].depends


def _split(program: Program, view: View | None) -> tuple[View | None, View | None]:
    """The parts of a shift that depend on the time and on the condition alone.

    Raises Unrecognised where it is not their sum.
    """
    if view is None:
        return None, None
    depends = _depends(program, view)
    if depends in (0, TIME):
        return view, None
    if depends == CONDITION:
        return None, view
    maker = next(op for op in reversed(program.ops) if op.out.buffer == view.buffer)
    parts = {}
    for part in (maker.a, maker.b) if maker.code == "add" else ():
        if part.width == maker.out.width:
            parts[_depends(program, part)] = View(part.buffer, part.offset + view.offset, view.width)
    if parts.keys() != {TIME, CONDITION}:
        raise Unrecognised("the CUDA kernel takes time and condition as sums only")
    return parts[TIME], parts[CONDITION]


def _padded(x: Tensor, *sizes: int) -> Tensor:
    """``x`` with its last dimensions padded by zeros to ``sizes``."""
    padding = [p for size, now in zip(sizes[::-1], x.shape[::-1], strict=False) for p in (0, size - now)]
    return torch.nn.functional.pad(x, padding)


class PackedChain:
    """A chain's weights on a device, in the order in which the kernel's lanes hold them.

    precision: "fp16" (products of fp16 numbers, summed in fp32), "fp16x2" (both factors split into two
    fp16 numbers: fp32's accuracy), "fp32" (no tensor cores).
    """

    def __init__(self, chain: Chain, device: torch.device, precision: str = "fp16x2") -> None:
        self.chain, self.precision = chain, PRECISIONS.index(precision)
        width, last = chain.width, len(chain.weights) - 1
        self.weights = []
        for layer, weight in enumerate(chain.weights):
            inputs, outputs = (width if layer else MAX_DIM), (width if layer < last else MAX_DIM)
            full = _padded(weight.detach().to(device, torch.float32), outputs, inputs)
            self.weights.append(full.T.contiguous() if precision == "fp32" else self._tiles(full))

    def _tiles(self, weight: Tensor) -> Tensor:
        """(outputs, inputs) -> fp16 by output tile, input tile, lane (g, q), half of the inputs, pair."""
        outputs, inputs = weight.shape
        order = weight.view(outputs // 8, 8, inputs // 16, 2, 4, 2).permute(0, 2, 1, 4, 3, 5).flatten()
        high = order.half()
        if PRECISIONS[self.precision] == "fp16":
            return high
        return torch.cat((high, (order - high.float()).half()))

    def _shifts(self, times: Tensor, conditions: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """time_shift and row_shift of csrc/include/fastlik/mlp_chain.h."""
        chain, width = self.chain, self.chain.width
        program, hidden = chain.program, len(chain.weights) - 1
        widths = {name: program.buffers[buffer].width for name, buffer in program.conditions.items()}
        nothing = {name: times.new_zeros(len(times), size) for name, size in widths.items()}
        at_times = reference.contexts(program, times, nothing)
        parts = [_split(program, view) for view in chain.shifts]
        time_shift = times.new_zeros(len(times), hidden, width)
        for layer, (of_time, _) in enumerate(parts[:-1]):
            if of_time is not None:
                time_shift[:, layer] = _padded(at_times(of_time), width)
        out = times.new_zeros(len(times), MAX_DIM)
        if parts[-1][0] is not None:
            out = _padded(at_times(parts[-1][0]), MAX_DIM)
        table = torch.cat((time_shift.flatten(), out.flatten()))
        if all(of_row is None for _, of_row in parts):
            return table, None
        rows = len(next(iter(conditions.values())))
        at_rows = reference.contexts(program, times.new_zeros(rows), conditions)
        row_shift = times.new_zeros(rows, hidden, width)
        for layer, (_, of_row) in enumerate(parts[:-1]):
            if of_row is not None:
                row_shift[:, layer] = _padded(at_rows(of_row), width)
        return table, row_shift

    def arguments(
        self,
        z: Tensor,
        conditions: dict[str, Tensor],
        table: GridTable,
        divergence: Divergence,
        rows: Tensor,
    ) -> tuple[tuple, tuple[Tensor, ...], list[Tensor]]:
        """The kernel's arguments, its results (see :meth:`integrate_grid`), and what must stay alive."""
        device, dim = z.device, self.chain.program.dim
        z, rows = z.contiguous(), rows.to(device).contiguous()
        times = table.ode.time.to(device, torch.float32)
        time_shift, row_shift = self._shifts(times, conditions)
        columns, quadratures = divergence.columns, table.weight.shape[1]
        results = (
            torch.empty_like(z),
            torch.zeros(len(z), columns, quadratures, dtype=torch.float64, device=device),
            torch.full((len(z),), -1, dtype=torch.int64, device=device),
        )
        grid = (*table.ode[1:], table.stage, table.update, table.weight, table.slot, table.node, table.commit)
        tensors = [time_shift, row_shift, z, rows, *(value.to(device) for value in grid), *results]
        mode = "exact" if divergence.mode == "closed form" else divergence.mode
        sizes = (len(z), dim, self.chain.width, len(self.chain.weights) - 1, self.precision)
        arguments = (
            (*sizes, FUNCTIONS.index(self.chain.function), len(table.u), table.stage.shape[1], quadratures),
            self.chain.parameter,
            tuple(map(address, self.weights)),
            tuple(map(address, tensors)),
            Divergence(**{**vars(divergence), "mode": mode}).arguments,
        )
        return arguments, results, tensors

    def integrate_grid(
        self,
        z: Tensor,
        conditions: dict[str, Tensor],
        table: GridTable,
        divergence: Divergence,
        rows: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As ``Packed.integrate_grid``, for float32 on a CUDA device, Rademacher probes or exact traces."""
        arguments, results, kept = self.arguments(z, conditions, table, divergence, rows)
        call_native("mlp_chain", z, *arguments)
        return results
