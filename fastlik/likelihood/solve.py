"""One batch's likelihood ODE, solved: Adams' or Runge-Kutta steps of each row's own, or grids doubled until
they agree."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..model import ScoreModel
from ..solvers.adams import integrate_adams
from ..solvers.adaptive import Tolerance, integrate
from ..solvers.clock import Clock
from ..solvers.grid import integrate_grid
from ..solvers.status import Status
from ..solvers.system import Integration
from ..solvers.tableau import TABLEAUS, Tableau
from .flow import LikelihoodFlow, Trace
from .fused import Fused, fuse
from .gradient import Path, attach
from .prior import Prior
from .probing import add_probes
from .result import NLL
from .trace import TraceIntegral

_LOG = logging.getLogger(__name__)
METHODS = ("adams", *TABLEAUS)
# Runge-Kutta methods and the reverse SDE; beyond high the clock is linear in the angle
CLOCK = Clock(low=0.3, high=3.0)
# a long last step of one evaluation would weigh a noise prediction's error there by 1 / alpha
# (noise-predicting U-Net: 1.3e-3 nats/dim with high = 10, 7e-4 with 30, for the same evaluations)
ADAMS_CLOCK = Clock(low=0.3, high=30.0)
# Measured at tolerance 1e-3 with the Adams method (mean error, worst row in nats/dim; evaluations): rings
# of eight Gaussians 2.6e-4, 1.4e-3; 37, mixtures in 64 dimensions 2e-4, 1e-3; 33-40, trained EDM networks
# 2e-4 .. 4e-4, 1.7e-3; 29-38, trained noise-predicting VP networks 7e-4, 2.5e-3; 43-49.
# The local errors held to the tolerance are the predictor's, the result is the corrector's, an order better.
_ADAMS_ANSWER_SHARE = 1.0
_ADAMS_STATE_SHARE = 4.0
_ADAMS_FIRST_STEP = 0.02
# of a state of unit scale: with more than that, loose tolerances lose rows of rough networks
_COARSEST_STATE = 0.03
# the tolerance below which order 5 needs fewer steps than order 4
_HIGH_ORDER_BELOW = 1e-4
# The error of the answer, from what its nodes are off by: of the state, and of the trace.  Measured on the
# workloads of benchmarks/work_precision.py, tolerances 1e-2 .. 1e-4: rms of the estimate over that of the
# error 0.65 .. 2.3, no row's error above 4.4 times its estimate.  The sum is what counts for points far off
# narrow modes, where all steps err to one side (rings with a standard deviation of 0.02: at most 1.6 times).
_OF_STATE, _OF_SUM, _OF_TRACE = 0.16, 0.15, 0.45
# times the tolerance: a row is solved again where its estimate is above the first, given up above the second
_REFINE_ABOVE, _GIVE_UP_ABOVE = 3.0, 5.0
_REFINEMENTS = 3
# what the state's rounding costs, nats per dimension in units of its precision: measured on rings in float32,
# where tolerances of 1e-6 and below end at 6e-7 .. 2e-6
_ROUNDING = 8.0
# Measured with Runge-Kutta on the oracle mixtures (d = 2, 3, 8; VP and VE; 128 rows each) at tolerance 1e-3:
# with the answer's local error held to 0.1 and the state's to 0.03 of the tolerance, 52-58 evaluations give a
# mean error of 5e-5 .. 8e-5 and a worst row of 1.4e-3 nats/dim.  The accumulated local errors, times 3, are
# above the true error for 95 % of the rows, and never below a quarter of it.
_ANSWER_SHARE = 0.1
_STATE_SHARE = 0.03
_GROWTH = 3.0
_COARSEST_GRID = 16
_FINEST_GRID = 4096


@dataclass(frozen=True)
class Problem:
    """Everything about an evaluation that does not depend on the rows."""

    model: ScoreModel
    t_data: float
    t_prior: float
    prior: Prior
    trace: Trace | None
    method: str
    tolerance: float
    max_steps: int
    backend: str
    target_stderr: float | None = None

    @property
    def clock(self) -> Clock:
        """In which variable the method steps."""
        return ADAMS_CLOCK if self.method == "adams" else CLOCK

    def ends(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The scale sqrt(alpha^2 + sigma^2) and the clock at (t_data, t_prior), (2,) float64 each."""
        schedule = self.model.schedule
        t = torch.tensor([self.t_data, self.t_prior], dtype=torch.float64, device=device)
        return schedule.scale(t), self.clock.u(schedule.angle(t))

    def flow(self, rows: Tensor, condition: dict) -> LikelihoodFlow:
        """The ODE of the rows with these ids."""
        companion = self.method == "adams"
        return LikelihoodFlow(self.model, self.clock, self.trace, rows, condition, companion)

    def times(self, u: Tensor) -> Tensor:
        """The schedule's times at clock values ``u``."""
        return self.model.schedule.t_at_angle(self.clock.angle(u))

    def log_prior(self, latent: Tensor) -> Tensor:
        """(B,) float64 nats of latents (B, *event)."""
        if len(latent) == 0:
            return torch.zeros(0, dtype=torch.float64, device=latent.device)
        return self.prior.log_prob(latent)


