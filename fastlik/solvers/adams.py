"""Adams' predictor-corrector method with a step size of its own for every row: one evaluation a step.

The polynomial through the last k slopes, integrated, predicts the state; the right-hand side is evaluated
there, once; the polynomial through that slope as well corrects the state (PEC mode: Shampine & Gordon 1975,
Hairer, Norsett, Wanner: Solving ODEs I, III.1 and III.5).  The difference of the two is the predictor's
local error and controls the step.  A Runge-Kutta method of the same order evaluates six times for that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.adams_step import Control, History, correct, predict
from .adaptive import Tolerance
from .graph import capture
from .status import Status
from .system import Integration, System

ORDER = 4
# The error of an integral over the last step alone, one-sided, is weighed at this much: the final quadrature
# has nodes on both sides.  Without it a trace with a sharp turn that the state does not feel is missed (rings
# with a standard deviation of 0.02: worst of 64 rows 5e-2 nats/dim instead of 7e-4 at tolerance 1e-3).
INTEGRAL_SHARE = 0.3
# A right-hand side jumps where steps had to shrink by more than the first of these, the slope still misses
# its polynomial by more than the second times its change, and the state's error, in units of its tolerance,
# is above the third: the state shrank the steps, not a kink that the trace alone feels (ReLU networks).
JUMP_SHRUNK, JUMP_MISSED, JUMP_ERROR = 3.0, 0.3, 0.1


@dataclass
class Nodes:
    """Where each row evaluated its system.

    t (B, N) float64, integrand (B, N, C) float64 or None: of C integrals, the last of which the steps
    follow (it must be smooth, the others may hold noise); links (B, N) float64 or None: the products of
    each node's features with those of the node before it; states (B, N, *event) or None; row b has the
    nodes [b, :count[b]], count (B,) int64.
    """

    t: Tensor
    integrand: Tensor | None
    links: Tensor | None
    states: Tensor | None
    count: Tensor


def integrate_adams(
    system: System,
    y: Tensor,
    t0: Tensor,
    t1: Tensor,
    tolerance: Tolerance,
    *,
    order: int = ORDER,
    first_step: float,
    keep_states: bool = False,
    max_steps: int = 10_000,
    block: int | None = None,
    graphs: bool = False,
    backend: str = "auto",
) -> tuple[Integration, Nodes]:
    """Integrate every row from t0 to t1 (B,) float64, in either direction, never outside that span.

    The integrals of the system's integrands are left to the caller, who has their values at the nodes.
    No row's steps depend on another's.

    Args:
        system: may return features (B, F) float64 as a third value, see :class:`Nodes`.
        y: (B, *event) float32 or float64.
        order: slopes that predict, 1 to 5; the first steps take what there is.
        first_step: absolute first step.
        keep_states: record the predicted states, at which the nodes' slopes were evaluated.
        max_steps: attempted steps after which a row is given up with status MAX_STEPS.
        block: attempts between two looks at which rows have finished, each of which waits for the
            device; default 1 on the CPU, 8 elsewhere.  Finished rows leave the batch at a look.
        graphs: capture attempts as a graph after the first block (``fastlik.solvers.graph``).  A graph is of
            one batch size, so that rows leave when half of them have finished.
        backend: of the steps' arithmetic, "auto", "native" or "torch".
    """
    result = Integration.start(y, None, t0)
    result.defect_square = torch.zeros_like(result.defect)
    result.status.masked_fill_(t0 == t1, int(Status.DONE))
    index = torch.arange(len(y), device=y.device)
    recorder = _Recorder(keep_states)
    stepper = _Stepper.of(system, result.take(index), t1, tolerance, order, backend)
    recorder.write(index, stepper.start(first_step))
    block = block or (1 if y.device.type == "cpu" else 8)
    step, captured = stepper.step, False
    for attempt in range(1, max_steps + 1):
        recorder.write(index, step())
        if attempt == max_steps:
            stepper.give_up()
        if attempt % block and attempt != max_steps:
            continue
        mask = stepper.rows.running
        running = int(mask.sum())  # the only place where the host waits for the device
        if graphs and len(index) // 2 < running:
            if not captured:
                step, captured = capture(stepper.step, y.device), True
        elif running < len(index):
            result.put(index, stepper.rows)
            keep = torch.nonzero_static(mask, size=running).flatten()
            index = index[keep]
            if running == 0:
                break
            stepper = stepper.take(keep)
            step, captured = stepper.step, False
    return result, recorder.nodes(result)


@dataclass
class _Evaluation:
    """A slope's place: node number (B,), t (B,), state, integrand (B, C), features (B, F); both or None."""

    node: Tensor
    t: Tensor
    y: Tensor
    integrand: Tensor | None
    features: Tensor | None


