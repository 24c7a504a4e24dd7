"""A plain MLP, x -> W_out f(... f(W_1 x + shift_1) ...) + shift_out, for the CUDA kernels.

Whatever depends on the time or on the condition alone is a shift of a layer, computed here with PyTorch: for
the condition row by row, for the time as a function of the solver's clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from fastlik.ops.dispatch import call_native, native_module

from . import reference
from .clock import ClockTable, tabulate
from .graph import CONDITION, STATE, TIME
from .grid import GridTable, Ode
from .native import Divergence, Packed, address
from .program import FUNCTIONS, Program, View
from .recognise import Unrecognised

PRECISIONS = ("fp16", "fp16x2", "fp32")
MAX_DIM, MAX_HIDDEN, MAX_WIDTH = 256, 8, 512
# polynomials of the clock: their largest error, in units of the largest shift
_COEFFICIENTS, _ACCURACY = 4, 1e-7
_SAMPLES = 8  # of a warp
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
        return _multiple(max(len(weight) for weight in self.weights[:-1]), 32)

    @property
    def outputs(self) -> int:
        """Of the padded output."""
        return _multiple(self.program.dim, 32)


def chain_of(program: Program) -> Chain:
    """``program`` as a chain.

    Raises:
        Unrecognised: it is something else, or too large; the message says what.
    """
    ops = [op for op in program.ops[: program.value_ops] if op.depends & STATE]
    hidden = (len(ops) - 1) // 2
    if [op.code for op in ops] != ["linear", "function"] * hidden + ["linear"] or not hidden:
        raise Unrecognised("the CUDA kernels take plain chains of layers only")
    if len({(op.function, op.parameter) for op in ops[1::2]}) > 1 or ops[1].function not in _ACTIVATIONS:
        raise Unrecognised("the CUDA kernels take one activation function for all layers")
    sources = [View(program.input, 0, program.dim), *(op.out for op in ops[:-1])]
    for op, source in zip(ops, sources, strict=True):
        if op.a != source or (op.code == "linear" and op.b is not None and _depends(program, op.b) & STATE):
            raise Unrecognised("the CUDA kernels take no skip connections")
    weights = tuple(op.weight for op in ops[::2])
    widest = max(len(weight) for weight in weights[:-1])
    if program.dim > MAX_DIM or hidden > MAX_HIDDEN or widest > MAX_WIDTH:
        raise Unrecognised(
            f"the CUDA kernels take up to {MAX_DIM} dimensions and {MAX_HIDDEN} x {MAX_WIDTH} hidden units"
        )
    shifts = tuple(op.b for op in ops[::2])
    if shifts[-1] is not None and _depends(program, shifts[-1]) not in (0, TIME):
        raise Unrecognised("the CUDA kernels take no output shift that depends on the condition")
    for view in shifts:
        _split(program, view)
    return Chain(program, ops[1].function, ops[1].parameter, weights, shifts)


def _multiple(size: int, of: int) -> int:
    return -(-size // of) * of


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
        raise Unrecognised("the CUDA kernels take time and condition as sums only")
    return parts[TIME], parts[CONDITION]


def _padded(x: Tensor, *sizes: int) -> Tensor:
    """``x`` with its last dimensions padded by zeros to ``sizes``."""
    padding = [p for size, now in zip(sizes[::-1], x.shape[::-1], strict=False) for p in (0, size - now)]
    return torch.nn.functional.pad(x, padding)


class PackedChain(Packed):
    """A chain's weights on a device, in the order in which the kernels' lanes hold them.

    precision: "fp16" (products of fp16 numbers, summed in fp32), "fp16x2" (both factors split into two
    fp16 numbers: fp32's accuracy), "fp32" (no tensor cores).

    Raises Unrecognised where the device has not the shared memory for so wide layers.
    """

    def __init__(self, chain: Chain, device: torch.device, precision: str = "fp16x2") -> None:
        self.program, self.dtype = chain.program, torch.float32
        self.chain, self.device, self.precision = chain, device, precision
        width, last = chain.width, len(chain.weights) - 1
        self.inputs = _multiple(chain.program.dim, 16)
        sizes = (self.inputs, width, chain.outputs, PRECISIONS.index(precision))
        needed, there = native_module().mlp_chain_shared_bytes(*sizes), _device(device).shared_bytes
        if needed > there:
            raise Unrecognised(
                f"layers of {width} take {needed} bytes of shared memory, {device} has {there}"
            )
        self.weights = []
        for layer, weight in enumerate(chain.weights):
            inputs, outputs = (width if layer else self.inputs), (width if layer < last else chain.outputs)
            full = _padded(weight.detach().to(device, torch.float32), outputs, inputs)
            self.weights.append(full.T.contiguous() if precision == "fp32" else self._tiles(full))
        self._tables: WeakKeyDictionary[ClockTable, tuple[Tensor, Tensor]] = WeakKeyDictionary()

    def _tiles(self, weight: Tensor) -> Tensor:
        """(outputs, inputs) -> fp16 by chunk of 32 outputs, input tile, output tile, lane (g, q), half of the
        precision, half of the inputs, pair."""
        outputs, inputs = weight.shape
        order = weight.view(outputs // 32, 4, 8, inputs // 16, 2, 4, 2).permute(0, 3, 1, 2, 5, 4, 6)
        high = order.half()
        if self.precision == "fp16":
            return high.contiguous()
        return torch.stack((high, (order - high.float()).half()), 5).contiguous()

    def time_shifts(self, times: Tensor) -> Tensor:
        """(N, features): what the times (N,) add to each layer, in their precision."""
        program = self.program
        widths = {name: program.buffers[buffer].width for name, buffer in program.conditions.items()}
        nothing = {name: times.new_zeros(len(times), size) for name, size in widths.items()}
        return self._shifts(reference.contexts(program, times, nothing), times, 0)

    def _row_shifts(self, conditions: dict[str, Tensor]) -> Tensor | None:
        """(rows, hidden layers x width) float32: what the conditions add, or None."""
        if all(_split(self.program, view)[1] is None for view in self.chain.shifts):
            return None
        conditions = {name: value.float() for name, value in conditions.items()}
        times = next(iter(conditions.values())).new_zeros(len(next(iter(conditions.values()))))
        shifts = self._shifts(reference.contexts(self.program, times, conditions), times, 1)
        return shifts[:, : -self.chain.outputs].contiguous()

    def _shifts(self, values: Callable[[View], Tensor], like: Tensor, part: int) -> Tensor:
        """(N, features): a part of each layer's shift, padded."""
        chain = self.chain
        padded = []
        for layer, shift in enumerate(chain.shifts):
            view = _split(self.program, shift)[part]
            width = chain.width if layer < len(chain.shifts) - 1 else chain.outputs
            found = like.new_zeros(len(like), width) if view is None else _padded(values(view), width)
            padded.append(found)
        return torch.cat(padded, 1)

    def table(self, clock: ClockTable) -> tuple[Tensor, Tensor]:
        """breaks (P+1,) float64 and polynomials (P, features, 4) float32 of the shifts, on the device.

        Raises ValueError where they are no smooth functions of the clock.
        """
        if clock not in self._tables:
            size = float(self._at(clock, clock.breaks).abs().max())
            ends = (float(clock.breaks[0]), float(clock.breaks[-1]))
            found = tabulate(
                lambda u: self._at(clock, u), *ends, clock.breaks.tolist(), _COEFFICIENTS, _ACCURACY * size
            )
            # Chebyshev's polynomials in powers
            powers = found.values.new_tensor([[1, 0, 0, 0], [0, 1, 0, 0], [-1, 0, 2, 0], [0, -3, 0, 4]])
            values = (found.values @ powers).float().contiguous()
            self._tables[clock] = found.breaks.to(self.device), values.to(self.device)
        return self._tables[clock]

    def _at(self, clock: ClockTable, u: Tensor) -> Tensor:
        return self.time_shifts(clock(u)[0]).T

    def evaluate(
        self,
        x: Tensor,
        time: Tensor,
        conditions: dict[str, Tensor],
        vectors: Tensor | None = None,
        exact: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """As :meth:`Packed.evaluate`, of values alone, for few rows: a grid of one evaluation for each."""
        if vectors is not None or exact:
            raise ValueError("a chain on a CUDA device evaluates values alone")
        values = []
        for row, at in enumerate(time.tolist()):
            some = {name: value[row : row + 1] for name, value in conditions.items()}
            rows = torch.arange(1, device=x.device)
            table = _single(at)
            values.append(self.integrate_grid(x[row : row + 1], some, table, Divergence("none"), rows)[0])
        return torch.cat([x.new_zeros(0, self.program.dim), *values]), None, None

    def _integrate(
        self,
        method: str,
        z: Tensor,
        conditions: dict[str, Tensor],
        over: GridTable | ClockTable,
        divergence: Divergence,
        sizes: tuple[int, ...],
        tensors: Sequence[Tensor | None],
        *more: object,
    ) -> None:
        if isinstance(over, ClockTable):
            breaks, shifts = self.table(over)
        else:
            breaks, shifts = None, self.time_shifts(over.ode.time).float()[..., None]
        divergence = replace(divergence, mode="exact") if divergence.mode == "closed form" else divergence
        chain, _kept = self._chain(method, z, conditions, breaks, shifts, divergence, sizes[1])
        call_native(method, z, chain, sizes, tuple(map(address, tensors)), (), divergence.arguments, *more)

    def _chain(
        self,
        method: str,
        z: Tensor,
        conditions: dict[str, Tensor],
        breaks: Tensor | None,
        shifts: Tensor,
        divergence: Divergence,
        count: int,
    ) -> tuple[tuple, list[Tensor | None]]:
        """``read_chain``'s argument (csrc/mlp_chain_bindings.h), and what must stay alive until the launch.

        The memory may be reused once the kernel is queued: PyTorch's allocator knows its streams.
        """
        chain = self.chain
        warps = 4 if chain.width <= 128 else 8
        blocks = max(1, min(-(-len(z) // (2 * _SAMPLES)), 4 * _device(z.device).processors))
        bytes_of_warp = native_module().mlp_chain_bytes(method, self.inputs, count, divergence.arguments)
        memory = z.new_empty(blocks * warps * bytes_of_warp, dtype=torch.uint8)
        queue = z.new_empty(1, dtype=torch.int64)
        kept = [breaks, shifts, self._row_shifts(conditions), memory, queue]
        layers = (self.program.dim, self.inputs, chain.width, chain.outputs, len(chain.weights) - 1)
        kinds = (PRECISIONS.index(self.precision), FUNCTIONS.index(chain.function))
        sizes = (*layers, *kinds, len(shifts), shifts.shape[2], warps, blocks)
        return (sizes, chain.parameter, tuple(map(address, self.weights)), tuple(map(address, kept))), kept


class _Device(NamedTuple):
    processors: int
    shared_bytes: int  # of a block, at most


def _device(device: torch.device) -> _Device:
    found = torch.cuda.get_device_properties(device)
    return _Device(found.multi_processor_count, found.shared_memory_per_block_optin)


def _single(time: float) -> GridTable:
    """The grid that ends in F(z, time): dz/du = F - z, a step of length 1."""

    def number(value: float, *shape: int) -> Tensor:
        return torch.full(shape, value, dtype=torch.float64)

    ode = Ode(number(time, 1), number(1, 1), number(-1, 1), number(1, 1))
    whole = torch.zeros(1, dtype=torch.int64)
    return GridTable(
        u=number(0, 1),
        ode=ode,
        stage=number(0, 1, 1),
        update=number(1, 1, 1),
        slot=whole,
        node=whole,
        commit=torch.ones(1, dtype=torch.bool),
        weight=number(0, 1, 1),
    )