class Solution(NamedTuple):
    """An integration's ``end`` with int tr dv/dz dphi along it, the variance of that by the probes, and the
    estimated error of the answer, all (B,) float64 nats; the ``path`` by which it can be differentiated."""

    end: Integration
    change: Tensor
    variance: Tensor
    discretisation: Tensor
    path: Path | None = None


def solve(problem: Problem, x: Tensor, rows: Tensor, condition: dict) -> NLL:
    """One batch: the latent's density plus the change of variables."""
    scale, u = problem.ends(x.device)
    z = x / scale[0].to(x.dtype)
    flow = problem.flow(rows, condition)
    # a plain evaluation yields plain tensors
    differentiable = torch.is_grad_enabled() and x.requires_grad and problem.target_stderr is None
    with torch.no_grad():
        solution = integrate_flow(problem, flow, z.detach(), u, differentiable)
    end = solution.end.y
    if solution.path is not None:
        end, change = attach(flow, solution.path, z, end, solution.change)
        solution = solution._replace(change=change)
    return as_nll(problem, solution, end * scale[1].to(x.dtype), scale)


def integrate_flow(
    problem: Problem, flow: LikelihoodFlow, z: Tensor, u: Tensor, differentiable: bool = False
) -> Solution:
    """From u[0] to u[1], in either direction, by the problem's method.

    An MLP's whole ODE is integrated in one native call where that gives all that is asked for.
    """
    if len(z) == 0:
        nothing = u.new_zeros(0)
        return Solution(Integration.start(z, None, nothing), nothing, nothing, nothing)
    if problem.method == "adams":
        needs_nodes = differentiable or problem.target_stderr is not None
        kernel = None if needs_nodes else _kernel(problem, z, u, flow.condition)
        return _solve_adams(problem, flow, z, u, kernel, differentiable)
    tableau = TABLEAUS[problem.method]
    if tableau.adaptive:
        return _solve_adaptive(problem, tableau, flow, z, u, _kernel(problem, z, u, flow.condition))
    return _solve_fixed(problem, tableau, flow, z, u)


def with_closed_form(problem: Problem, x: Tensor, condition: dict) -> Problem:
    """The problem with the exact trace where that costs no tangents: MLPs of one or two hidden layers."""
    if x.requires_grad or problem.trace.exact:
        return problem
    kernel = _kernel(problem, x, problem.ends(x.device)[1], condition)
    if kernel is None or not kernel.has_closed_form:
        return problem
    return replace(problem, trace=replace(problem.trace, exact=True))


