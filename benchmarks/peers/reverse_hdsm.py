"""High-order denoising score matching as one writes it in plain PyTorch: reverse mode over reverse mode."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import vjp

import fastlik


class ReverseOverReverse:
    """The released image losses of Lu et al. 2022, second order by v'J and third by its gradient, for a
    noise-predicting VP network fed log-SNR / -8; each order with weight 1, times given.

    By torch.func, which is faster here than torch.autograd.grad and which torch.compile takes.
    """

    def __init__(self, net: nn.Module, order: int) -> None:
        self.net, self.order = net, order

    def __call__(self, x0: Tensor, t: Tensor, noise: Tensor, v: Tensor) -> Tensor:
        schedule, size = fastlik.VP(), x0[0].numel()
        shape = (-1,) + (1,) * (x0.dim() - 1)
        alpha, sigma = (value(t).float().reshape(shape) for value in (schedule.alpha, schedule.sigma))
        time = (-schedule.log_snr(t) / 8).float()
        x = alpha * x0 + sigma * noise

        def residual(x: Tensor) -> Tensor:
            return noise - self.net(x, time)

        def quadratic(x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            """v'M v (B,), with v'M = v' + sigma v' dr/dx and r."""
            r, pull = vjp(residual, x)
            product = v + sigma * pull(v)[0]
            return (v * product).flatten(1).sum(1), (product, r)

        if self.order == 3:
            vmv, pull, (mv, r) = vjp(quadratic, x, has_aux=True)
            (gradient,) = pull(torch.ones_like(vmv))
        else:
            vmv, (mv, r) = quadratic(x)
        fixed, w, mv, vmv = r.detach().flatten(1), v.flatten(1), mv.flatten(1), vmv[:, None]
        vr = (w * fixed).sum(1, keepdim=True)
        loss = r.flatten(1).square().mean(1)
        loss = loss + ((mv - vr * fixed).square().sum(1) + (vmv - vr**2).square().sum(1)) / size**2
        if self.order == 3:
            target = vmv.detach() * fixed + 2 * vr * mv.detach() - vr**2 * fixed
            gap = (sigma * gradient).flatten(1) - target
            loss = loss + gap.square().sum(1) / size**3
        return loss.mean()
