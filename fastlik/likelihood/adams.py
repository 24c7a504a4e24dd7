"""Likelihoods by Adams' method: steps of each row's own, the trace by quadrature over their nodes."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ..solvers.adams import integrate_adams
from ..solvers.adaptive import Tolerance
from ..solvers.graph import has_graphs
from ..solvers.status import Status, all_done
from ..solvers.system import Integration
from .flow import LikelihoodFlow
from .fused import Fused
from .gradient import Path
from .probing import add_probes
from .problem import Problem, Solution, everywhere
from .trace import TraceIntegral

# Measured at tolerance 1e-3 (benchmarks/results/evaluations.json: mean error in nats/dim; evaluations):
# mixtures in 64 dimensions 2e-4 .. 4e-4; 32-38, trained EDM networks 3e-4 .. 5e-4; 30-41, a trained
# noise-predicting one 7e-4; 45.
# The local errors held to the tolerance are the predictor's, the result is the corrector's, an order better.
_ANSWER_SHARE = 1.5
_STATE_SHARE = 6.0
_FIRST_STEP = 0.02
# of a state of unit scale: with more than that, loose tolerances lose rows of rough networks
_COARSEST_STATE = 0.03
# the tolerance below which order 5 needs fewer steps than order 4
_HIGH_ORDER_BELOW = 1e-4
# The error of the answer, from what its nodes are off by: of the state, and of the trace.  Measured on the
# workloads of benchmarks/work_precision.py, tolerances 1e-2 .. 1e-4: rms of the estimate over that of the
# error 0.46 .. 3.4, no row's error above 6.4 times its estimate.  The sum is what counts for points far off
# narrow modes, where all steps err to one side.
_OF_STATE, _OF_SUM, _OF_TRACE = 0.16, 0.15, 0.45
# times the tolerance: a row is solved again where its estimate is above the first, given up above the second
_REFINE_ABOVE, _GIVE_UP_ABOVE = 3.0, 5.0
_REFINEMENTS = 3
# what the state's rounding costs, nats per dimension in units of its precision: measured on rings in float32,
# where tolerances of 1e-6 and below end at 6e-7 .. 2e-6
_ROUNDING = 8.0
# the same, in nats per dimension, of products of fp16 numbers: on the ring in 2-D the mean error is 1.2e-3
# where it is 6e-4 with fp32's accuracy
_HALF_ROUNDING = 2e-3


def solve_adams(
    problem: Problem,
    flow: LikelihoodFlow,
    z: Tensor,
    u: tuple[float, float],
    kernel: Fused | None,
    differentiable: bool,
) -> Solution:
    """Adams' method, again with a tighter tolerance for the rows whose estimated error misses it, or failed.

    The step control aims at the answer itself: a local error e_z of the state changes log p by
    score . e_z.  The trace is integrated afterwards, from its values at the solver's nodes.
    """
    size = max(1, math.prod(z.shape[1:]))
    rounding = _ROUNDING * torch.finfo(z.dtype).eps
    if problem.precision == "fp16":  # asked for, so that its error is no failure
        rounding = _HALF_ROUNDING
        problem = replace(problem, tolerance=max(problem.tolerance, rounding))
    limit = problem.tolerance * size
    if problem.tolerance < rounding:
        problem = replace(problem, tolerance=rounding)
    order = 4 if problem.tolerance >= _HIGH_ORDER_BELOW else 5
    solution = _adams(problem, flow, z, u, order, kernel, differentiable)
    end = solution.end
    for _ in range(_REFINEMENTS):
        index = _missed(solution, _REFINE_ABOVE * max(limit, rounding * size))
        if index is None:
            break
        problem = replace(problem, tolerance=0.25 * problem.tolerance)
        some = None if kernel is None else kernel.take(index)
        finer = _adams(problem, flow.take(index), z[index], u, order, some, differentiable)
        for counted in ("nfe", "rejected"):
            getattr(finer.end, counted).add_(getattr(end, counted)[index])
        end.put(index, finer.end)
        for mine, theirs in zip(solution[1:4], finer[1:4], strict=True):
            mine[index] = theirs
        if solution.path is not None:
            solution.path.put(index, finer.path)
    solution.discretisation.add_(rounding * size)
    if _any_above(_GIVE_UP_ABOVE * limit, solution.discretisation):
        hopeless = (solution.discretisation > _GIVE_UP_ABOVE * limit) & (end.status == Status.DONE)
        end.status.masked_fill_(hopeless, int(Status.INACCURATE))
    return solution


def _any_above(limit: float, estimates: Tensor) -> bool:
    """Of few rows, a list is quicker than a reduction."""
    return any(estimate > limit for estimate in estimates.tolist())


def _missed(solution: Solution, error: float) -> Tensor | None:
    """The rows to be solved again, for an estimated error above ``error`` or because they failed, if any."""
    status = solution.end.status
    if all_done(status) and not _any_above(error, solution.discretisation):
        return None
    missed = (solution.discretisation > error) & (status == Status.DONE)
    # long steps may have left where the network is sane; shorter ones tell a jump from a sharp turn
    for failed in (Status.NON_FINITE, Status.DISCONTINUOUS):
        missed |= status == failed
    index = missed.nonzero().flatten()
    return index if len(index) else None


def _adams(
    problem: Problem,
    flow: LikelihoodFlow,
    z: Tensor,
    u: tuple[float, float],
    order: int,
    kernel: Fused | None,
    differentiable: bool,
) -> Solution:
    size = max(1, math.prod(z.shape[1:]))
    tolerance = Tolerance(
        rtol=0.0,
        atol=min(_STATE_SHARE * problem.tolerance, _COARSEST_STATE),
        q_atol=_ANSWER_SHARE * problem.tolerance * size,
    )
    steps = {"order": order, "first_step": _FIRST_STEP, "max_steps": problem.max_steps}
    if kernel is not None:
        end, (change, variance, quadrature) = kernel.integrate_adams(
            z, *u, tolerance, problem.trace, flow.rows, **steps
        )
        return Solution(end, change, variance, _error(end, quadrature))
    end, nodes = integrate_adams(
        flow,
        z,
        *everywhere(z, u),
        tolerance,
        keep_states=problem.target_stderr is not None,
        graphs=has_graphs(z.device) and problem.backend != "torch",
        backend=problem.backend,
        **steps,
    )
    trace = problem.trace
    if trace is None:
        nothing = torch.zeros_like(end.defect)
        return Solution(end, nothing, nothing.clone(), _error(end, nothing))
    integral = TraceIntegral(nodes, exact=trace.exact, fresh=trace.fresh, backend=problem.backend)
    if problem.target_stderr is not None:
        add_probes(flow, nodes, integral, problem.target_stderr, end)
    path = Path(nodes.t, nodes.count, order) if differentiable else None
    return Solution(end, integral.value, integral.variance, _error(end, integral.discretisation), path)


def _error(end: Integration, of_trace: Tensor) -> Tensor:
    """(B,) nats: of the state by its local errors, and of the trace's integral."""
    squares = _OF_STATE**2 * end.defect_square
    squares.addcmul_(end.defect, end.defect, value=_OF_SUM**2)
    return squares.addcmul_(of_trace, of_trace, value=_OF_TRACE**2).sqrt_()
