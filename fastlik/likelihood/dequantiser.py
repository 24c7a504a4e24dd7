"""Noise within the bins: from levels to points of the process, and the density of those points.

For any density q over the bin of the levels, log P(levels) >= E_q[log p(x) - log q(x)], an equality where q
is p within the bin, and the log of the mean of p / q over K draws lies between the two (Ho et al. 2019,
"Flow++").  Uniform noise is the simplest q.  Every dequantiser here turns uniform noise into u in (0, 1)^d
given the levels, and u into x = scale (low + w (levels + u)), w the width of a bin.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..checks import describe_rows
from ..derivatives.probes import Stream, uniform
from ..model import evaluating
from ..schedule import Schedule
from .dequantise import Quantisation


@dataclass(frozen=True)
class Dequantiser(ABC):
    """Base class; ``scale`` is that of the bins in which x lies, 1 for the data's own."""

    quantisation: Quantisation

    scale = 1.0

    @abstractmethod
    def place(self, levels: Tensor, noise: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """u in [0, 1] from uniform ``noise`` (B, *event) float64, and log q(u) (B,) on the unit cube."""

    @abstractmethod
    def protocol(self) -> dict:
        """What a result says of it."""

    def __call__(
        self, x: Tensor, rows: Tensor, draw: int, seed: int, node: Tensor | int = 0
    ) -> tuple[Tensor, Tensor]:
        """Points (B, *event) float64 for the levels in x (B, *event), and their log q (B,) float64 nats.

        The noise is keyed by (seed, row, draw, node), ``rows`` (B,) being the rows' ids; node is one or (B,).
        """
        levels, size = self.quantisation.levels(x), math.prod(x.shape[1:])
        noise = uniform(seed, Stream.DEQUANTISE, rows, draw, node, size).reshape(x.shape)
        u, log_q = self.place(levels, noise, rows)
        log_volume = size * (self.quantisation.log_bin_width + math.log(self.scale))
        return self.scale * self.quantisation.continuous(levels, u.double()), log_q.double() - log_volume


@dataclass(frozen=True)
class Uniform(Dequantiser):
    """u is the noise itself."""

    def protocol(self) -> dict:
        return {"dequantize": "uniform"}

    def place(self, levels: Tensor, noise: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return noise, noise.new_zeros(len(noise))


@dataclass(frozen=True)
class TruncatedNormal(Dequantiser):
    """x = alpha c + sigma eps, c the bin's centre and eps normal within the bin: |eps| <= tau.

    tau = alpha w / (2 sigma), alpha and sigma at the data's end of the process, where x lies: the noise that
    the process has there anyway, cut off at the bin (Zheng, Lu, Chen, Zhu 2023, "i-DODE").  As
    tau falls it becomes the uniform noise of a bin of width alpha w.

    average: log q is its expectation in closed form instead of that of the points drawn.

    Raises ValueError where sigma is 0, or too small for numbers of ``dtype``.
    """

    alpha: float
    sigma: float
    dtype: torch.dtype
    average: bool

    def __post_init__(self) -> None:
        largest = self.alpha * max(map(abs, self.quantisation.range))
        if not self.sigma > 8 * torch.finfo(self.dtype).eps * largest:
            raise ValueError(
                f'dequantize="truncated_normal" takes the noise of the process at the data, but its sigma='
                f"{self.sigma:.3g} {self.dtype} cannot tell from 0 beside data of {largest:.3g}: move the "
                f'end of the data with t_min= (t_max= if it is the larger t), or take dequantize="uniform"'
            )

    @property
    def scale(self) -> float:
        return self.alpha

    @property
    def truncation(self) -> float:
        """tau."""
        return 0.5 * self.alpha * self.quantisation.bin_width / self.sigma

    def protocol(self) -> dict:
        return {
            "dequantize": "truncated_normal",
            "start": "alpha c + sigma eps at t_data, c the bin's centre, |eps| <= truncation",
            "truncation": self.truncation,
        }

    def place(self, levels: Tensor, noise: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        tau, mass = self.truncation, self._mass
        eps = math.sqrt(2) * torch.erfinv(mass * (2 * noise - 1))
        # at least 0 and at most 1, whatever erfinv rounds to
        u = (0.5 + eps / (2 * tau)).clamp(0, 1)
        if self.average:
            square = torch.full_like(eps, self.mean_square)
        else:
            square = eps.square()
        return u, (self._log_peak - 0.5 * square).flatten(1).sum(1)

    @property
    def mean_square(self) -> float:
        """E eps^2."""
        tau = self.truncation
        return 1 - math.sqrt(2 / math.pi) * tau * math.exp(-0.5 * tau**2) / self._mass

    @property
    def _mass(self) -> float:
        """Of a standard normal within [-tau, tau]."""
        return math.erf(self.truncation / math.sqrt(2))

    @property
    def _log_peak(self) -> float:
        """log density of u, a dimension, at the bin's centre."""
        return math.log(2 * self.truncation / self._mass) - 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class Learned(Dequantiser):
    """A module's u and log q, checked: ``module(centres, noise) -> (u, log_q)``.

    Centres of the bins, in the model's units, and noise in the open (0, 1), both (B, *event), come in the
    precision of the module's parameters (``dtype`` where it has none).  u is like them, in [0, 1]; log_q is
    (B,) nats, the log density of u on the unit cube given the levels.
    """

    module: nn.Module
    dtype: torch.dtype

    @property
    def name(self) -> str:
        return type(self.module).__name__

    def protocol(self) -> dict:
        return {"dequantize": self.name}

    def place(self, levels: Tensor, noise: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        parameter = next(self.module.parameters(), None)
        if parameter is not None and parameter.device != levels.device:
            raise ValueError(
                f"x is on {levels.device} but {self.name} is on {parameter.device}: move one of them"
            )
        dtype = self.dtype if parameter is None else parameter.dtype
        centres = self.quantisation.continuous(levels, torch.full_like(noise, 0.5)).to(dtype)
        with evaluating(self.module), torch.no_grad():
            returned = self.module(centres, _open_unit(noise, dtype))
        return self._checked(returned, noise, rows)

    def _checked(self, returned: object, noise: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        is_pair = isinstance(returned, tuple) and len(returned) == 2
        if not (is_pair and all(isinstance(value, Tensor) for value in returned)):
            raise TypeError(
                f"{self.name} returned {_kind(returned)}: a dequantiser returns two tensors, u like its "
                f"noise and log q(u) of shape (B,)"
            )
        u, log_q = returned
        if u.shape != noise.shape or log_q.shape != noise.shape[:1]:
            raise ValueError(
                f"{self.name} returned u of shape {tuple(u.shape)} and log q of shape {tuple(log_q.shape)}; "
                f"for {tuple(noise.shape)} they are {tuple(noise.shape)} and ({len(noise)},)"
            )
        inside = ((u >= 0) & (u <= 1)).flatten(1).all(1)  # not so of NaN
        self._refuse(~inside, rows, "u outside (0, 1): end it with a sigmoid")
        self._refuse(~log_q.isfinite(), rows, "a log q that is not finite")
        return u.detach(), log_q.detach()  # views of parameters require gradients whatever the mode

    def _refuse(self, bad: Tensor, rows: Tensor, what: str) -> None:
        if bool(bad.any()):
            raise ValueError(f"{self.name} returned for {describe_rows(rows[bad].tolist())} {what}")


def _open_unit(noise: Tensor, dtype: torch.dtype) -> Tensor:
    """Noise in (0, 1), which lower precision would round to 1."""
    return noise.to(dtype).clamp(max=1 - torch.finfo(dtype).eps)


def _kind(value: object) -> str:
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__


def choose_dequantiser(
    dequantize: str | nn.Module | None,
    quantisation: Quantisation | None,
    schedule: Schedule,
    t_data: float,
    dtype: torch.dtype,
    importance: int,
) -> Dequantiser | None:
    """The dequantiser of an evaluation that starts at ``t_data`` with points of ``dtype``."""
    if dequantize is None:
        return None
    if dequantize == "uniform":
        return Uniform(quantisation)
    if dequantize == "truncated_normal":
        alpha, sigma = schedule.alpha(t_data).item(), schedule.sigma(t_data).item()
        return TruncatedNormal(quantisation, alpha, sigma, dtype, average=importance == 1)
    return Learned(quantisation, dequantize, dtype)
