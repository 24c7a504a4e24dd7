"""Samples of a model, by its probability-flow ODE or its reverse SDE: ``fastlik.sample``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import checks
from .derivatives.divergence import choose_method
from .derivatives.probes import Stream, gaussian
from .likelihood.flow import Trace
from .likelihood.inputs import time_span
from .likelihood.prior import choose_prior
from .likelihood.problem import Problem
from .likelihood.result import NLL, warn_of_failures
from .likelihood.solve import as_nll, integrate_flow
from .model import ScoreModel, check_model, evaluating
from .solvers.status import Status

METHODS = ("auto", "adams", "rk45", "tsit5", "sde")


def sample(
    model: ScoreModel,
    shape_or_n: int | tuple[int, ...],
    *,
    method: str = "auto",
    tolerance: float = 1e-3,
    steps: int = 256,
    condition: dict | None = None,
    divergence: str = "auto",
    probes: int = 1,
    seed: int = 0,
    prior: str = "auto",
    return_nll: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, NLL]:
    """Draw samples; sample i is a function of (seed, i) alone.

    Args:
        model: from :func:`fastlik.wrap` or :func:`fastlik.train`.
        shape_or_n: (n, *event), or n where the model knows its event shape (trained models do).
        method: "auto", "adams", "rk45" and "tsit5" integrate the ODE with per-sample steps; "sde" takes
            ``steps`` ancestral steps of the reverse SDE (Ho et al. 2020, eq. 7, for any schedule).
        tolerance: of the ODE, nats per dimension as in :func:`fastlik.ode_nll`.
        condition: keyword arguments of the network; tensors of n rows are split with the samples.
        prior: "auto", "standard" or a distribution over the flattened latent, as in ``ode_nll``.
        return_nll: also return the samples' :class:`NLL` (continuous density, nats), from the same
            integration; ``divergence`` and ``probes`` say how.  ODE methods only.

    Returns:
        (n, *event) in the network's precision, or (samples, NLL).

    Raises:
        ValueError, TypeError: unknown options, or an event shape that is not known.
    """
    checks.check_choice("method", method, METHODS)
    checks.check_count("steps", steps)
    checks.check_count("probes", probes)
    checks.check_count("seed", seed, least=0)
    checks.check_positive("tolerance", tolerance)
    check_model(model)
    if method == "sde" and return_nll:
        raise ValueError("the reverse SDE has no likelihood by ODE: return_nll needs an ODE method")
    shape = _shape(model, shape_or_n)
    size = math.prod(shape[1:])
    t_data, t_prior = time_span(model, None, None)
    reference = next(model.parameters(), torch.zeros(0))
    exact = choose_method(divergence, size) == "exact"
    problem = Problem(
        model=model,
        t_data=t_data,
        t_prior=t_prior,
        prior=choose_prior(prior, model, t_prior, size, reference.device),
        trace=Trace(exact, probes, "rademacher", True, seed, "auto") if return_nll else None,
        method="adams" if method == "auto" else method,
        tolerance=tolerance,
        max_steps=5000,
        backend=backend,
    )
    rows = torch.arange(shape[0], device=reference.device)
    noise = gaussian(seed, Stream.PRIOR, rows, 0, 0, size)
    latent = problem.prior.sample(noise, seed).reshape(shape).to(reference.dtype)
    condition = dict(condition or {})
    with evaluating(model), torch.no_grad():
        if method == "sde":
            return _reverse_sde(problem, latent, steps, condition, seed)
        return _reverse_ode(problem, latent, rows, condition, return_nll)


def _shape(model: ScoreModel, shape_or_n: int | tuple[int, ...]) -> tuple[int, ...]:
    if not isinstance(shape_or_n, int):
        shape = tuple(shape_or_n)
        if len(shape) < 2:
            raise ValueError(f"the shape of samples is (n, *event), got {shape}")
        return shape
    if model.event_shape is None:
        raise ValueError(
            f"the model does not know its event shape: pass ({shape_or_n}, *event) instead of {shape_or_n}"
        )
    return (shape_or_n, *model.event_shape)


def _reverse_ode(
    problem: Problem, latent: Tensor, rows: Tensor, condition: dict, return_nll: bool
) -> Tensor | tuple[Tensor, NLL]:
    scale, u = problem.ends
    flow = problem.flow(rows, condition)
    solution = integrate_flow(problem, flow, latent / scale[1], u[::-1])
    end = solution.end
    samples = end.y * scale[0]
    failed = end.status != Status.DONE
    samples.masked_fill_(failed.reshape(-1, *(1,) * (samples.dim() - 1)), torch.nan)
    warn_of_failures(end.status, problem.times(end.t), "have no sample")
    if not return_nll:
        return samples
    # the change was integrated from the prior to the data
    return samples, as_nll(problem, solution._replace(change=-solution.change), latent)


def _reverse_sde(problem: Problem, latent: Tensor, steps: int, condition: dict, seed: int) -> Tensor:
    """Ancestral sampling in z = x / sqrt(alpha^2 + sigma^2): the Gaussian posterior of each step,

    y' = w y + (1 - w) x0_hat + rho' sqrt(1 - w) eps,   w = (rho' / rho)^2,   y = x / alpha,

    exact for the x0_hat at hand; written so that rho = infinity (alpha = 0) is regular.
    """
    scale, u = problem.ends
    angles = problem.clock.angle(torch.linspace(u[1], u[0], steps + 1, dtype=torch.float64))
    z = latent / scale[1]
    rows = torch.arange(len(z), device=z.device)
    for n, (now, then) in enumerate(zip(angles[:-1], angles[1:], strict=True)):
        v = problem.model.angular_velocity(z, now.expand(len(z)).to(z.device), **condition)
        denoised = now.cos().item() * z - now.sin().item() * v
        keep = (then.tan() / now.tan()) ** 2
        noise = gaussian(seed, Stream.NOISE, rows, 0, n, z[:1].numel())
        noise = noise.reshape(z.shape).to(z.dtype)
        z = (
            (then.sin() ** 2 / then.cos() * now.cos() / now.sin() ** 2).item() * z
            + (then.cos() * (1 - keep)).item() * denoised
            + (then.sin() * (1 - keep).sqrt()).item() * noise
        )
    return z * scale[0]
