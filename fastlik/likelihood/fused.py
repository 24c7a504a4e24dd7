"""The whole likelihood ODE of an MLP in one native call: see ``fastlik.ops.mlp``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..model import ScoreModel, coefficients
from ..ops.dispatch import NATIVE_DTYPES, native_obstacle
from ..ops.mlp.chain import chain_of
from ..ops.mlp.clock import ClockTable, tabulate
from ..ops.mlp.grid import Ode, runge_kutta
from ..ops.mlp.native import Divergence, Packed
from ..ops.mlp.packed_chain import PackedChain
from ..ops.mlp.recognise import Unrecognised, recognise
from ..ops.mlp.snapshot import Snapshot
from ..ops.rk_step import Controller, Status
from ..schedule import DiscreteVP, is_frozen
from ..solvers.adams import INTEGRAL_SHARE, JUMP_ERROR, JUMP_MISSED, JUMP_SHRUNK
from ..solvers.adaptive import Tolerance
from ..solvers.clock import Clock
from ..solvers.system import Integration
from ..solvers.tableau import Tableau
from .flow import Trace

# the network's own result and the kernels' may differ by rounding, in units of the precision
_ROUNDING = 1e3
# and where products are those of fp16 numbers
_HALF_ROUNDING = 3e-2


@dataclass(frozen=True)
class Fused:
    """The likelihood ODE of a model over a solver's clock, for rows with a given ``condition``."""

    model: ScoreModel
    clock: Clock
    packed: Packed
    condition: dict[str, Tensor]

    @property
    def has_closed_form(self) -> bool:
        """Whether the exact divergence takes no tangents."""
        return self.packed.program.trace is not None

    def ode(self, u: Tensor) -> Ode:
        """dz/du at clock values u (N,) float64, as an affine function of z and the network's output."""
        return _ode(self.model, self.clock, u)

    def integrate_grid(
        self,
        z: Tensor,
        grid: Tensor,
        tableau: Tableau,
        trace: Trace | None,
        rows: Tensor,
        *,
        steps_per_node: int = 1,
    ) -> Integration:
        """As ``fastlik.solvers.grid.integrate_grid`` of a LikelihoodFlow, for a method without a last stage
        of its own and one grid (N+1,) for all rows."""
        table = runge_kutta(self.ode, grid, tableau.a, tableau.b, tableau.c, steps_per_node).to(z.device)
        end, q, first_bad = self.packed.integrate_grid(
            z, self.condition, table, self._divergence(trace), rows
        )
        bad = first_bad >= 0
        result = Integration.start(end, None, table.end[first_bad])  # -1, of good rows, is the last
        result.q = None if trace is None else q[..., 0]
        result.status = torch.where(bad, int(Status.NON_FINITE), int(Status.DONE)).int()
        result.nfe += len(table.u)
        result.steps += len(grid) - 1
        return result

    def integrate_adaptive(
        self,
        z: Tensor,
        u0: float,
        u1: float,
        tableau: Tableau,
        tolerance: Tolerance,
        trace: Trace | None,
        rows: Tensor,
        *,
        first_step: float | None = None,
        max_steps: int = 10_000,
    ) -> Integration:
        """As ``fastlik.solvers.adaptive.integrate`` of a LikelihoodFlow, all rows from u0 to u1."""
        if u0 == u1:
            q = None if trace is None else z.new_zeros(len(z), trace.columns, dtype=torch.float64)
            return self._still(z, u0, q)
        fields = self.packed.integrate_adaptive(
            z,
            self.condition,
            self._clock_table(u0, u1),
            (u0, u1),
            tableau.a,
            tableau.b,
            tableau.c,
            tableau.e,
            tolerance.rtol,
            tolerance.atol,
            tolerance.q_atol,
            Controller(order=tableau.order),
            self._divergence(trace),
            rows,
            fsal=trace is None or trace.exact or not trace.fresh,
            first_step=first_step,
            max_steps=max_steps,
        )
        return Integration(**fields)

    def integrate_adams(
        self,
        z: Tensor,
        u0: float,
        u1: float,
        tolerance: Tolerance,
        trace: Trace | None,
        rows: Tensor,
        *,
        order: int,
        first_step: float,
        max_steps: int,
    ) -> tuple[Integration, Tensor]:
        """As ``fastlik.solvers.adams.integrate_adams`` of a LikelihoodFlow with its companion, and of the
        TraceIntegral over the nodes its value, variance and discretisation, (3, B) float64."""
        if u0 == u1:
            return self._still(z, u0), z.new_zeros(3, len(z), dtype=torch.float64)
        fields, integral = self.packed.integrate_adams(
            z,
            self.condition,
            self._clock_table(u0, u1),
            (u0, u1),
            (tolerance.rtol, tolerance.atol, tolerance.q_atol),
            (INTEGRAL_SHARE, JUMP_SHRUNK, JUMP_MISSED, JUMP_ERROR),
            self._divergence(trace),
            rows,
            order,
            first_step,
            max_steps,
        )
        return Integration(**fields), integral

    def take(self, index: Tensor) -> Fused:
        """The same for some of the rows."""
        return replace(self, condition={name: value[index] for name, value in self.condition.items()})

    @staticmethod
    def _still(z: Tensor, u: float, q: Tensor | None = None) -> Integration:
        """Rows that are where they should go."""
        still = Integration.start(z, q, torch.full((len(z),), u, dtype=torch.float64, device=z.device))
        still.status.fill_(int(Status.DONE))
        return still

    def _divergence(self, trace: Trace | None) -> Divergence:
        if trace is None:
            return Divergence("none")
        if trace.exact:
            return Divergence("closed form" if self.has_closed_form else "exact")
        return Divergence("probes", trace.probes, trace.kind, trace.seed, trace.first_draw, trace.fresh)

    def why_no_steps(self, u0: float, u1: float) -> str:
        """What stands against adaptive steps, which read schedule and time features from tables of the clock;
        "" where nothing does.  The tables are kept."""
        try:
            if u0 != u1:
                table = self._clock_table(u0, u1)
                if isinstance(self.packed, PackedChain):
                    self.packed.table(table)
        except ValueError as error:
            return str(error)
        return ""

    def _clock_table(self, u0: float, u1: float) -> ClockTable:
        def make() -> ClockTable:
            return tabulate(self._clock_functions, u0, u1, _kinks(self.model, self.clock))

        return _CACHE[self.model].recall("table", self.model, self.clock, (u0, u1), make)

    def _clock_functions(self, u: Tensor) -> Tensor:
        angle = self.clock.angle(u)
        return torch.stack((*self.ode(u), angle.cos() / self.clock.rate(u), angle.sin()))


