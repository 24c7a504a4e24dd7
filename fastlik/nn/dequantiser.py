"""A learned distribution of noise within the bins of discrete data."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from .spline import parameter_count, rational_quadratic


class FlowDequantiser(nn.Module):
    """A conditional flow over the unit cube: uniform noise -> u, given the bins' centres.

    Variational dequantisation (Ho et al. 2019, "Flow++"; Song, Durkan, Murray, Ermon 2021) by coupling
    layers: each moves every other coordinate (a checkerboard, the other half in the next layer) by monotone
    splines, whose parameters a small network gives from the centres and the coordinates that stay.
    Untrained it is the identity, which is uniform dequantisation.

    Args:
        event: shape of a sample, (d,) or (C, H, W); an MLP or convolutions serve it.
        layers: coupling layers; two move every coordinate once.
        width: units or channels of their networks.
        bins: of the splines.
        data_range: (low, high) of the data, in the model's units; the networks see it as (-1, 1).

    Raises:
        ValueError: another kind of event, sizes below 1; in ``forward`` centres of another shape.
    """

    def __init__(
        self,
        event: Sequence[int],
        layers: int = 4,
        width: int = 64,
        bins: int = 8,
        data_range: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        super().__init__()
        if len(event) not in (1, 3):
            raise ValueError(f"FlowDequantiser takes events of shape (d,) or (C, H, W), got {tuple(event)}")
        if min(layers, width, bins, *event) < 1:
            raise ValueError("the event, layers, width and bins must be >= 1")
        self.config = {
            "event": list(event),
            "layers": layers,
            "width": width,
            "bins": bins,
            "data_range": list(data_range),
        }
        self.couplings = nn.ModuleList(Coupling(event, width, bins, layer % 2) for layer in range(layers))

    def forward(self, centres: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """centres, noise in [0, 1] (B, *event) -> u in [0, 1] like them, log q(u | centres) (B,) nats."""
        event = self.config["event"]
        if list(centres.shape[1:]) != event:
            raise ValueError(
                f"this FlowDequantiser takes centres of shape (B, {', '.join(map(str, event))}), got "
                f"{tuple(centres.shape)}"
            )
        low, high = self.config["data_range"]
        context = (2 * centres - (low + high)) / (high - low)
        u, log_slope = noise, 0.0
        for coupling in self.couplings:
            u, more = coupling(context, u)
            log_slope = log_slope + more
        return u, -log_slope


class Coupling(nn.Module):
    """Moves the coordinates whose indices add up to an odd number (``parity`` 1) or an even one (0)."""

    def __init__(self, event: Sequence[int], width: int, bins: int, parity: int) -> None:
        super().__init__()
        indices = torch.meshgrid(*map(torch.arange, event), indexing="ij")
        self.register_buffer("moves", sum(indices) % 2 == parity, persistent=False)
        layer = nn.Linear if len(event) == 1 else partial(nn.Conv2d, kernel_size=3, padding=1)
        last = layer(width, event[0] * parameter_count(bins))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.net = nn.Sequential(layer(2 * event[0], width), nn.SiLU(), layer(width, width), nn.SiLU(), last)

    def forward(self, context: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """context, u (B, *event) -> the moved u, log |det| (B,)."""
        kept = torch.where(self.moves, 0.0, 2 * u - 1)
        parameters = self.net(torch.cat((context, kept), 1))
        parameters = parameters.unflatten(1, (u.shape[1], -1)).movedim(2, -1)
        moved, log_slope = rational_quadratic(u, parameters)
        log_slope = torch.where(self.moves, log_slope, 0.0)
        return torch.where(self.moves, moved, u), log_slope.flatten(1).sum(1)