def _kernel(problem: Problem, z: Tensor, u: Tensor, condition: dict) -> Fused | None:
    """The native kernel of the whole ODE, or None; the log of level debug says why."""
    if problem.backend == "torch" or (problem.trace is not None and problem.trace.mode != "auto"):
        return None
    found = fuse(problem.model, problem.clock, z, tuple(u.tolist()), condition)
    if isinstance(found, str):
        _LOG.debug("no kernel integrates this model's ODE: %s", found)
        return None
    return found


def as_nll(problem: Problem, solution: Solution, latent: Tensor, scale: Tensor) -> NLL:
    """The result for rows integrated from the data to the prior, where the scales are ``scale`` (2,)."""
    end = solution.end
    size = max(1, latent[:1].numel())
    nats = -(problem.log_prior(latent) + solution.change + size * (scale[1] / scale[0]).log())
    failed = (end.status != Status.DONE) | ~nats.isfinite()
    status = torch.where(failed & (end.status == Status.DONE), int(Status.NON_FINITE), end.status)
    return NLL(
        nats=nats.masked_fill(failed, torch.nan),
        stderr=solution.variance.sqrt(),
        discretisation=solution.discretisation,
        latent=latent.detach(),
        nfe=end.nfe,
        trace_evaluations=end.nfe.clone(),
        status=status,
        stopped_at=problem.times(end.t),
    )


def _solve_adams(
    problem: Problem,
    flow: LikelihoodFlow,
    z: Tensor,
    u: Tensor,
    kernel: Fused | None,
    differentiable: bool,
) -> Solution:
    """Adams' method, again with a tighter tolerance for the rows whose estimated error misses it, or failed.

    The step control aims at the answer itself: a local error e_z of the state changes log p by
    score . e_z.  The trace is integrated afterwards, from its values at the solver's nodes.
    """
    size = max(1, z[:1].numel())
    limit, rounding = problem.tolerance * size, _ROUNDING * torch.finfo(z.dtype).eps
    problem = replace(problem, tolerance=max(problem.tolerance, rounding))
    order = 4 if problem.tolerance >= _HIGH_ORDER_BELOW else 5
    solution = _adams(problem, flow, z, u, order, kernel, differentiable)
    end = solution.end
    for _ in range(_REFINEMENTS):
        missed = (solution.discretisation > _REFINE_ABOVE * max(limit, rounding * size)) & (
            end.status == Status.DONE
        )
        missed |= end.status == Status.NON_FINITE  # long steps may have left where the network is sane
        index = missed.nonzero().flatten()
        if len(index) == 0:
            break
        problem = replace(problem, tolerance=0.25 * problem.tolerance)
        kernel = kernel and kernel.take(index)
        finer = _adams(problem, flow.take(index), z[index], u, order, kernel, differentiable)
        for counted in ("nfe", "rejected"):
            getattr(finer.end, counted).add_(getattr(end, counted)[index])
        end.put(index, finer.end)
        for mine, theirs in zip(solution[1:4], finer[1:4], strict=True):
            mine[index] = theirs
        if solution.path is not None:
            solution.path.put(index, finer.path)
    solution.discretisation.add_(rounding * size)
    hopeless = (solution.discretisation > _GIVE_UP_ABOVE * limit) & (end.status == Status.DONE)
    end.status[hopeless] = Status.INACCURATE
    return solution


