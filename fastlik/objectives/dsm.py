"""First-order denoising score matching, in noise units whatever the network predicts."""

from __future__ import annotations

from torch import Tensor

from ..model import ScoreModel
from .residual import NoiseResidual


def dsm_error(model: ScoreModel, x0: Tensor, t: Tensor, noise: Tensor, **condition: object) -> Tensor:
    """(B,) ||eps_hat(x_t, t) - eps||^2 / d in x0's dtype, at x_t = alpha(t) x_0 + sigma(t) eps.

    Args:
        x0: data (B, *event), d coordinates each.
        t: times (B,) float64 on the schedule's axis.
        noise: eps, like x0.

    The difference is taken in the network's own parameterisation and converted by the coefficient
    with which its output enters eps_hat, so that the six predictions have one loss.
    """
    residual = NoiseResidual(model, x0, t, noise, condition)
    return residual.value(residual.network(residual.x)).flatten(1).square().mean(1)
