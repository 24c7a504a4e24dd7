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

from .adaptive import Tolerance
from .graph import capture
from .quadrature import lagrange_weights
from .status import Status
from .system import Integration, System

ORDER = 4
# a step may grow no faster: variable-step Adams methods stay stable below a ratio of about 2
_GROWTH, _SHRINK, _SAFETY = 2.0, 0.1, 0.9
# The error of an integral over the last step alone, one-sided, is weighed at this much: the final quadrature
# has nodes on both sides.  Without it a trace with a sharp turn that the state does not feel is missed (rings
# with a standard deviation of 0.02: worst of 64 rows 5e-2 nats/dim instead of 7e-4 at tolerance 1e-3).
INTEGRAL_SHARE = 0.3
# A right-hand side jumps where steps had to shrink by more than the first of these, the slope still misses
# its polynomial by more than the second times its change, and the state's error, in units of its tolerance,
# is above the third: the state shrank the steps, not a kink that the trace alone feels (ReLU networks).
JUMP_SHRUNK, JUMP_MISSED, JUMP_ERROR = 4.0, 0.3, 0.1


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
    """
    result = Integration.start(y, None, t0)
    result.defect_square = torch.zeros_like(result.defect)
    result.status.masked_fill_(t0 == t1, int(Status.DONE))
    index = torch.arange(len(y), device=y.device)
    recorder = _Recorder(keep_states)
    stepper = _Stepper(system, result.take(index), t1, tolerance, order)
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
        self, system: System, rows: Integration, t_end: Tensor, tolerance: Tolerance, order: int
    ) -> None:
        self.system, self.rows, self.t_end = system, rows, t_end
        self.tolerance, self.order = tolerance, order
        batch = len(rows.y)
        self.times = rows.t.new_zeros(batch, order)
        self.slopes = rows.y.new_zeros(batch, order, rows.y[:1].numel() if batch else 0)
        self.followed = torch.zeros_like(self.times)
        self.h = torch.zeros_like(rows.t)
        self.tried = torch.zeros_like(rows.t)  # length of the longest attempt lately: halved at each node
        self.all_rows = torch.arange(batch, device=rows.y.device)

    def start(self, first_step: float) -> _Evaluation:
        rows = self.rows
        span = self.t_end - rows.t
        self.h = span.abs().clamp(max=first_step) * span.sign()
        self.tried = self.h.abs()
        slope, integrand, *features = self.system(rows.t, rows.y, rows.steps)
        rows.nfe += 1
        self.times[:, 0], self.slopes[:, 0] = rows.t, slope.flatten(1)
        finite = self.slopes[:, 0].isfinite().all(1)
        if integrand is not None:
            self.followed[:, 0] = integrand[:, -1]
            finite &= integrand.isfinite().all(1)
        rows.status.masked_fill_(~finite & rows.running, int(Status.NON_FINITE))
        return _Evaluation(rows.steps.clone(), rows.t.clone(), rows.y, integrand, *(features or [None]))

    def step(self) -> _Evaluation:
        """One attempt for every row; accepted rows move on, finished ones stay where they are."""
        rows = self.rows
        running = rows.running
        t = rows.t + torch.where(running, self.h, 0.0)
        t = torch.where((self.t_end - t).abs() <= _resolution(t, self.t_end), self.t_end, t)
        known = torch.arange(self.order, device=t.device) <= rows.steps[:, None]
        predict = lagrange_weights(self.times, known, rows.t, t)
        y = rows.y + self._combine(predict)
        node = rows.steps + 1
        slope, integrand, *features = self.system(t, y, node)
        rows.nfe += running
        nodes = torch.cat((self.times, t[:, None]), 1)
        correct = lagrange_weights(nodes, torch.cat((known, known[:, :1]), 1), rows.t, t)
        gap = correct[:, -1:].to(y.dtype) * slope.flatten(1)
        gap = self._combine(correct[:, :-1] - predict) + gap.reshape(y.shape)
        defect, error = self._error(t, y, slope, gap)
        jump = torch.zeros_like(running)
        if integrand is not None and self.order > 1:
            jump = self._jump(t, slope, gap, error) & known.all(1)
        if integrand is not None:
            error = torch.maximum(error, self._integral_error(integrand, correct, predict))
        accepted = running & (error <= 1)
        _put(rows.y, accepted, y + gap)
        _put(rows.t, accepted, t)
        _put(rows.defect, accepted, rows.defect + defect)
        _put(rows.defect_square, accepted, rows.defect_square + defect.square())
        rows.steps += accepted
        rows.rejected += running & ~accepted
        self._remember(accepted, t, slope, integrand)
        self._control(running, accepted, error, known.sum(1))
        rows.status.masked_fill_(accepted & jump, int(Status.DISCONTINUOUS))
        return _Evaluation(node, t, y, integrand, *(features or [None]))

    def _combine(self, weights: Tensor) -> Tensor:
        """sum_j weights[b, j] slopes[b, j], like y."""
        total = torch.einsum("bk,bkd->bd", weights.to(self.slopes.dtype), self.slopes)
        return total.reshape(self.rows.y.shape)

    def _error(self, t: Tensor, y: Tensor, slope: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
        """What the gap changes in the answer, and the error in units of the tolerance; both (B,)."""
        tolerance = self.tolerance
        scale = tolerance.atol + tolerance.rtol * torch.maximum(y.abs(), self.rows.y.abs())
        error = (gap / scale).flatten(1).double().square().mean(1).sqrt()
        sensitivity = self.system.sensitivity(t, y, slope)
        if sensitivity is None or tolerance.q_atol is None:
            return torch.zeros_like(error), error
        defect = (sensitivity.double() * gap.double()).flatten(1).sum(1)
        return defect, torch.maximum(error, defect.abs() / tolerance.q_atol)

    def _jump(self, t: Tensor, slope: Tensor, gap: Tensor, error: Tensor) -> Tensor:
        """(B,) whether the slope jumps in this step, as far as the state is concerned."""
        h = (t - self.rows.t).abs()
        change = slope.flatten(1) - self.slopes[self.all_rows, self.rows.steps % self.order]
        missed = gap.flatten(1).norm(dim=1) > JUMP_MISSED * h * change.norm(dim=1)
        return missed & (self.tried >= JUMP_SHRUNK * h) & (error > JUMP_ERROR)

    def _integral_error(self, integrand: Tensor, correct: Tensor, predict: Tensor) -> Tensor:
        """The same difference for the integrand that the steps follow; NaN where any is not finite."""
        finite = (integrand - integrand).sum(1)
        if self.tolerance.q_atol is None:
            return finite
        gap = ((correct[:, :-1] - predict) * self.followed).sum(1) + correct[:, -1] * integrand[:, -1]
        return INTEGRAL_SHARE * gap.abs() / self.tolerance.q_atol + finite

    def _remember(self, accepted: Tensor, t: Tensor, slope: Tensor, integrand: Tensor | None) -> None:
        # steps was raised for the accepted rows; the others write back what is there
        slot = self.rows.steps % self.order
        rows = self.all_rows
        self.times[rows, slot] = torch.where(accepted, t, self.times[rows, slot])
        old = self.slopes[rows, slot]
        self.slopes[rows, slot] = torch.where(accepted[:, None], slope.flatten(1), old)
        if integrand is not None:
            self.followed[rows, slot] = torch.where(accepted, integrand[:, -1], self.followed[rows, slot])

    def _control(self, running: Tensor, accepted: Tensor, error: Tensor, known: Tensor) -> None:
        rows = self.rows
        factor = _SAFETY * error ** (-1.0 / (known + 1))
        factor = torch.where(accepted, factor.clamp(0.3, _GROWTH), factor.clamp(_SHRINK, 0.7))
        factor = factor.where(error.isfinite(), _SHRINK)
        left = self.t_end - rows.t
        h = self.h * factor
        # no sliver at the end: what is left is taken in one step, or in two equal ones
        h = torch.where(h.abs() >= left.abs(), left, torch.where(2 * h.abs() > left.abs(), 0.5 * left, h))
        _put(self.h, running, h)
        _put(self.tried, accepted, torch.maximum(h.abs(), 0.5 * self.tried))
        last = accepted & (rows.t == self.t_end)
        stuck = running & ~last & (self.h.abs() < _resolution(rows.t, self.t_end))
        rows.status.masked_fill_(last, int(Status.DONE))
        rows.status.masked_fill_(stuck & error.isfinite(), int(Status.UNDERFLOW))
        rows.status.masked_fill_(stuck & ~error.isfinite(), int(Status.NON_FINITE))

    def give_up(self) -> None:
        self.rows.status.masked_fill_(self.rows.running, int(Status.MAX_STEPS))

    def take(self, index: Tensor) -> _Stepper:
        taken = _Stepper(
            self.system.take(index), self.rows.take(index), self.t_end[index], self.tolerance, self.order
        )
        taken.times, taken.slopes = self.times[index], self.slopes[index]
        taken.followed = self.followed[index]
        taken.h, taken.tried = self.h[index], self.tried[index]
        return taken


def _put(target: Tensor, rows: Tensor, values: Tensor) -> None:
    """target[rows] = values[rows], without asking the device which rows."""
    target.copy_(torch.where(rows.reshape(-1, *(1,) * (target.dim() - 1)), values, target))


def _resolution(t: Tensor, t_end: Tensor) -> Tensor:
    """The smallest step that still moves t reliably."""
    return 16 * torch.finfo(torch.float64).eps * torch.maximum(t.abs(), t_end.abs())
