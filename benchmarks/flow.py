"""The likelihood ODE as people write it by hand: VP process, noise prediction, plain PyTorch.

Every peer integrates this, so that none of them pays for fastlik's own conventions.  The networks are
those of ``fastlik.train``: noise predictions called as net(x, -log_snr / 8).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

import fastlik

BETA_MIN, BETA_MAX = 0.1, 20.0
T_DATA, T_PRIOR = 1e-5, 1.0


def like(t: Tensor, x: Tensor) -> Tensor:
    """A time, () or (B,), shaped to broadcast against x (B, *event)."""
    return t.reshape(-1, *(1,) * (x.dim() - 1))


class Flow:
    """dx/dt, or dx/du in the clock u = log(sigma / alpha), of a noise-predicting network."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def in_time(self, t: Tensor, x: Tensor) -> Tensor:
        """-beta/2 (x - eps / sigma); t is () or (B,)."""
        integral = BETA_MIN * t + 0.5 * (BETA_MAX - BETA_MIN) * t**2
        variance = -torch.expm1(-integral)
        log_snr = -integral - variance.log()
        eps = self.net(x, (-log_snr / 8).expand(len(x)))
        beta = BETA_MIN + (BETA_MAX - BETA_MIN) * t
        return -0.5 * like(beta, x) * (x - eps / like(variance.sqrt(), x))

    def in_log_sigma(self, u: Tensor, x: Tensor) -> Tensor:
        """sigma (eps - sigma x); u is () or (B,)."""
        sigma = like(torch.sigmoid(2 * u).sqrt(), x)
        return sigma * (self.net(x, (u / 4).expand(len(x))) - sigma * x)

    def clocked(self, clock: str) -> tuple[Callable[[Tensor, Tensor], Tensor], tuple[float, float]]:
        """The slope in a clock, "t" or "log_sigma", and the clock at the data and at the prior."""
        if clock == "t":
            return self.in_time, (T_DATA, T_PRIOR)
        integrals = (BETA_MIN * t + 0.5 * (BETA_MAX - BETA_MIN) * t**2 for t in (T_DATA, T_PRIOR))
        start, end = (0.5 * math.log(math.expm1(integral)) for integral in integrals)
        return self.in_log_sigma, (start, end)


class NoiseOf(nn.Module):
    """eps(x, time), time = -log_snr / 8, of a VP model of any parameterisation: for the peers."""

    def __init__(self, model: fastlik.ScoreModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.model.noise(x, self.model.schedule.t(-8 * time.double()))


def with_divergence(
    velocity: Callable[[Tensor], Tensor], x: Tensor, probe: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(dx, divergence (B,)) by reverse mode: probe' J probe, or for ``probe=None`` the exact trace."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        dx = velocity(x)
        if probe is not None:
            (product,) = torch.autograd.grad(dx, x, probe)
            return dx.detach(), (product * probe).flatten(1).sum(1)
        columns, total = dx.flatten(1).unbind(1), 0.0
        if len(columns) > 8:  # one batched pass is faster than many
            basis = torch.eye(len(columns), dtype=x.dtype).reshape(-1, 1, *x.shape[1:]).expand(-1, *x.shape)
            (rows,) = torch.autograd.grad(dx, x, basis, is_grads_batched=True)
            return dx.detach(), (rows * basis).flatten(2).sum((0, 2))
        for i, column in enumerate(columns):
            (row,) = torch.autograd.grad(column.sum(), x, retain_graph=i + 1 < len(columns))
            total = total + row.flatten(1)[:, i]
    return dx.detach(), total


def standard_nll(latent: Tensor, change: Tensor) -> Tensor:
    """-log p (B,) float64 nats from x(T) and the integrated divergence, under the prior N(0, I)."""
    square = latent.flatten(1).double().square() + math.log(2 * math.pi)
    return 0.5 * square.sum(1) - change.double()