def _ode(model: ScoreModel, clock: Clock, u: Tensor) -> Ode:
    schedule = model.schedule
    t = schedule.t_at_angle(clock.angle(u))
    scale, rate = schedule.scale(t), clock.rate(u)
    v = coefficients("v", model.predicts, schedule, t, model.sigma_data)
    input_scale = scale
    if model.predicts == "edm":
        input_scale = scale / torch.hypot(schedule.sigma(t), schedule.alpha(t) * model.sigma_data)
    values = (model._network_time(t), input_scale, rate * v.of_x * scale, rate * v.of_output)
    return Ode(*(value.double().expand(u.shape).contiguous() for value in values))


def _conventions(model: ScoreModel, clock: Clock, u: tuple[float, float]) -> tuple | None:
    """Everything that the ODE follows from, but for the network; None where that may change unseen."""
    if not is_frozen(model.schedule) or not isinstance(model.time, (str, FunctionType)):
        return None
    return model.schedule, model.predicts, model.time, model.time_scale, model.sigma_data, clock, *u


def _kinks(model: ScoreModel, clock: Clock) -> list[float]:
    """Clock values where the schedule is not smooth."""
    if not isinstance(model.schedule, DiscreteVP):
        return []
    t = torch.arange(len(model.schedule.alphas_cumprod), dtype=torch.float64)
    return clock.u(model.schedule.angle(t)).tolist()


@dataclass
class _Known:
    """What recognition found out about a model, by its network as it was at that time."""

    call: object
    output: object
    snapshot: Snapshot
    packed: dict[tuple, Packed] = field(default_factory=dict)
    made: dict[tuple, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, model: ScoreModel) -> _Known:
        return cls(model.call, model.output, Snapshot(model.net))

    def holds(self, model: ScoreModel) -> bool:
        return model.call is self.call and model.output is self.output and self.snapshot.holds(model.net)

    def recall(
        self, what: str, model: ScoreModel, clock: Clock, u: tuple[float, float], make: Callable[[], Any]
    ) -> Any:
        """What ``make`` makes of the conventions; once, where these stay."""
        conventions = _conventions(model, clock, u)
        if conventions is None:
            return make()
        key = (what, *conventions)
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def is_complete(self, model: ScoreModel) -> bool:
        """Whether nothing but what :meth:`holds` compares decides the network's result."""
        own = type(model) is ScoreModel and model.call is None and model.output is None
        return own and self.snapshot.complete


_CACHE: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()


