"""What is evaluated: a network, the points, and the answers that ``data/make.py`` computed for them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

import fastlik
from fastlik.nn.embedding import TimeEmbedding
from fastlik.testing import GaussianMixture

from .flow import Flow, NoiseOf
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


@dataclass(frozen=True, eq=False)
class ModelWorkload(Workload):
    """A VP model of any parameterisation, float64: fastlik has it as it is, the peers a noise prediction."""

    own: fastlik.ScoreModel | None = None

    @property
    def model(self) -> fastlik.ScoreModel:
        return self.own


def load_model(name: str, model: fastlik.ScoreModel) -> Workload:
    """Exact traces of ``model`` in float64."""
    tensors = load_file(DATA / name / "reference.safetensors")
    x, signs, model = tensors["x"].double(), tensors["probe"].double(), model.double()
    return ModelWorkload(
        name, NoiseOf(model), x, signs, tensors["exact"], tensors["frozen"], hutchinson=False, own=model
    )


def mixture(name: str) -> GaussianMixture:
    """Gaussian mixtures of 2, 16 and 64 dimensions: a ring, and eight or sixteen full covariances."""
    makes = {
        "mixture2": GaussianMixture.ring,
        "mixture16": lambda: GaussianMixture.random(8, 16),
        "mixture64": lambda: GaussianMixture.random(16, 64),
    }
    return makes[name]()


def oracle(name: str) -> Workload:
    """The closed-form score of a mixture."""
    return load_model(name, mixture(name).model(fastlik.VP()))


def edm_digits() -> Workload:
    """8 x 8 digits as vectors of 64, in EDM's parameterisation: an MLP of 4 x 128 units."""
    return load_model("edm_digits", fastlik.load(DATA / "edm_digits"))


def ddpm_digits() -> Workload:
    """The same data under DDPM's conventions: noise prediction, sinusoids up to sin(999 t)."""
    return load_model("ddpm_digits", fastlik.load(DATA / "ddpm_digits", net=ddpm_model()))


def edm_ring() -> Workload:
    """The ring in EDM's parameterisation."""
    return load_model("edm_ring", fastlik.load(DATA / "edm_ring"))


def ddpm_model() -> fastlik.ScoreModel:
    """An untrained MLP whose time embedding was made for integer steps."""
    net = fastlik.nn.MLP(64, time_features=64)
    net.embedding = TimeEmbedding(64, lowest=1e-4, highest=1.0)
    return fastlik.wrap(net, fastlik.VP(), "noise", time="t", time_scale=999.0)


def ring() -> Workload:
    """Eight Gaussians on a circle with their exact score: 512 points in 2-D, exact trace."""
    return load("ring", RingScore(fastlik.testing.GaussianMixture.ring()), hutchinson=False)


def mlp() -> Workload:
    """An MLP of 4 x 128 units trained on the ring: 512 points in 2-D, exact trace."""
    return load("mlp", hutchinson=False)


def unet() -> Workload:
    """A small U-Net trained on 8 x 8 digits: 16 dequantised test images, one probe."""
    return load("unet", hutchinson=True)
