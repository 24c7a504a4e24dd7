"""High-order denoising score matching as one writes it in plain PyTorch: reverse mode over reverse mode."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fastlik


class ReverseOverReverse:
    """The released image losses of Lu et al. 2022, second order by v'J and third by its gradient, for a
    noise-predicting VP network fed log-SNR / -8; each order with weight 1, times given."""

    def __init__(self, net: nn.Module, order: int) -> None:
        self.net, self.order = net, order

    def __call__(self, x0: Tensor, t: Tensor, noise: Tensor, v: Tensor) -> Tensor:
        schedule, size = fastlik.VP(), x0[0].numel()
        shape = (-1,) + (1,) * (x0.dim() - 1)
        alpha, sigma = (value(t).float().reshape(shape) for value in (schedule.alpha, schedule.sigma))
        x = (alpha * x0 + sigma * noise).requires_grad_(self.order > 1)
        r = noise - self.net(x, (-schedule.log_snr(t) / 8).float())
        loss = r.flatten(1).square().mean(1)
        if self.order == 1:
            return loss.mean()
        # M = I - sigma J: v'M = v' - sigma v'J
        (product,) = torch.autograd.grad(-r, x, v, create_graph=True)
        mv, fixed = (v - sigma * product).flatten(1), r.detach().flatten(1)
        w = v.flatten(1)
        vr, vmv = (w * fixed).sum(1, keepdim=True), (w * mv).sum(1, keepdim=True)
        loss = loss + (mv - vr * fixed).square().sum(1) / size**2 + (vmv - vr**2).square().sum(1) / size**2
        if self.order == 3:
            (gradient,) = torch.autograd.grad((-sigma * v * product).sum(), x, create_graph=True)
            target = vmv.detach() * fixed + 2 * vr * mv.detach() - vr**2 * fixed
            gap = (sigma * gradient).flatten(1) - target
            loss = loss + gap.square().sum(1) / size**3
        return loss.mean()
