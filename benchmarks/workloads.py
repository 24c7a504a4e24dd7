"""What is evaluated: a network, the points, and the answers that ``data/make.py`` computed for them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

import fastlik

from .flow import Flow
from .ring import RingScore

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True, eq=False)
class Workload:
    """A noise-predicting VP network with test points.

    x (B, *event) float32; ``exact`` (B' <= B,) and ``frozen`` (B,) float64: -log p in nats by exact trace
    and with the one Rademacher probe ``signs`` (B, *event).  ``hutchinson``: whether methods with a choice
    take one probe instead of the exact trace.
    """

    name: str
    net: nn.Module
    x: Tensor
    signs: Tensor
    exact: Tensor
    frozen: Tensor
    hutchinson: bool

    @property
    def dimensions(self) -> int:
        return self.x[0].numel()

    @property
    def probe(self) -> Tensor | None:
        """What the trace is taken with: the probe, or None for the exact trace."""
        return self.signs if self.hutchinson else None

    @property
    def answer(self) -> Tensor:
        """-log p (B,) of the estimator that ``probe`` names."""
        return self.frozen if self.hutchinson else self.exact

    @property
    def flow(self) -> Flow:
        """The ODE for the peers."""
        return Flow(self.net)

    @cached_property
    def model(self) -> fastlik.ScoreModel:
        """The same network for fastlik."""
        return fastlik.wrap(self.net, fastlik.VP(), "noise", time="log_snr", time_scale=-1 / 8)

    def with_exact_trace(self, rows: int) -> Workload:
        """The first rows, whose trace is exact."""
        names = ("x", "signs", "exact", "frozen")
        return replace(self, **{name: getattr(self, name)[:rows] for name in names}, hutchinson=False)


def load(name: str, net: nn.Module | None = None, *, hutchinson: bool) -> Workload:
    """A workload from its folder in ``data``, with ``net`` where none was trained."""
    tensors = load_file(DATA / name / "reference.safetensors")
    net = net or fastlik.load(DATA / name).net
    x, signs = tensors["x"], tensors["probe"]
    return Workload(name, net, x, signs, tensors["exact"], tensors["frozen"], hutchinson)


def ring() -> Workload:
    """Eight Gaussians on a circle with their exact score: 512 points in 2-D, exact trace."""
    return load("ring", RingScore(fastlik.testing.GaussianMixture.ring()), hutchinson=False)


def mlp() -> Workload:
    """An MLP of 4 x 128 units trained on the ring: 512 points in 2-D, exact trace."""
    return load("mlp", hutchinson=False)


def unet() -> Workload:
    """A small U-Net trained on 8 x 8 digits: 16 dequantised test images, one probe."""
    return load("unet", hutchinson=True)
