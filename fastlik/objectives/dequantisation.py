"""What a dequantiser is trained on: the variational bound of the levels' negative log-likelihood."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..likelihood.dequantise import Quantisation
from ..likelihood.prior import Prior
from ..model import ScoreModel
from .dsm import dsm_error
from .time_sampling import log_snr_range, sample_times, stratified


def dequantisation_loss(
    model: ScoreModel,
    dequantiser: nn.Module,
    quantisation: Quantisation,
    levels: Tensor,
    prior: Prior,
    dtype: torch.dtype,
    **condition: object,
) -> Tensor:
    """(B,) unbiased estimates of the bound of -log P(levels), float64 nats.

    With x = low + w (levels + u), u from the dequantiser and log q its density, and gamma = -log_snr,

        log q - d log w + KL(q(x_T | x) || prior) + int 1/2 E||eps - eps_hat||^2 dgamma + E[-log p(x | x_0)],

    the bound of Song, Durkan, Murray, Ermon 2021 (NeurIPS) with the reconstruction
    p(x | x_0) = N(x_0_hat, (sigma / alpha)^2 I) at the data's end.  Differentiable by the dequantiser's
    parameters, through the network's input.

    Args:
        levels: (B, *event) integers.
        dtype: of the network's input.

    Uniform noise, times (stratified over the batch, uniform in log-SNR) and eps come from torch's global
    generator.  Each eps has its opposite at its time: what is linear in it, most of the gradient's noise,
    cancels.  Where the log-SNR is infinite, the path ends at 15.
    """
    schedule, size = model.schedule, levels[0].numel()
    own = next((p.dtype for p in dequantiser.parameters()), dtype)
    centres = quantisation.continuous(levels, torch.full(levels.shape, 0.5, dtype=own, device=levels.device))
    noise = torch.rand_like(centres).clamp(min=torch.finfo(own).eps)  # within (0, 1)
    u, log_q = dequantiser(centres, noise)
    x = quantisation.continuous(levels, u.to(dtype))
    low, high = log_snr_range(schedule)
    t_data, t_prior = schedule.t(high).item(), schedule.t(low).item()
    times = sample_times(schedule, "importance", stratified(len(x), x.device)).t
    path = _paired_error(model, x, times, condition)
    reconstruction = _paired_error(model, x, torch.full_like(times, t_data), condition)
    alpha, sigma = schedule.alpha(t_prior).item(), schedule.sigma(t_prior).item()
    # - the entropy of q(x_T | x), and the reconstruction's normaliser
    constant = -0.5 * size * (high + 1 + 2 * math.log(sigma)) - size * quantisation.log_bin_width
    errors = 0.5 * size * ((high - low) * path + reconstruction).double()
    latent = alpha * x + sigma * torch.randn_like(x)
    return log_q.double() + errors - prior.log_prob(latent) + constant


def _paired_error(model: ScoreModel, x: Tensor, t: Tensor, condition: dict) -> Tensor:
    """(B,) ||eps_hat - eps||^2 / d, the mean over a draw of eps and its opposite."""
    noise = torch.randn_like(x)
    signs = (dsm_error(model, x, t, sign * noise, **condition) for sign in (1, -1))
    return 0.5 * sum(signs)
