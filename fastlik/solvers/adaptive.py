"""Embedded Runge-Kutta integration with a step size of its own for every row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.rk_step import Controller, advance, combine
from .status import Status
from .system import Integration, System
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
    reuse_last_stage: bool = True,
    max_steps: int = 10_000,
    backend: str = "auto",
) -> Integration:
    """Integrate every row from t0 to t1 (B,) float64, in either direction, never outside that span.

    A row that finishes or fails leaves the batch, and no row's steps depend on another's.

    Args:
        y: (B, *event) float32 or float64.
        q: (B, K) float64 start of the integrals, or None.
        first_step: absolute first step; chosen by Hairer's rule where None.
        reuse_last_stage: the last stage of a step is the first of the next (first same as last).  False
            evaluates it anew, for systems whose right-hand side changes between steps.
        max_steps: attempted steps after which a row is given up with status MAX_STEPS.
    """
    result = Integration.start(y, q, t0)
    index = torch.arange(len(y), device=y.device)
    result.status[t0 == t1] = Status.DONE
    index = index[result.status == Status.RUNNING]
    if len(index) == 0:
        return result
    if len(index) < len(y):
        system = system.take(index)
    stepper = _Stepper(system, result.take(index), t1[index], tableau, tolerance, reuse_last_stage, backend)
    stepper.start(first_step)
    for attempt in range(1, max_steps + 1):
        stepper.step()
        if attempt == max_steps:
            stepper.rows.status[stepper.rows.status == Status.RUNNING] = Status.MAX_STEPS
        running = stepper.rows.status == Status.RUNNING
        if not bool(running.all()):
            finished = ~running
            result.put(index[finished], stepper.rows.take(finished.nonzero().flatten()))
            keep = running.nonzero().flatten()
            index = index[keep]
            if len(index) == 0:
                break
            stepper = stepper.take(keep)
    return result


class _Stepper:
    """The rows still on their way, with the buffers of one step."""

    def __init__(
        self,
        system: System,
        rows: Integration,
        t_end: Tensor,
        tableau: Tableau,
        tolerance: Tolerance,
        reuse_last_stage: bool,
        backend: str,
    ) -> None:
        self.system, self.rows, self.t_end = system, rows, t_end
        self.tableau, self.tolerance = tableau, tolerance
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
        rows = self.rows
        self._evaluate(0, rows.t, rows.y)
        self.first_is_known = True
        span = self.t_end - rows.t
        if first_step is None:
            size = self._first_step(span.sign())
        else:
            size = torch.full_like(span, first_step)
        self.h = torch.minimum(size, span.abs()) * span.sign()

    def _first_step(self, direction: Tensor) -> Tensor:
        rows = self.rows
        scale = self.tolerance.atol + self.tolerance.rtol * rows.y.double().abs()

        def norm(v: Tensor) -> Tensor:
            return (v.double() / scale).flatten(1).square().mean(1).sqrt()

        speed = norm(self.k[0])
        size = 0.01 * norm(rows.y) / speed
        size = torch.where(size.isfinite() & (size > 1e-6), size, 1e-6)
        size = torch.minimum(size, (self.t_end - rows.t).abs())
        h = size * direction
        trial = combine(rows.y, self.k, (1.0,), h, backend=self.backend)
        self._evaluate(1, rows.t + h, trial)
        curvature = norm(self.k[1] - self.k[0]) / size
        steepest = torch.maximum(speed, curvature)
        best = (0.01 / steepest) ** (1 / self.tableau.order)
        return torch.where(best.isfinite(), torch.minimum(100 * size, best), size)

    def _evaluate(self, stage: int, t: Tensor, y: Tensor) -> None:
        slope, integrand = self.system(t, y, self.rows.steps)
        self.k[stage] = slope
        if self.kq is not None:
            self.kq[stage] = integrand
        self.rows.nfe += 1

    def step(self) -> None:
        """One attempt for every row; accepted rows move on."""
        rows, tableau, h = self.rows, self.tableau, self.h
        if not (self.reuse_last_stage or self.first_is_known):
            self._evaluate(0, rows.t, rows.y)
        self.first_is_known = False
        t, y = rows.t, rows.y
        for i in range(1, tableau.stages):
            t = self._inside(rows.t + tableau.c[i] * h)
            y = combine(rows.y, self.k, tableau.a[i], h, backend=self.backend)
            self._evaluate(i, t, y)
        step = advance(
            rows.y,
            self.k,
            h,
            b=tableau.b,
            e=tableau.e,
            rtol=self.tolerance.rtol,
            atol=self.tolerance.atol,
            q=rows.q,
            kq=self.kq,
            q_atol=self.tolerance.q_atol,
            sensitivity=self.system.sensitivity(t, y, self.k[-1]),
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
        rows.steps += step.accepted
        rows.rejected += ~step.accepted
        self._stop_rows_without_slope(step.error)

    def _inside(self, t: Tensor) -> Tensor:
        """Rounding must not carry a stage past the end of the span."""
        ahead = torch.minimum(t, self.t_end)
        back = torch.maximum(t, self.t_end)
        return torch.where(self.h >= 0, ahead, back)

    def _stop_rows_without_slope(self, error: Tensor) -> None:
        """Shrinking the step cannot mend a slope that is not finite at the step's start."""
        bad = (~error.isfinite()).nonzero().flatten()
        if len(bad) == 0:
            return
        known = self.k[0, bad].flatten(1).isfinite().all(1)
        if self.kq is not None:
            known &= self.kq[0, bad].isfinite().all(1)
        self.rows.status[bad[~known]] = Status.NON_FINITE

    def take(self, index: Tensor) -> _Stepper:
        taken = _Stepper(
            self.system.take(index),
            self.rows.take(index),
            self.t_end[index],
            self.tableau,
            self.tolerance,
            self.reuse_last_stage,
            self.backend,
        )
        taken.k[0] = self.k[0, index]
        if self.kq is not None:
            taken.kq[0] = self.kq[0, index]
        taken.h = self.h[index]
        taken.error_prev, taken.rejected = self.error_prev[index], self.rejected[index]
        return taken