def _adams(
    problem: Problem,
    flow: LikelihoodFlow,
    z: Tensor,
    u: Tensor,
    order: int,
    kernel: Fused | None,
    differentiable: bool,
) -> Solution:
    size = max(1, z[:1].numel())
    tolerance = Tolerance(
        rtol=0.0,
        atol=min(_ADAMS_STATE_SHARE * problem.tolerance, _COARSEST_STATE),
        q_atol=_ADAMS_ANSWER_SHARE * problem.tolerance * size,
    )
    steps = {"order": order, "first_step": _ADAMS_FIRST_STEP, "max_steps": problem.max_steps}
    if kernel is not None:
        end, (change, variance, quadrature) = kernel.integrate_adams(
            z, *u.tolist(), tolerance, problem.trace, flow.rows, **steps
        )
        return Solution(end, change, variance, _error(end, quadrature))
    end, nodes = integrate_adams(
        flow,
        z,
        u[0].expand(len(z)),
        u[1].expand(len(z)),
        tolerance,
        keep_states=problem.target_stderr is not None,
        **steps,
    )
    trace = problem.trace
    if trace is None:
        nothing = torch.zeros_like(end.defect)
        return Solution(end, nothing, nothing.clone(), _error(end, nothing))
    integral = TraceIntegral(nodes, exact=trace.exact, fresh=trace.fresh)
    if problem.target_stderr is not None:
        add_probes(flow, nodes, integral, problem.target_stderr, end)
    path = Path(nodes.t, nodes.count, order) if differentiable else None
    return Solution(end, integral.value, integral.variance, _error(end, integral.discretisation), path)


def _error(end: Integration, of_trace: Tensor) -> Tensor:
    """(B,) nats: of the state by its local errors, and of the trace's integral."""
    squares = _OF_STATE**2 * end.defect_square + _OF_SUM**2 * end.defect.square()
    return (squares + (_OF_TRACE * of_trace).square()).sqrt()


def _solve_adaptive(
    problem: Problem, tableau: Tableau, flow: LikelihoodFlow, z: Tensor, u: Tensor, kernel: Fused | None
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
            z, *u.tolist(), tableau, tolerance, trace, flow.rows, max_steps=problem.max_steps
        )
        return _of_columns(end, _GROWTH * end.defect, trace)
    end = integrate(
        flow,
        z,
        u[0].expand(len(z)),
        u[1].expand(len(z)),
        tableau,
        tolerance,
        q=None if trace is None else u.new_zeros(len(z), trace.columns),
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


def _solve_fixed(problem: Problem, tableau: Tableau, flow: LikelihoodFlow, z: Tensor, u: Tensor) -> Solution:
    """A grid for all rows, doubled for those that miss the tolerance.

    The error estimate is the change from the coarser grid.  Rows that the finest grid does not bring to
    the tolerance end with status MAX_STEPS.
    """
    scale, _ = problem.ends(z.device)
    # order p gains 2^p a doubling; believed only up to a factor 4, the asymptotics may be far off
    gain = min(2.0**tableau.order, 4.0) - 1

    def on_grid(flow: LikelihoodFlow, z: Tensor, steps: int) -> tuple[Integration, Tensor]:
        end = integrate_grid(
            flow,
            z,
            torch.linspace(u[0].item(), u[1].item(), steps + 1, dtype=torch.float64).to(u.device),
            tableau,
            q=u.new_zeros(len(z), problem.trace.columns),
            steps_per_node=steps // _COARSEST_GRID,
            backend=problem.backend,
        )
        return end, end.q.mean(1) + problem.log_prior(end.y * scale[1].to(z.dtype))

    steps = _COARSEST_GRID
    result, answer = on_grid(flow, z, steps)
    error = torch.full_like(answer, torch.inf)
    open_rows = (result.status == Status.DONE).nonzero().flatten()
    while len(open_rows) and steps < _FINEST_GRID:
        steps *= 2
        finer, value = on_grid(flow.take(open_rows), z[open_rows], steps)
        finer.nfe += result.nfe[open_rows]
        error[open_rows] = (value - answer[open_rows]).abs() / gain
        answer[open_rows] = value
        result.put(open_rows, finer)
        missed = (error > problem.tolerance * max(1, z[:1].numel())) & (result.status == Status.DONE)
        open_rows = missed.nonzero().flatten()
    result.status[open_rows] = Status.MAX_STEPS
    return _of_columns(result, error, problem.trace)
