"""The residual that denoising score matching of every order is about.

For a clean sample x_0 and a time t, as a function of the noise alone,

    r(eps) = eps - eps_hat(alpha x_0 + sigma eps, t).

Given x_t, the model says that eps has mean eps_hat and covariance dr/deps = I + sigma^2 grad s, and that the
gradient of that covariance is minus its third cumulant.  First order makes the mean of r vanish, second
order matches dr/deps to r r', third order its gradient to the third moment of r: three cumulants of one
distribution, in units of the noise, whatever the schedule and whatever the network predicts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..derivatives.jets import Captured
from ..model import ScoreModel, coefficients, per_row


def target_coefficients(model: ScoreModel, t: Tensor) -> tuple[Tensor, Tensor]:
    """(of_x0, of_noise), (B,) float64 each: the prediction's target is of_x0 x_0 + of_noise eps.

    Written out for every prediction instead of solved from x_t, which would cancel near the data.
    """
    schedule, sigma_data = model.schedule, model.sigma_data
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
    if model.predicts == "noise":
        return zero, one
    if model.predicts == "score":
        return zero, -1 / sigma
    if model.predicts == "x0":
        return one, zero
    if model.predicts == "v":
        return -sigma, alpha
    if model.predicts == "velocity":
        return schedule.rates(t)
    # edm: (x0 - c_skip y) / c_out of y = x0 + rho eps, rho = sigma / alpha
    spread = torch.hypot(sigma, alpha * sigma_data)
    return sigma / (sigma_data * spread), -alpha * sigma_data / spread


def dsm_target(model: ScoreModel, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """What the network should return at x_t = alpha x_0 + sigma eps; x0 and noise (B, *event)."""
    of_x0, of_noise = target_coefficients(model, t)
    return per_row(of_x0, x0) * x0 + per_row(of_noise, x0) * noise


class NoiseResidual:
    """r and how its derivatives in eps follow from the network's: at one batch of x_0, t and eps.

    ``x`` is where the network is evaluated and ``network`` the function x -> prediction that is
    differentiated.  A direction v of eps is the direction ``sigma * v`` of x.  The difference is taken in the
    network's own parameterisation and converted by the coefficient with which its output enters eps_hat,
    so that nothing cancels near the data.  ``captured`` is the model's graph, which is then called instead.
    """

    def __init__(
        self,
        model: ScoreModel,
        x0: Tensor,
        t: Tensor,
        noise: Tensor,
        condition: dict,
        captured: Captured | None = None,
    ) -> None:
        schedule = model.schedule
        of_x0, of_noise = target_coefficients(model, t)
        gain = coefficients("noise", model.predicts, schedule, t, model.sigma_data).of_output
        sigma = schedule.sigma(t)
        self.model, self.t, self.condition = model, t, condition
        self._predict = model if captured is None else captured
        self.sigma = per_row(sigma, x0)
        self.x = per_row(schedule.alpha(t), x0) * x0 + self.sigma * noise
        self._target = per_row(of_x0, x0) * x0 + per_row(of_noise, x0) * noise
        self.gain, self._identity = per_row(gain, x0), per_row(gain * of_noise, x0)

    def network(self, x: Tensor) -> Tensor:
        """The prediction at x (B, *event), in the dtype of the data."""
        return self._predict(x, self.t, **self.condition).to(x.dtype)

    def value(self, prediction: Tensor) -> Tensor:
        """r from the network's value."""
        return self.gain * (self._target - prediction)

    def first(self, tangents: Tensor, directions: Tensor) -> Tensor:
        """dr[v] from the network's derivatives along ``sigma * directions``, both (K, B, *event)."""
        return self._identity * directions - self.gain * tangents

    def second(self, tangents: Tensor) -> Tensor:
        """d^2 r[u, v] from the network's, (K, B, *event)."""
        return -self.gain * tangents

    def gradient(self, gradients: Tensor) -> Tensor:
        """The gradient in eps of v' dr v, from that in x of gain v' (network derivative along sigma v)."""
        return -self.sigma * gradients
