"""A loss that pulls samples to where a frozen model's density is high: ``fastlik.density_penalty``."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import checks
from ..model import ScoreModel, evaluating, per_row
from ..objectives.time_sampling import stratified
from ..objectives.weighting import WEIGHTINGS
from .anchor import PlainAnchor, choose_anchor
from .formula import continuous_ends
from .inputs import Data
from .path_integral import PathIntegral, Span
from .strata import UniformStrata

REDUCTIONS = ("mean", "none")


def density_penalty(
    model: ScoreModel,
    x_fake: Tensor,
    *,
    draws: int = 1,
    weights: str = "likelihood",
    detach_jacobian: bool = False,
    condition: dict | None = None,
    t_min: float | None = None,
    t_max: float | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Estimate of -log p(x_fake) in nats by the density formula, to be minimised by ``x_fake``.

    The cross-entropy of a generator's samples under the model: with the negative entropy of the generator it
    would be KL(generator || model), without it its minimum is at modes (Li & Yan 2024, section 4).  The model
    is frozen: its parameters receive no gradient, and dropout is off.  Levels and noises are drawn anew in
    each call, from torch's generator.

    Args:
        model: from :func:`fastlik.wrap` or :func:`fastlik.train`.
        x_fake: (B, *event), float32 or float64, most often part of a graph.
        draws: evaluations of the network a row; levels are spread evenly over all rows and draws.
        weights: "likelihood", for -log p with its constants, each draw without bias; the noise is least where
            the data's moments are known.  "uniform": E 1/2 ||eps - eps_hat||^2 over uniform t, the usual
            practice, which is no density.
        detach_jacobian: leave d eps_hat / dx out of the gradient, which is then alpha E(eps_hat - eps) with
            the same weights and needs no backward pass (score distillation): that of the integral of
            sigma KL(q(x_t | x) || p_t), not of the value returned.
        condition: keyword arguments of the network; tensors of B rows are split with x.
        t_min, t_max: as in :func:`fastlik.bound_nll`.
        reduction: "mean" over the rows, or "none".

    Returns:
        A float64 scalar, or (B,); differentiable once.

    Raises:
        TypeError, ValueError: unknown options (the valid ones are listed), input without a density.
    """
    checks.check_choice("weights", weights, WEIGHTINGS)
    checks.check_choice("reduction", reduction, REDUCTIONS)
    checks.check_count("draws", draws)
    data = Data.checked(model, x_fake, None, condition)
    differentiated = torch.is_grad_enabled() and x_fake.requires_grad
    with evaluating(model), torch.set_grad_enabled(differentiated and not detach_jacobian):
        x = x_fake.detach().requires_grad_(torch.is_grad_enabled())
        estimate = _estimate(data, Span.of(model, t_min, t_max), x, draws, weights)
        if torch.is_grad_enabled():
            (gradient,) = torch.autograd.grad(estimate.nats.sum(), x)
        elif differentiated:
            gradient = _distilled(data, estimate)
    nats = estimate.nats.detach()
    if differentiated:
        moved = gradient * (x_fake - x_fake.detach())
        nats = nats + moved.flatten(1).double().sum(1)
    return nats.mean() if reduction == "mean" else nats


class _Estimate(NamedTuple):
    """nats (B,), and what they came from: the integral, draws a row, factor of their mean, and for each draw
    its x_0, gamma, noise and condition."""

    nats: Tensor
    integral: PathIntegral
    draws: int
    factor: float
    x0: Tensor
    gamma: Tensor
    noise: Tensor
    condition: dict


def _estimate(data: Data, span: Span, x: Tensor, draws: int, weights: str) -> _Estimate:
    model, count = data.model, len(x) * draws
    place = stratified(count, x.device)
    noise = torch.randn(count, *x.shape[1:], dtype=x.dtype, device=x.device)
    owner = torch.arange(len(x), device=x.device).repeat_interleave(draws)
    condition, x0 = data.conditions(owner), x[owner]
    strata = UniformStrata(span.start, span.end, max(1, count))
    if weights == "likelihood":
        integral = PathIntegral(model, span, strata, choose_anchor(model, data.size, x.device), None, 0)
        gamma, factor = strata.level(place), strata.length
        known = continuous_ends(integral, data.size).value(x, None)
    else:
        integral = PathIntegral(model, span, strata, PlainAnchor(), None, 0)
        t = span.t_data + (span.t_prior - span.t_data) * place
        gamma, factor = -model.schedule.log_snr(t), 1.0
        known = _per_row(0.5 * data.size * (-gamma).sigmoid(), draws)
    values = integral.values(x0, gamma, noise, owner, 0, condition)
    nats = known + factor * _per_row(values, draws)
    return _Estimate(nats, integral, draws, factor, x0, gamma, noise, condition)


def _distilled(data: Data, estimate: _Estimate) -> Tensor:
    """(B, *event): the mean of alpha (eps_hat - eps), where sigma^2 / (alpha^2 + sigma^2) of the noise is
    enough to be rid of that of eps_hat."""
    model, t = data.model, estimate.integral.times(estimate.gamma)
    alpha, sigma = (per_row(f(t), estimate.x0) for f in (model.schedule.alpha, model.schedule.sigma))
    x = alpha * estimate.x0 + sigma * estimate.noise
    guess = model.noise(x, t, **estimate.condition)
    each = alpha * (guess - per_row(estimate.gamma.sigmoid(), x) * estimate.noise)
    return estimate.factor * _per_row(each, estimate.draws)


def _per_row(values: Tensor, draws: int) -> Tensor:
    """(B * draws, ...) -> (B, ...) means."""
    return values.reshape(len(values) // draws, draws, *values.shape[1:]).mean(1)
