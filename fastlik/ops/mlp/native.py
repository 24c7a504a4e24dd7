"""A program in C++: its numbers packed for the kernels, its tensors as addresses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from fastlik.ops.dispatch import call_native, native_module
from fastlik.ops.rk_step import Controller

from .clock import ClockTable
from .grid import GridTable
from .program import CODES, FUNCTIONS, Program, View

# bytes that outputs of a weight are grouped by (csrc/include/fastlik/mlp.h)
_PANEL_BYTES = 64
_NO_VIEW = (-1, 0, 0)
_TRACE_MODES = ("none", "probes", "exact", "closed form")
_PROBE_KINDS = ("rademacher", "gaussian")


@dataclass(frozen=True)
class Divergence:
    """How divergences are taken along the ODE.

    mode: "none", "probes" (of a kind, keyed by seed, numbered from first_draw, of their node if fresh),
    "exact" (d tangents) or "closed form".
    """

    mode: str
    probes: int = 1
    kind: str = "rademacher"
    seed: int = 0
    first_draw: int = 0
    fresh: bool = True

    @property
    def columns(self) -> int:
        return {"none": 0, "probes": self.probes}.get(self.mode, 1)

    @property
    def arguments(self) -> tuple:
        return (
            _TRACE_MODES.index(self.mode),
            _PROBE_KINDS.index(self.kind),
            self.probes,
            self.first_draw,
            self.seed & 2**64 - 1,
            self.fresh,
        )


class Packed:
    """The numbers of ``program`` in ``dtype`` (float32 or float64), copied, and its operations."""

    @classmethod
    def of(cls, program: Program, dtype: torch.dtype) -> Packed:
        """The one of ``program`` in ``dtype``, made at the first call."""
        if dtype not in program.packed:
            program.packed[dtype] = cls(program, dtype)
        return program.packed[dtype]

    def __init__(self, program: Program, dtype: torch.dtype, *, transposed: bool = False) -> None:
        self.program, self.dtype = program, dtype
        self._numbers: list[Tensor] = []
        self._size = 0
        buffers = [
            (buffer.width, buffer.depends, 0 if buffer.constant is None else self._store(buffer.constant))
            for buffer in program.buffers
        ]
        weights, ops = [], []
        for op in program.ops:
            index = -1
            if op.weight is not None:
                index = len(weights)
                weights.append((self._store(self._panels(op.weight)), *op.weight.shape))
            name = FUNCTIONS.index(op.function) if op.function else 0
            head = (CODES.index(op.code), name, index, op.depends)
            ops.append((*head, *_view(op.out), *_view(op.a), *_view(op.b), op.parameter))
        # where gradients are found, of weights and then of constants: offset, rows, and length of a row
        self.places = [(offset, inputs, self._padded(outputs)) for offset, outputs, inputs in weights]
        self.places += [
            (start, 1, width)
            for (width, _, start), buffer in zip(buffers, program.buffers, strict=True)
            if buffer.constant is not None
        ]
        if transposed:  # for gradients
            matrices = [op.weight.T for op in program.ops if op.weight is not None]
            weights += [(self._store(self._panels(matrix)), *matrix.shape) for matrix in matrices]
        self._store(torch.zeros(1))  # vectors may be read a little beyond the last number
        self.numbers = torch.cat(self._numbers)
        self.handle = native_module().Mlp(
            dtype == torch.float64,
            self.numbers.data_ptr(),
            (program.value_ops, program.dim, program.input, program.time),
            ops,
            buffers,
            weights,
            tuple(program.conditions.values()),
            _view(program.output),
            _view(program.trace),
        )

    def _store(self, values: Tensor) -> int:
        """Where the numbers begin; each tensor fills whole cache lines."""
        line = _PANEL_BYTES // self.dtype.itemsize
        flat = values.detach().to("cpu", self.dtype).flatten()
        start, self._size = self._size, self._size + -(-len(flat) // line) * line
        self._numbers.append(torch.nn.functional.pad(flat, (0, self._size - start - len(flat))))
        return start

    def _padded(self, outputs: int) -> int:
        """Outputs in whole panels."""
        panel = _PANEL_BYTES // self.dtype.itemsize
        return -(-outputs // panel) * panel

    def _panels(self, weight: Tensor) -> Tensor:
        """(outputs, inputs) -> (panels, inputs, outputs of a panel), zero beyond the outputs."""
        panel = _PANEL_BYTES // self.dtype.itemsize
        padded = torch.nn.functional.pad(weight.detach(), (0, 0, 0, self._padded(len(weight)) - len(weight)))
        return padded.unflatten(0, (-1, panel)).transpose(1, 2)

    def conditions(self, conditions: dict[str, Tensor]) -> tuple[list[Tensor], tuple[int, ...]]:
        """The conditions as the kernels read them, kept alive, and their addresses."""
        kept = [conditions[name].to(self.dtype).contiguous() for name in self.program.conditions]
        return kept, tuple(value.data_ptr() for value in kept)

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
        """Run a kernel.  over: what its evaluations lie on; sizes: (rows, slopes kept, ...)."""
        kept, addresses = self.conditions(conditions)
        call_native(
            method,
            z,
            self.handle,
            sizes,
            tuple(map(address, tensors)),
            addresses,
            divergence.arguments,
            *more,
        )

    def evaluate(
        self,
        x: Tensor,
        time: Tensor,
        conditions: dict[str, Tensor],
        vectors: Tensor | None = None,
        exact: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(value (B, d), products J v (K, B, d) or None, divergence (B,) float64 or None)."""
        x, time = x.contiguous(), time.double().contiguous()
        vectors = None if vectors is None else vectors.contiguous()
        kept, addresses = self.conditions(conditions)
        value = torch.empty_like(x)
        products = None if vectors is None else torch.empty_like(vectors)
        divergence = x.new_empty(len(x), dtype=torch.float64) if exact else None
        tensors = (x, None, time, vectors, value, products, None, divergence)
        call_native(
            "mlp_evaluate",
            x,
            self.handle,
            (len(x), 0 if vectors is None else len(vectors)),
            tuple(map(address, tensors)),
            addresses,
        )
        return value, products, divergence

    def jet(
        self, x: Tensor, time: Tensor, conditions: dict[str, Tensor], directions: Tensor, order: int
    ) -> tuple[Tensor, Tensor]:
        """(value (B, d), derivatives (order, K, B, d)) along directions (K, B, d)."""
        x, time, directions = x.contiguous(), time.double().contiguous(), directions.contiguous()
        kept, addresses = self.conditions(conditions)
        value, derivatives = torch.empty_like(x), x.new_empty(order, *directions.shape)
        call_native(
            "mlp_jet",
            x,
            self.handle,
            (len(x), len(directions), order),
            tuple(map(address, (x, None, time, directions, value, derivatives))),
            addresses,
        )
        return value, derivatives

    def integrate_grid(
        self,
        z: Tensor,
        conditions: dict[str, Tensor],
        table: GridTable,
        divergence: Divergence,
        rows: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(z at the end (B, d), q (B, columns, Q) float64, first evaluation that was not finite or -1 (B,)).

        rows: (B,) int64 ids that key the probes.
        """
        z, rows, table = z.contiguous(), rows.contiguous(), table.to(z.device)
        latent = torch.empty_like(z)
        quadratures = table.weight.shape[1]
        q = z.new_empty(len(z), divergence.columns, quadratures, dtype=torch.float64)
        first_bad = z.new_empty(len(z), dtype=torch.int64)
        tensors = (z, rows, *table.ode, table.stage, table.update, table.weight, table.slot, table.node)
        self._integrate(
            "mlp_grid",
            z,
            conditions,
            table,
            divergence,
            (len(z), len(table.u), table.stage.shape[1], quadratures),
            (*tensors, table.commit, latent, q, first_bad),
        )
        return latent, q, first_bad

    def integrate_adaptive(
        self,
        z: Tensor,
        conditions: dict[str, Tensor],
        clock: ClockTable,
        span: tuple[float, float],
        a: Sequence[Sequence[float]],
        b: Sequence[float],
        c: Sequence[float],
        e: Sequence[float],
        rtol: float,
        atol: float,
        q_atol: float | None,
        controller: Controller,
        divergence: Divergence,
        rows: Tensor,
        fsal: bool,
        first_step: float | None,
        max_steps: int,
    ) -> dict[str, Tensor]:
        """The fields of ``fastlik.solvers.system.Integration``."""
        z, rows, on_device = z.contiguous(), rows.contiguous(), clock.to(z.device)
        stages, batch = len(b), len(z)
        tableau = _tableau(tuple(map(tuple, a)), tuple(c), z.device)
        counts = {name: z.new_empty(batch, dtype=torch.int64) for name in ("nfe", "steps", "rejected")}
        numbers = {name: z.new_empty(batch, dtype=torch.float64) for name in ("t", "defect")}
        q = z.new_empty(batch, divergence.columns, dtype=torch.float64)
        y, status = torch.empty_like(z), z.new_empty(batch, dtype=torch.int32)
        tensors = (z, rows, *tableau, on_device.breaks, on_device.values, y, q, *numbers.values(), status)
        self._integrate(
            "mlp_adaptive",
            z,
            conditions,
            clock,
            divergence,
            (batch, stages, max_steps, len(clock.breaks) - 1, clock.values.shape[2]),
            (*tensors, *counts.values()),
            (*span, first_step or 0.0),
            tuple(b),
            tuple(e),
            (rtol, atol, q_atol or 0.0),
            tuple(getattr(controller, n) for n in ("order", "safety", "min_factor", "max_factor", "beta")),
            fsal,
        )
        return {"y": y, "q": q if divergence.columns else None, "status": status, **numbers, **counts}

    def integrate_adams(
        self,
        z: Tensor,
        conditions: dict[str, Tensor],
        clock: ClockTable,
        span: tuple[float, float],
        tolerances: tuple[float, float, float],
        judgement: tuple[float, float, float, float],
        divergence: Divergence,
        rows: Tensor,
        order: int,
        first_step: float,
        max_steps: int,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The fields of ``fastlik.solvers.system.Integration``, and the trace's integral, its variance by the
        probes and its quadrature's error, (3, B) float64.

        tolerances: rtol and atol of the state, and nats of the answer.  judgement: the constants
        INTEGRAL_SHARE, JUMP_SHRUNK, JUMP_MISSED and JUMP_ERROR of ``fastlik.solvers.adams``.
        """
        z, rows, on_device = z.contiguous(), rows.contiguous(), clock.to(z.device)
        batch = len(z)
        counts, numbers = z.new_empty(3, batch, dtype=torch.int64), z.new_empty(6, batch, dtype=torch.float64)
        y, status = torch.empty_like(z), z.new_empty(batch, dtype=torch.int32)
        tensors = (z, rows, on_device.breaks, on_device.values, y, numbers, status, counts)
        self._integrate(
            "mlp_adams",
            z,
            conditions,
            clock,
            divergence,
            (batch, order, max_steps, len(clock.breaks) - 1, clock.values.shape[2]),
            tensors,
            (*span, first_step),
            (*tolerances, *judgement),
        )
        fields = dict(zip(("t", "defect", "defect_square"), numbers[:3], strict=True))
        fields |= zip(("nfe", "steps", "rejected"), counts, strict=True)
        return {"y": y, "q": None, "status": status, **fields}, numbers[3:]


@cache
def _tableau(
    a: tuple[tuple[float, ...], ...], c: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """a (S, S) and c (S,) float64."""
    square = [[*row, *(0.0,) * (len(c) - len(row))] for row in a]
    return tuple(torch.tensor(values, dtype=torch.float64, device=device) for values in (square, c))


def _view(view: View | None) -> tuple[int, int, int]:
    return _NO_VIEW if view is None else (view.buffer, view.offset, view.width)


def address(tensor: Tensor | None) -> int:
    """0 stands for a tensor that is left out."""
    return 0 if tensor is None else tensor.data_ptr()
