"""First-order denoising score matching, in noise units whatever the network predicts."""

from __future__ import annotations

import torch
from torch import Tensor

from ..model import ScoreModel, coefficients, per_row
from .time_sampling import sample_times, stratified
from .weighting import Weighting, weight


def dsm_target(model: ScoreModel, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """What the network should return at x_t = alpha x_0 + sigma eps; x0 and noise (B, *event).

    Written out for every prediction instead of solved from x_t, which would cancel near the data.
    """
    schedule, sigma_data = model.schedule, model.sigma_data
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
    if model.predicts == "noise":
        of_x0, of_noise = zero, one
    elif model.predicts == "score":
        of_x0, of_noise = zero, -1 / sigma
    elif model.predicts == "x0":
        of_x0, of_noise = one, zero
    elif model.predicts == "v":
        of_x0, of_noise = -sigma, alpha
    elif model.predicts == "velocity":
        of_x0, of_noise = schedule.rates(t)
    else:  # edm: (x0 - c_skip y) / c_out of y = x0 + rho eps, rho = sigma / alpha
        spread = torch.hypot(sigma, alpha * sigma_data)
        of_x0, of_noise = sigma / (sigma_data * spread), -alpha * sigma_data / spread
    return per_row(of_x0, x0) * x0 + per_row(of_noise, x0) * noise


def dsm_error(model: ScoreModel, x0: Tensor, t: Tensor, noise: Tensor, **condition: object) -> Tensor:
    """(B,) ||eps_hat(x_t, t) - eps||^2 / d in x0's dtype, at x_t = alpha(t) x_0 + sigma(t) eps.

    Args:
        x0: data (B, *event), d coordinates each.
        t: times (B,) float64 on the schedule's axis.
        noise: eps, like x0.

    The difference is taken in the network's own parameterisation and converted by the coefficient
    with which its output enters eps_hat, so that the six predictions have one loss.
    """
    schedule = model.schedule
    x = per_row(schedule.alpha(t), x0) * x0 + per_row(schedule.sigma(t), x0) * noise
    raw = model(x, t, **condition).to(x0.dtype)
    error = (raw - dsm_target(model, x0, t, noise)).flatten(1).square().mean(1)
    gain = coefficients("noise", model.predicts, schedule, t, model.sigma_data).of_output
    return gain.square().to(error.dtype) * error


def dsm_loss(
    model: ScoreModel,
    x0: Tensor,
    weighting: Weighting = "likelihood",
    time_sampling: str = "importance",
    **condition: object,
) -> Tensor:
    """(B,) unbiased estimates of the integral of w(t) E||eps_hat - eps||^2 / d over the path.

    With likelihood weighting, w = g^2 / sigma^2, half of it is the integral J of Song et al. 2021
    (NeurIPS, theorem 1) in nats per dimension, up to a constant that does not depend on the
    network; with importance-sampled times it is then Z ||eps_hat - eps||^2 / d.

    Times (stratified over the batch) and noise come from torch's global generator.

    Raises:
        ValueError: unknown ``weighting`` or ``time_sampling`` (the valid ones are listed).
    """
    times = sample_times(model.schedule, time_sampling, stratified(len(x0), x0.device))
    factor = weight(weighting, model.schedule, times.t) / times.density
    error = dsm_error(model, x0, times.t, torch.randn_like(x0), **condition)
    return factor.to(error.dtype) * error
