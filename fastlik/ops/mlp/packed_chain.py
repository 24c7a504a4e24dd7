"""A chain of operations on a CUDA device: weights as the kernels' lanes hold them, tables, memory."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from fastlik.ops.dispatch import call_native, native_module

from . import reference
from .chain import CODES, Chain, Link, multiple
from .clock import ClockTable, tabulate
from .grid import GridTable, Ode
from .native import Divergence, Packed, address
from .program import FUNCTIONS
from .recognise import Unrecognised

PRECISIONS = ("fp16", "fp16x2", "fp32")
# polynomials of the clock: their largest error, in units of the largest number in the table
_COEFFICIENTS, _ACCURACY = 4, 1e-7
_MOST_BYTES = 2**28  # of a table
_SAMPLES = 8  # of a warp


class PackedChain(Packed):
    """A chain's operations for the kernels.

    precision: "fp16" (products of fp16 numbers, summed in fp32), "fp16x2" (both factors split into two
    fp16 numbers: fp32's accuracy), "fp32" (no tensor cores).  Grids are compiled for all, Adams' method for
    the first two, adaptive Runge-Kutta steps for the second.

    Raises Unrecognised where the device has not the shared memory for so wide layers.
    """

    def __init__(self, chain: Chain, device: torch.device, precision: str = "fp16x2") -> None:
        self.program, self.dtype = chain.program, torch.float32
        self.chain, self.device, self.precision = chain, device, precision
        self.inputs = multiple(chain.program.dim, 16)
        sizes = (chain.tiles, chain.outputs, chain.trace_chunks, PRECISIONS.index(precision))
        needed, there = native_module().mlp_chain_shared_bytes(*sizes), _device(device).shared_bytes
        if needed > there:
            raise Unrecognised(
                f"layers of {chain.width} units take {needed} bytes of shared memory, {device} has {there}"
            )
        self._weights: list[Tensor] = []  # the operations hold their addresses
        links = chain.links if chain.trace is None else (*chain.links, chain.trace)
        self.ops = torch.tensor([self._numbers(link) for link in links], device=device)
        self._tables: WeakKeyDictionary[ClockTable, tuple[Tensor, Tensor]] = WeakKeyDictionary()

    def _numbers(self, link: Link) -> tuple[int, ...]:
        """A ``ChainOp``."""
        inputs, outputs, weight, scale = 0, multiple(link.width, 16), 0, 1.0
        if link.weight is not None:
            inputs, outputs = multiple(link.weight.shape[1], 16), multiple(link.width, 32)
            scaled, scale = _scaled(link.weight)
            self._weights.append(self._laid_out(scaled, inputs, outputs))
            weight = address(self._weights[-1])
        function = FUNCTIONS.index(link.function) if link.function else -1
        terms = (link.shift.time, link.shift.row, link.factor.time, link.factor.row)
        doubles = struct.unpack("<2q", struct.pack("<2d", scale, link.parameter))
        head = (CODES.index(link.code), function, link.out, link.a, link.b, link.width, inputs, outputs)
        return (*head, *terms, weight, *doubles)

    def _laid_out(self, weight: Tensor, inputs: int, outputs: int) -> Tensor:
        """(outputs, inputs) -> fp16 by chunk of 32 outputs, input tile, output tile, lane (g, q), half of the
        precision, half of the inputs, pair; "fp32": (inputs, outputs)."""
        weight = weight.to(self.device, torch.float32)
        weight = torch.nn.functional.pad(weight, (0, inputs - weight.shape[1], 0, outputs - len(weight)))
        if self.precision == "fp32":
            return weight.T.contiguous()
        order = weight.view(outputs // 32, 4, 8, inputs // 16, 2, 4, 2).permute(0, 3, 1, 2, 5, 4, 6)
        high = order.half()
        if self.precision == "fp16":
            return high.contiguous()
        return torch.stack((high, (order - high.float()).half()), 5).contiguous()

    def of_times(self, times: Tensor) -> Tensor:
        """(N, features): the table of the times (N,), in their precision."""
        program = self.program
        widths = {name: program.buffers[buffer].width for name, buffer in program.conditions.items()}
        nothing = {name: times.new_zeros(len(times), size) for name, size in widths.items()}
        return self.chain.times.values(reference.contexts(program, times, nothing), times)

    def _of_rows(self, conditions: dict[str, Tensor]) -> Tensor | None:
        """(rows, features) float32: the table of the conditions, or None."""
        if not self.chain.rows.entries:
            return None
        conditions = {name: value.float() for name, value in conditions.items()}
        times = next(iter(conditions.values())).new_zeros(len(next(iter(conditions.values()))))
        return self.chain.rows.values(reference.contexts(self.program, times, conditions), times).contiguous()

    def table(self, clock: ClockTable) -> tuple[Tensor, Tensor]:
        """breaks (P+1,) float64 and polynomials (P, features, 4) float32 of the clock, on the device.

        Raises ValueError where they are no smooth functions of the clock.
        """
        if clock not in self._tables:
            size = float(self._at(clock, clock.breaks).abs().max())
            ends = (float(clock.breaks[0]), float(clock.breaks[-1]))
            most = _MOST_BYTES // (4 * _COEFFICIENTS * max(1, self.chain.times.features))
            found = tabulate(
                lambda u: self._at(clock, u),
                *ends,
                clock.breaks.tolist(),
                _COEFFICIENTS,
                _ACCURACY * size,
                most,
            )
            # Chebyshev's polynomials in powers
            powers = found.values.new_tensor([[1, 0, 0, 0], [0, 1, 0, 0], [-1, 0, 2, 0], [0, -3, 0, 4]])
            values = (found.values @ powers).float().contiguous()
            self._tables[clock] = found.breaks.to(self.device), values.to(self.device)
        return self._tables[clock]

    def _at(self, clock: ClockTable, u: Tensor) -> Tensor:
        return self.of_times(clock(u)[0]).T

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
            table = _single(at, x.device)
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
            breaks, times = self.table(over)
        else:
            breaks, times = None, self.of_times(over.ode.time).float()[..., None].contiguous()
        if divergence.mode == "closed form" and self.chain.trace is None:
            divergence = replace(divergence, mode="exact")
        chain, _kept = self._chain(method, z, conditions, breaks, times, divergence, sizes[1])
        call_native(method, z, chain, sizes, tuple(map(address, tensors)), (), divergence.arguments, *more)

    def _chain(
        self,
        method: str,
        z: Tensor,
        conditions: dict[str, Tensor],
        breaks: Tensor | None,
        times: Tensor,
        divergence: Divergence,
        count: int,
    ) -> tuple[tuple, list[Tensor | None]]:
        """``read_chain``'s argument (csrc/mlp_chain_bindings.h), and what must stay alive until the launch.

        The memory may be reused once the kernel is queued: PyTorch's allocator knows its streams.
        """
        chain = self.chain
        warps = 4 if chain.width <= 128 else 8
        most = 16 // warps * _device(z.device).processors
        blocks = max(1, min(-(-len(z) // (2 * _SAMPLES)), most))
        bytes_of_warp = native_module().mlp_chain_bytes(method, self.inputs, count, divergence.arguments)
        memory = z.new_empty(blocks * warps * bytes_of_warp, dtype=torch.uint8)
        queue = z.new_empty(1, dtype=torch.int64)
        rows = self._of_rows(conditions)
        kept = [self.ops, breaks, times, rows, memory, queue]
        lines = (self.program.dim, self.inputs, chain.outputs)
        links = (len(chain.links), chain.tiles, chain.trace_chunks)
        tables = (len(times), *times.shape[1:], 0 if rows is None else rows.shape[1])
        sizes = (*lines, *links, PRECISIONS.index(self.precision), *tables, warps, blocks)
        return (sizes, tuple(map(address, kept))), kept


def _scaled(weight: Tensor) -> tuple[Tensor, float]:
    """(weight / scale, scale), a power of two: the largest is just within fp16; small ones lose digits."""
    weight = weight.detach().double()
    exponent = int(torch.frexp(weight.abs().max()).exponent) - 15
    return weight * 2.0**-exponent, 2.0**exponent


class _Device(NamedTuple):
    processors: int
    shared_bytes: int  # of a block, at most


def _device(device: torch.device) -> _Device:
    found = torch.cuda.get_device_properties(device)
    return _Device(found.multi_processor_count, found.shared_memory_per_block_optin)


@lru_cache(64)
def _single(time: float, device: torch.device) -> GridTable:
    """The grid that ends in F(z, time): dz/du = F - z, a step of length 1."""

    def number(value: float, *shape: int) -> Tensor:
        return torch.full(shape, value, dtype=torch.float64, device=device)

    ode = Ode(number(time, 1), number(1, 1), number(-1, 1), number(1, 1))
    whole = torch.zeros(1, dtype=torch.int64, device=device)
    return GridTable(
        u=number(0, 1),
        end=number(1, 1),
        ode=ode,
        stage=number(0, 1, 1),
        update=number(1, 1, 1),
        slot=whole,
        node=whole,
        commit=torch.ones(1, dtype=torch.bool, device=device),
        weight=number(0, 1, 1),
    )
