"""Embedded Runge-Kutta integration with a step size of its own for every row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.rk_step import Controller, advance, combine
from ..ops.rk_step.reference import power, row_sum
from .dense import Recorder, Step
from .status import Status
from .system import Integration, System, not_past
from .tableau import Tableau


@dataclass(frozen=True)
class Tolerance:
    """Local error per step: rtol, atol of the state (root mean square over the event); q_atol of the
    answer, which is the integral q averaged over its K columns plus sensitivity . y."""

    rtol: float
    atol: float
    q_atol: float | None = None


def integrate(
    system: System,
    y: Tensor,
    t0: Tensor,
    t1: Tensor,
    tableau: Tableau,
    tolerance: Tolerance,
    *,
    q: Tensor | None = None,
    first_step: float | None = None,
    max_step: float = torch.inf,
    reuse_last_stage: bool = True,
    max_steps: int = 10_000,
    recorder: Recorder | None = None,
    backend: str = "auto",
) -> Integration:
    """Integrate every row from t0 to t1 (B,) float64, in either direction, never outside that span.

    A row that finishes or fails leaves the batch, and no row's steps depend on another's.  The host
    waits for the device once per attempted step, to learn how many rows are left.

    Args:
        y: (B, *event) float32 or float64.
        q: (B, K) float64 start of the integrals, or None.
        first_step: absolute first step; chosen by Hairer's rule where None.
        max_step: absolute largest step.
        reuse_last_stage: the last stage of a step is the first of the next (first same as last).  False
            evaluates it anew, for systems whose right-hand side changes between steps.
        max_steps: attempted steps after which a row is given up with status MAX_STEPS.
        recorder: is shown every attempt, for output between the ends of steps.
    """
    result = Integration.start(y, q, t0)
    result.status.masked_fill_(t0 == t1, int(Status.DONE))
    index = torch.arange(len(y), device=y.device)
    stepper = _Stepper(
        index, system, result, t1.contiguous(), tableau, tolerance, max_step, reuse_last_stage, backend
    ).without_finished(result, *_read(result.running.sum()))
    if len(stepper.index):
        stepper.start(first_step)
        stepper = stepper.without_finished(result, *_read(stepper.rows.running.sum()))
    for attempt in range(1, max_steps + 1):
        if len(stepper.index) == 0:
            break
        step = stepper.step(recorded=recorder is not None)
        if attempt == max_steps:
            stepper.rows.status.masked_fill_(stepper.rows.running, int(Status.MAX_STEPS))
        if recorder is None:
            (running,) = _read(stepper.rows.running.sum())
        else:
            pending = recorder.pending(step)
            running, total = _read(stepper.rows.running.sum(), pending.sum())
            if total:
                recorder.add(step, pending, total)
        stepper = stepper.without_finished(result, running)
    return result


def _read(*counts: Tensor) -> list[int]:
    """The counts (), with one transfer: the only place where the host waits for the device."""
    return torch.stack(counts).tolist()


class _Stepper:
    """The rows still on their way, at positions ``index`` of the batch, with the buffers of one step."""

    def __init__(
        self,
        index: Tensor,
        system: System,
        rows: Integration,
        t_end: Tensor,
        tableau: Tableau,
        tolerance: Tolerance,
        max_step: float,
        reuse_last_stage: bool,
        backend: str,
    ) -> None:
        self.index, self.system, self.rows, self.t_end = index, system, rows, t_end
        self.tableau, self.tolerance, self.max_step = tableau, tolerance, max_step
        self.reuse_last_stage, self.backend = reuse_last_stage, backend
        self.controller = Controller(order=tableau.order)
        self.k = rows.y.new_empty(tableau.stages, *rows.y.shape)
        self.kq = None if rows.q is None else rows.q.new_empty(tableau.stages, *rows.q.shape)
        self.h = torch.zeros_like(rows.t)
        self.error_prev = torch.full_like(rows.t, 1e-4)
        self.rejected = torch.zeros_like(rows.status, dtype=torch.bool)
        self.first_is_known = False

    def start(self, first_step: float | None) -> None:
        """Evaluate the first stage and choose the first step (Hairer, Norsett, Wanner, II.4)."""
        self._evaluate_first()
        self.first_is_known = True
        span = self.t_end - self.rows.t
        if first_step is None:
            size = self._first_step(span)
        else:
            size = torch.full_like(span, first_step)
        self.h = torch.minimum(size.clamp(max=self.max_step), span.abs()) * span.sign()

    def _first_step(self, span: Tensor) -> Tensor:
        rows = self.rows
        scale = self.tolerance.atol + self.tolerance.rtol * rows.y.double().abs()

        def norm(v: Tensor) -> Tensor:
            scaled = (v.double() / scale).flatten(1)
            return (row_sum(scaled.square()) / scaled.shape[1]).sqrt()

        speed = norm(self.k[0])
        size = 0.01 * norm(rows.y) / speed
        size = torch.where(size.isfinite() & (size > 0), size, 1e-6 * span.abs())
        size = torch.minimum(size, span.abs())
        h = size * span.sign()
        trial = combine(rows.y, self.k, (1.0,), h, backend=self.backend)
        self._evaluate(1, not_past(self.t_end, h, rows.t + h), trial)
        curvature = norm(self.k[1] - self.k[0]) / size
        steepest = torch.maximum(speed, curvature)
        best = power(0.01 / steepest, 1 / self.tableau.order)
        return torch.where(best.isfinite(), torch.minimum(100 * size, best), size)

    def _evaluate(self, stage: int, t: Tensor, y: Tensor) -> None:
        slope, integrand = self.system(t, y, self.rows.steps)
        self.k[stage] = slope
        if self.kq is not None:
            self.kq[stage] = integrand
        self.rows.nfe += 1

    def _evaluate_first(self) -> None:
        """The stage at the start of the step; no smaller step can mend it where it is not finite."""
        self._evaluate(0, self.rows.t.clone(), self.rows.y)  # who keeps the times keeps these ones
        known = self.k[0].flatten(1).isfinite().all(1)
        if self.kq is not None:
            known &= self.kq[0].isfinite().all(1)
        self.rows.status.masked_fill_(~known, int(Status.NON_FINITE))

    def step(self, recorded: bool) -> Step | None:
        """One attempt for every row; accepted rows move on.  Returns what happened, if ``recorded``."""
        rows, tableau, h = self.rows, self.tableau, self.h
        if not (self.reuse_last_stage or self.first_is_known):
            self._evaluate_first()
        self.first_is_known = False
        t, y = rows.t, rows.y
        for i in range(1, tableau.stages):
            t = not_past(self.t_end, h, rows.t + tableau.c[i] * h)
            y = combine(rows.y, self.k, tableau.a[i], h, backend=self.backend)
            self._evaluate(i, t, y)
        sensitivity = self.system.sensitivity(t, y, self.k[-1])
        if not recorded:
            self._advance(sensitivity)
            return None
        # advance() works in place
        t, h, y, first = rows.t.clone(), h.clone(), rows.y.clone(), self.k[0].clone()
        self._advance(sensitivity)
        return Step(self.index, t, rows.t, h, y, rows.y, first, self.k[1:], tableau.dense, self.backend)

    def _advance(self, sensitivity: Tensor | None) -> None:
        rows, tableau, tolerance = self.rows, self.tableau, self.tolerance
        step = advance(
            rows.y,
            self.k,
            self.h,
            b=tableau.b,
            e=tableau.e,
            rtol=tolerance.rtol,
            atol=tolerance.atol,
            q=rows.q,
            kq=self.kq,
            q_atol=tolerance.q_atol,
            sensitivity=sensitivity,
            controller=self.controller,
            error_prev=self.error_prev,
            rejected=self.rejected,
            t=rows.t,
            t_end=self.t_end,
            status=rows.status,
            defect=rows.defect,
            fsal=self.reuse_last_stage,
            backend=self.backend,
        )
        self.h.clamp_(-self.max_step, self.max_step)
        rows.steps += step.accepted
        rows.rejected += ~step.accepted

    def without_finished(self, result: Integration, running: int) -> _Stepper:
        """The stepper of the ``running`` rows that are; the others go to the result."""
        if running == len(self.index):
            return self
        mask = self.rows.running
        finished = torch.nonzero_static(~mask, size=len(mask) - running).flatten()
        result.put(self.index[finished], self.rows.take(finished))
        return self._take(torch.nonzero_static(mask, size=running).flatten())

    def _take(self, keep: Tensor) -> _Stepper:
        taken = _Stepper(
            self.index[keep],
            self.system.take(keep),
            self.rows.take(keep),
            self.t_end[keep],
            self.tableau,
            self.tolerance,
            self.max_step,
            self.reuse_last_stage,
            self.backend,
        )
        taken.k[0] = self.k[0, keep]
        if self.kq is not None:
            taken.kq[0] = self.kq[0, keep]
        taken.h, taken.first_is_known = self.h[keep], self.first_is_known
        taken.error_prev, taken.rejected = self.error_prev[keep], self.rejected[keep]
        return taken
