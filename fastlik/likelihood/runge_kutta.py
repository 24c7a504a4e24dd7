"""Likelihoods by Runge-Kutta methods: adaptive steps of each row's own, or grids doubled until they agree."""

from __future__ import annotations

import torch
from torch import Tensor

from ..solvers.adaptive import Tolerance, integrate
from ..solvers.graph import has_graphs
from ..solvers.grid import integrate_grid
from ..solvers.status import Status
from ..solvers.system import Integration
from ..solvers.tableau import Tableau
from .flow import LikelihoodFlow, Trace
from .fused import Fused
from .problem import Problem, Solution, everywhere

# Measured with Runge-Kutta on the oracle mixtures (d = 2, 3, 8; VP and VE; 128 rows each) at tolerance 1e-3:
# with the answer's local error held to 0.1 and the state's to 0.03 of the tolerance, 52-58 evaluations give a
# mean error of 5e-5 .. 8e-5 and a worst row of 1.4e-3 nats/dim.  The accumulated local errors, times 3, are
# above the true error for 95 % of the rows, and never below a quarter of it.
_ANSWER_SHARE = 0.1
_STATE_SHARE = 0.03
_GROWTH = 3.0
_COARSEST_GRID = 16
_FINEST_GRID = 4096


def solve_adaptive(
    problem: Problem,
    tableau: Tableau,
    flow: LikelihoodFlow,
    z: Tensor,
    u: tuple[float, float],
    kernel: Fused | None,
) -> Solution:
    """Embedded Runge-Kutta steps; state and trace together in the error control."""
    trace = problem.trace
    tolerance = Tolerance(
        rtol=_STATE_SHARE * problem.tolerance,
        atol=_STATE_SHARE * problem.tolerance,
        q_atol=_ANSWER_SHARE * problem.tolerance * max(1, z[:1].numel()),
    )
    if kernel is not None:
        end = kernel.integrate_adaptive(
            z, *u, tableau, tolerance, trace, flow.rows, max_steps=problem.max_steps
        )
        return _of_columns(end, _GROWTH * end.defect, trace)
    end = integrate(
        flow,
        z,
        *everywhere(z, u),
        tableau,
        tolerance,
        q=None if trace is None else z.new_zeros(len(z), trace.columns, dtype=torch.float64),
        reuse_last_stage=trace is None or trace.exact or not trace.fresh,
        max_steps=problem.max_steps,
        backend=problem.backend,
    )
    return _of_columns(end, _GROWTH * end.defect, trace)


def _of_columns(end: Integration, discretisation: Tensor, trace: Trace | None) -> Solution:
    """The solution where every probe had an integral of its own, so that their spread is the error."""
    if trace is None:
        nothing = torch.zeros_like(discretisation)
        return Solution(end, nothing, nothing.clone(), discretisation)
    change = end.q.mean(1)
    if trace.exact:
        variance = torch.zeros_like(change)
    elif trace.probes == 1:
        variance = torch.full_like(change, torch.nan)
    else:
        variance = end.q.var(1) / trace.probes
    return Solution(end, change, variance, discretisation)


def solve_fixed(
    problem: Problem,
    tableau: Tableau,
    flow: LikelihoodFlow,
    z: Tensor,
    u: tuple[float, float],
    kernel: Fused | None,
) -> Solution:
    """A grid for all rows, doubled for those that miss the tolerance.

    The error estimate is the change from the coarser grid.  Rows that the finest grid does not bring to
    the tolerance end with status MAX_STEPS.
    """
    # order p gains 2^p a doubling; believed only up to a factor 4, the asymptotics may be far off
    gain = min(2.0**tableau.order, 4.0) - 1
    steps = _COARSEST_GRID
    result, answer = _on_grid(problem, tableau, flow, z, u, kernel, steps)
    error = torch.full_like(answer, torch.inf)
    open_rows = (result.status == Status.DONE).nonzero().flatten()
    while len(open_rows) and steps < _FINEST_GRID:
        steps *= 2
        some = None if kernel is None else kernel.take(open_rows)
        finer, value = _on_grid(problem, tableau, flow.take(open_rows), z[open_rows], u, some, steps)
        finer.nfe += result.nfe[open_rows]
        error[open_rows] = (value - answer[open_rows]).abs() / gain
        answer[open_rows] = value
        result.put(open_rows, finer)
        missed = (error > problem.tolerance * max(1, z[:1].numel())) & (result.status == Status.DONE)
        open_rows = missed.nonzero().flatten()
    result.status[open_rows] = Status.MAX_STEPS
    return _of_columns(result, error, problem.trace)


def _on_grid(
    problem: Problem,
    tableau: Tableau,
    flow: LikelihoodFlow,
    z: Tensor,
    u: tuple[float, float],
    kernel: Fused | None,
    steps: int,
) -> tuple[Integration, Tensor]:
    """The end of a grid of equal steps, and what it makes of log p up to a constant, (B,)."""
    trace, grid = problem.trace, torch.linspace(*u, steps + 1, dtype=torch.float64)
    shared = steps // _COARSEST_GRID  # the coarse grid's probes
    if kernel is not None:
        end = kernel.integrate_grid(z, grid, tableau, trace, flow.rows, steps_per_node=shared)
    else:
        q = z.new_zeros(len(z), trace.columns, dtype=torch.float64)
        end = integrate_grid(
            flow, z, grid.to(z.device), tableau, q=q, steps_per_node=shared,
            graphs=has_graphs(z.device) and problem.backend != "torch", backend=problem.backend,
        )  # fmt: skip
    return end, end.q.mean(1) + problem.log_prior(end.y * problem.ends.scale[1])