class _Recorder:
    """All rows' nodes.  A rejected attempt is overwritten by the next, which has the same number."""

    def __init__(self, keep_states: bool) -> None:
        self.keep_states = keep_states
        self.t: Tensor | None = None
        self.integrand: Tensor | None = None
        self.links: Tensor | None = None
        self.states: Tensor | None = None
        self.features: Tensor | None = None
        self.written = 0

    def write(self, index: Tensor, at: _Evaluation) -> None:
        self.written += 1
        if self.t is None or self.written > self.t.shape[1]:
            self._grow(at)
        self.t[index, at.node] = at.t
        if self.integrand is not None:
            self.integrand[index, at.node] = at.integrand
        if self.links is not None:
            # the other slot holds the node before, whose last attempt was accepted
            before = self.features[index, (at.node + 1) % 2]
            self.links[index, at.node] = (before * at.features).sum(1)
            self.features[index, at.node % 2] = at.features
        if self.states is not None:
            self.states[index, at.node] = at.y

    def _grow(self, at: _Evaluation) -> None:
        def grown(old: Tensor | None, values: Tensor) -> Tensor:
            if old is None:
                return values.new_zeros(len(values), 64, *values.shape[1:])
            return torch.cat((old, torch.zeros_like(old)), 1)

        self.t = grown(self.t, at.t)
        if at.integrand is not None:
            self.integrand = grown(self.integrand, at.integrand)
        if at.features is not None:
            self.links = grown(self.links, at.t)
            if self.features is None:
                self.features = at.features.new_zeros(len(at.t), 2, at.features.shape[1])
        if self.keep_states:
            self.states = grown(self.states, at.y)

    def nodes(self, rows: Integration) -> Nodes:
        count = rows.steps + 1
        most = int(count.max()) if len(count) else 0

        def cut(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[:, :most]

        return Nodes(cut(self.t), cut(self.integrand), cut(self.links), cut(self.states), count)


class _Stepper:
    """The rows still on their way, with their last slopes in ring buffers."""

    def __init__(
        self,
        system: System,
        rows: Integration,
        history: History,
        tolerance: Tolerance,
        backend: str,
    ) -> None:
        self.system, self.rows, self.history = system, rows, history
        self.tolerance, self.backend = tolerance, backend
        self.control = Control(
            tolerance.rtol, tolerance.atol, tolerance.q_atol,
            INTEGRAL_SHARE, JUMP_SHRUNK, JUMP_MISSED, JUMP_ERROR,
        )  # fmt: skip

    @classmethod
    def of(
        cls, system: System, rows: Integration, t_end: Tensor, tolerance: Tolerance, order: int, backend: str
    ) -> _Stepper:
        """Before the first slope is known."""
        batch = len(rows.y)
        size = rows.y[:1].numel() if batch else 0
        history = _history(
            rows,
            t_end=t_end.contiguous(),
            h=torch.zeros_like(rows.t),
            tried=torch.zeros_like(rows.t),
            times=rows.t.new_zeros(batch, order),
            slopes=rows.y.new_zeros(batch, order, size),
            followed=rows.t.new_zeros(batch, order),
        )
        return cls(system, rows, history, tolerance, backend)

    def start(self, first_step: float) -> _Evaluation:
        rows, history = self.rows, self.history
        span = history.t_end - rows.t
        history.h.copy_(span.abs().clamp(max=first_step) * span.sign())
        history.tried.copy_(history.h.abs())
        slope, integrand, *features = self.system(rows.t, rows.y, rows.steps)
        rows.nfe += 1
        history.times[:, 0], history.slopes[:, 0] = rows.t, slope.flatten(1)
        finite = slope.flatten(1).isfinite().all(1)
        if integrand is not None:
            history.followed[:, 0] = integrand[:, -1]
            finite &= integrand.isfinite().all(1)
        rows.status.masked_fill_(~finite & rows.running, int(Status.NON_FINITE))
        at = rows.steps.clone(), rows.t.clone(), rows.y.clone()
        return _Evaluation(*at, integrand, *(features or [None]))

    def step(self) -> _Evaluation:
        """One attempt for every row; accepted rows move on, finished ones stay where they are."""
        attempt = predict(self.history, self.backend)
        slope, integrand, *features = self.system(attempt.t, attempt.y, attempt.node)
        sensitivity = None
        if self.tolerance.q_atol is not None:
            sensitivity = self.system.sensitivity(attempt.t, attempt.y, slope)
        correct(self.history, attempt, slope, integrand, sensitivity, self.control, self.backend)
        return _Evaluation(attempt.node, attempt.t, attempt.y, integrand, *(features or [None]))

    def give_up(self) -> None:
        self.rows.status.masked_fill_(self.rows.running, int(Status.MAX_STEPS))

    def take(self, index: Tensor) -> _Stepper:
        rows = self.rows.take(index)
        names = ("t_end", "h", "tried", "times", "slopes", "followed")
        history = _history(rows, **{name: getattr(self.history, name)[index] for name in names})
        return _Stepper(self.system.take(index), rows, history, self.tolerance, self.backend)


def _history(rows: Integration, **own: Tensor) -> History:
    """The rows' tensors, which steps write to, with those of the method's own."""
    names = ("y", "t", "defect", "defect_square", "status", "nfe", "steps", "rejected")
    return History(**{name: getattr(rows, name) for name in names}, **own)