def fuse(
    model: ScoreModel,
    clock: Clock,
    z: Tensor,
    u: tuple[float, float],
    condition: dict[str, Any],
    precision: str = "auto",
) -> Fused | str:
    """The fused ODE for ``z`` (B, *event) between the clock values u, or why there is none, in one line.

    The network is recognised from what it does, once for each state of its weights and attributes.  One
    whose code is not PyTorch's or fastlik's is also run at each call, on one row, so that a network which has
    changed in any other way is not mistaken for the one that was recognised.
    """
    obstacle = _obstacle(model, z, condition, precision)
    if obstacle:
        return obstacle
    widths = {name: value.shape[1] for name, value in condition.items()}
    key = (z.dtype, z.device, precision, z.shape[1], tuple(widths.items()))
    known = _CACHE.get(model)
    if known is not None and not known.holds(model):
        known = None
    new = known is None or key not in known.packed
    if new:
        found = _pack(model, z, widths, _times(model, clock, u), precision)
        if isinstance(found, str):
            return found  # not kept: that would keep a copy of the weights
        if known is None:
            known = _CACHE[model] = _Known.of(model)
        known.packed[key] = found
    if new and _by_cuda(z) and not _agrees(model, known, key, clock, z, u, condition):
        del known.packed[key]
        return f"on {z.device} the kernel does not give the network's values"  # drivers and compilers err too
    if not known.is_complete(model) and not _agrees(model, known, key, clock, z, u, condition):
        found = _pack(model, z, widths, _times(model, clock, u), precision)
        if isinstance(found, str):
            del known.packed[key]
            return found
        known.packed[key] = found
    return Fused(model, clock, known.packed[key], condition)


def _obstacle(model: ScoreModel, z: Tensor, condition: dict[str, Any], precision: str) -> str:
    if z.dim() != 2:
        return f"the kernels take rows of vectors, not samples of shape {tuple(z.shape[1:])}"
    if z.dtype not in NATIVE_DTYPES:
        return f"the kernels take float32 and float64, not {z.dtype}"
    if _by_cuda(z) and z.dtype != torch.float32:
        return f"the CUDA kernels take float32, not {z.dtype}"
    if precision == "fp16" and not _by_cuda(z):
        return f"the kernels for {z.device.type} have full precision alone"
    if not (z.is_cpu or z.is_cuda):
        return f"there is no kernel for {z.device.type}"
    if not isinstance(model.net, nn.Module):
        return "the network is a function, whose weights cannot be watched"
    for name, value in condition.items():
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dim() != 2:
            return f"the condition {name!r} is not a floating-point tensor (rows, width)"
        if len(value) != len(z):
            return f"the condition {name!r} has not one line for each row"
    return native_obstacle("mlp", z)


def _by_cuda(z: Tensor) -> bool:
    return z.is_cuda


def _times(model: ScoreModel, clock: Clock, u: tuple[float, float]) -> Tensor:
    return _ode(model, clock, torch.linspace(*u, 7, dtype=torch.float64)).time


def _network(model: ScoreModel) -> Callable[..., Tensor]:
    return lambda x, time, **condition: model._evaluate(x, time, condition)


def _pack(
    model: ScoreModel, z: Tensor, widths: dict[str, int], times: Tensor, precision: str
) -> Packed | str:
    try:
        program = recognise(_network(model), z.shape[1], widths, times, z.dtype, z.device)
        if not _by_cuda(z):
            return Packed.of(program, z.dtype)
        return PackedChain(chain_of(program), z.device, "fp16" if precision == "fp16" else "fp16x2")
    except Unrecognised as error:
        return str(error)
    except Exception as error:  # of a network that does not take these inputs: the general path shows it
        return f"the network raised {type(error).__name__} where it was tried"


def _agrees(
    model: ScoreModel,
    known: _Known,
    key: tuple,
    clock: Clock,
    z: Tensor,
    u: tuple[float, float],
    condition: dict[str, Tensor],
) -> bool:
    """Whether network and kernels give the same for the first row, at both ends of the time."""
    if len(z) == 0:
        return True
    ends = known.recall(
        "ends", model, clock, u, lambda: _ode(model, clock, torch.tensor(u, dtype=torch.float64))
    )
    packed = known.packed[key]
    x = z[:1] * ends.input_scale[:, None].to(z)
    given = {name: value[:1].expand(len(x), -1) for name, value in condition.items()}
    with torch.no_grad():
        expected = model._evaluate(x, ends.time.to(z), given)
    if not bool(expected.isfinite().all()):
        return True  # a row that has no likelihood either way
    actual, _, _ = packed.evaluate(x, ends.time, given)
    scale = expected.abs().max().clamp(min=1e-6)
    half = isinstance(packed, PackedChain) and packed.precision == "fp16"
    allowed = _HALF_ROUNDING if half else _ROUNDING * torch.finfo(z.dtype).eps
    return bool((actual - expected).abs().max() <= allowed * scale)
