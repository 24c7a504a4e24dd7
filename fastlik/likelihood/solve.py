"""One batch's likelihood ODE, solved."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import torch
from torch import Tensor

from ..solvers.status import Status, all_done
from ..solvers.system import Integration
from ..solvers.tableau import TABLEAUS
from .adams import solve_adams
from .flow import LikelihoodFlow
from .fused import Fused, fuse
from .gradient import attach
from .problem import Problem, Solution
from .result import NLL
from .runge_kutta import solve_adaptive, solve_fixed

_LOG = logging.getLogger(__name__)


def solve(problem: Problem, x: Tensor, rows: Tensor, condition: dict) -> NLL:
    """One batch: the latent's density plus the change of variables."""
    scale, u = problem.ends
    z = x / scale[0]
    flow = problem.flow(rows, condition)
    # a plain evaluation yields plain tensors
    differentiable = torch.is_grad_enabled() and x.requires_grad and problem.target_stderr is None
    with torch.no_grad():
        solution = integrate_flow(problem, flow, z.detach(), u, differentiable)
    end = solution.end.y
    if solution.path is not None:
        end, change = attach(flow, solution.path, z, end, solution.change)
        solution = solution._replace(change=change)
    return as_nll(problem, solution, end * scale[1])


def integrate_flow(
    problem: Problem,
    flow: LikelihoodFlow,
    z: Tensor,
    u: tuple[float, float],
    differentiable: bool = False,
) -> Solution:
    """From u[0] to u[1], in either direction, by the problem's method.

    An MLP's whole ODE is integrated in one native call where that gives all that is asked for.
    """
    if len(z) == 0:
        nothing = torch.zeros(0, dtype=torch.float64, device=z.device)
        return Solution(Integration.start(z, None, nothing), nothing, nothing, nothing)
    if problem.method == "adams":
        # an exact trace has no noise that more probes at the nodes would lessen
        adds_probes = problem.target_stderr is not None and not problem.trace.exact
        if differentiable or adds_probes:
            kernel = _kernel_or_none(problem, "target_stderr and gradients need the solver's nodes")
        else:
            kernel = _kernel(problem, z, u, flow.condition)
        return solve_adams(problem, flow, z, u, kernel, differentiable)
    tableau, kernel = TABLEAUS[problem.method], _kernel(problem, z, u, flow.condition)
    solver = solve_adaptive if tableau.adaptive else solve_fixed
    return solver(problem, tableau, flow, z, u, kernel)


def with_closed_form(problem: Problem, x: Tensor, condition: dict) -> Problem:
    """The problem with the exact trace where that costs no tangents: MLPs of one or two hidden layers."""
    if x.requires_grad or problem.trace.exact:
        return problem
    kernel = _kernel(problem, x, problem.ends.u, condition)
    if kernel is None or not kernel.has_closed_form:
        return problem
    return replace(problem, trace=replace(problem.trace, exact=True))


def _kernel(problem: Problem, z: Tensor, u: tuple[float, float], condition: dict) -> Fused | None:
    """The native kernel of the whole ODE, or None; the log of level debug says why."""
    if problem.backend == "torch" or (problem.trace is not None and problem.trace.mode != "auto"):
        found = "PyTorch's operations, or a mode of derivatives, were asked for"
    else:
        found = fuse(problem.model, problem.clock, z, u, condition, problem.precision)
        if isinstance(found, Fused) and problem.is_adaptive:
            found = found.why_no_steps(*u) or found
    return _kernel_or_none(problem, found)


def _kernel_or_none(problem: Problem, found: Fused | str) -> Fused | None:
    if not isinstance(found, str):
        return found
    if problem.precision == "fp16":
        raise RuntimeError(
            f'precision="fp16" is that of a CUDA kernel for MLPs, and there is none here: {found}'
        )
    _LOG.debug("no kernel integrates this model's ODE: %s", found)
    return None


def as_nll(problem: Problem, solution: Solution, latent: Tensor) -> NLL:
    """The result for rows integrated from the data to the prior."""
    end = solution.end
    size = max(1, math.prod(latent.shape[1:]))
    at_data, at_prior = problem.ends.scale
    nats = -(problem.log_prior(latent) + solution.change + size * math.log(at_prior / at_data))
    status = end.status
    if not (all_done(status) and math.isfinite(nats.detach().sum())):
        done = status == Status.DONE
        good = done & nats.isfinite()
        status = status.masked_fill(done & ~good, int(Status.NON_FINITE))
        nats = nats.masked_fill(~good, torch.nan)
    return NLL(
        nats=nats,
        stderr=solution.variance.sqrt(),
        discretisation=solution.discretisation,
        latent=latent.detach(),
        nfe=end.nfe,
        trace_evaluations=end.nfe.clone(),
        status=status,
        stopped_at=problem.times(end.t),
    )
