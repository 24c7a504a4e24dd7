"""Noise schedules: the pair (alpha, sigma) of a Gaussian path x_t = alpha(t) x_0 + sigma(t) eps.

Every function takes a time (a tensor of any shape, or a Python number, read as float64) and returns
a tensor of its shape and dtype.  ``log_snr`` is log(alpha^2 / sigma^2); ``t`` is its closed-form
inverse.  ``rates`` gives the time derivatives of alpha and sigma, from which every other quantity of
the process (drift, diffusion coefficient, velocity) follows.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property, wraps
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

Value = TypeVar("Value")


def _time(t: Tensor | float) -> Tensor:
    return t if isinstance(t, Tensor) else torch.as_tensor(t, dtype=torch.float64)


def remembered(f: Callable[..., Value]) -> Callable[..., Value]:
    """``f(schedule, *arguments)``, computed once for each schedule that is frozen, and hashable arguments.

    For numbers, not tensors: those could belong to an inference mode or a graph.
    """

    @wraps(f)
    def recall(schedule: Schedule, *arguments: object) -> Value:
        if not is_frozen(schedule):
            return f(schedule, *arguments)
        known, key = schedule._known, (f, *arguments)
        if key not in known:
            known[key] = f(schedule, *arguments)
        return known[key]

    return recall


def is_frozen(schedule: Schedule) -> bool:
    """Whether it is one of this module's: others may change, as those that are learned do."""
    return type(schedule).__module__ == __name__


@dataclass(frozen=True)
class Schedule(ABC):
    """Base class. ``t_min`` and ``t_max`` bound the time interval on which the process is used."""

    @cached_property
    def _known(self) -> dict:
        """What :func:`remembered` functions found."""
        return {}

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name not in ("_known", "_tables")}

    @property
    def t_data(self) -> float:
        """The end of the interval where the data are (little noise)."""
        return self.t_min

    @property
    def t_prior(self) -> float:
        """The end of the interval where the prior is (almost only noise)."""
        return self.t_max

    @abstractmethod
    def alpha(self, t: Tensor | float) -> Tensor:
        """The factor of the data."""

    @abstractmethod
    def sigma(self, t: Tensor | float) -> Tensor:
        """The standard deviation of the noise."""

    @abstractmethod
    def rates(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """(d alpha / dt, d sigma / dt)."""

    def log_snr(self, t: Tensor | float) -> Tensor:
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    @abstractmethod
    def t(self, log_snr: Tensor | float) -> Tensor:
        """The time at which log(alpha^2 / sigma^2) equals ``log_snr``."""

    def scale(self, t: Tensor | float) -> Tensor:
        """sqrt(alpha^2 + sigma^2): the standard deviation of x_t for unit-variance data."""
        return torch.hypot(self.alpha(t), self.sigma(t))

    def angle(self, t: Tensor | float) -> Tensor:
        """arctan(sigma / alpha) in [0, pi/2]: the universal clock of the probability-flow ODE."""
        return torch.atan2(self.sigma(t), self.alpha(t))

    def t_at_angle(self, angle: Tensor | float) -> Tensor:
        """Inverse of :meth:`angle`."""
        return self.t(-2 * torch.tan(_time(angle)).log())

    def diffusion_squared(self, t: Tensor | float) -> Tensor:
        """g(t)^2 = d sigma^2/dt - 2 sigma^2 d log alpha/dt of the forward SDE dx = f x dt + g dw."""
        alpha, sigma = self.alpha(t), self.sigma(t)
        d_alpha, d_sigma = self.rates(t)
        return 2 * sigma * (d_sigma - sigma * d_alpha / alpha)

    def to_dict(self) -> dict:
        """A JSON-able description; :func:`from_dict` makes the schedule again."""
        return {"name": type(self).__name__} | {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True)
class VP(Schedule):
    """Variance preserving, beta linear in t (Song et al. 2021, ICLR, eq. 32)."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-5
    t_max: float = 1.0

    def integral_beta(self, t: Tensor | float) -> Tensor:
        t = _time(t)
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2

    def beta(self, t: Tensor | float) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * _time(t)

    def _invert_integral(self, integral: Tensor) -> Tensor:
        slope = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + (self.beta_min**2 + 2 * slope * integral).sqrt())

    def alpha(self, t: Tensor | float) -> Tensor:
        return torch.exp(-0.5 * self.integral_beta(t))

    def sigma(self, t: Tensor | float) -> Tensor:
        return (-torch.expm1(-self.integral_beta(t))).sqrt()

    def rates(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        alpha, beta = self.alpha(t), self.beta(t)
        return -0.5 * beta * alpha, 0.5 * beta * alpha**2 / self.sigma(t)

    def log_snr(self, t: Tensor | float) -> Tensor:
        integral = self.integral_beta(t)
        return -integral - (-torch.expm1(-integral)).log()

    def t(self, log_snr: Tensor | float) -> Tensor:
        return self._invert_integral(softplus(-_time(log_snr)))


@dataclass(frozen=True)
class SubVP(VP):
    """sub-VP: the variance is the square of VP's (Song et al. 2021, ICLR, eq. 33)."""

    t_min: float = 1e-2

    def sigma(self, t: Tensor | float) -> Tensor:
        return -torch.expm1(-self.integral_beta(t))

    def rates(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        alpha, beta = self.alpha(t), self.beta(t)
        return -0.5 * beta * alpha, beta * alpha**2

    def log_snr(self, t: Tensor | float) -> Tensor:
        integral = self.integral_beta(t)
        return -integral - 2 * (-torch.expm1(-integral)).log()

    def t(self, log_snr: Tensor | float) -> Tensor:
        # sigma / alpha = 2 sinh(B / 2)
        return self._invert_integral(2 * torch.asinh(0.5 * torch.exp(-0.5 * _time(log_snr))))


@dataclass(frozen=True)
class VE(Schedule):
    """Variance exploding, sigma geometric in t (Song et al. 2021, ICLR, eq. 31).

    At t = 0 the process is the data plus N(0, sigma_min^2), not the data: for 8-bit data in [0, 1] the
    default sigma_min is 2.56 grey levels wide.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = 1e-5
    t_max: float = 1.0

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Tensor | float) -> Tensor:
        return torch.ones_like(_time(t))

    def sigma(self, t: Tensor | float) -> Tensor:
        return self.sigma_min * torch.exp(self._log_ratio * _time(t))

    def rates(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(_time(t)), self._log_ratio * self.sigma(t)

    def log_snr(self, t: Tensor | float) -> Tensor:
        return -2 * (math.log(self.sigma_min) + self._log_ratio * _time(t))

    def t(self, log_snr: Tensor | float) -> Tensor:
        return (-0.5 * _time(log_snr) - math.log(self.sigma_min)) / self._log_ratio


@dataclass(frozen=True)
class Cosine(Schedule):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2); log-SNR within [-15, 15] by default."""

    t_min: float = 2 / math.pi * math.atan(math.exp(-7.5))
    t_max: float = 2 / math.pi * math.atan(math.exp(7.5))

    def alpha(self, t: Tensor | float) -> Tensor:
        # sin of the complement keeps full relative accuracy where alpha is small
        return torch.sin(0.5 * math.pi * (1 - _time(t)))

    def sigma(self, t: Tensor | float) -> Tensor:
        return torch.sin(0.5 * math.pi * _time(t))

    def rates(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        return -0.5 * math.pi * self.sigma(t), 0.5 * math.pi * self.alpha(t)

    def t(self, log_snr: Tensor | float) -> Tensor:
        return 2 / math.pi * torch.atan(torch.exp(-0.5 * _time(log_snr)))


@dataclass(frozen=True)
class EDM(Schedule):
    """alpha = 1, sigma = t (Karras et al. 2022)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    @property
    def t_min(self) -> float:
        return self.sigma_min

    @property
    def t_max(self) -> float:
        return self.sigma_max

    def alpha(self, t: Tensor | float) -> Tensor:
        return torch.ones_like(_time(t))

    def sigma(self, t: Tensor | float) -> Tensor:
        return _time(t).clone()

    def rates(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        t = _time(t)
        return torch.zeros_like(t), torch.ones_like(t)

    def t(self, log_snr: Tensor | float) -> Tensor:
        return torch.exp(-0.5 * _time(log_snr))


@dataclass(frozen=True)
class RectifiedFlow(Schedule):
    """Straight path between data and noise: alpha = 1 - t, sigma = t with the data at t = 0.

    ``data_at=1`` runs the same path the other way (alpha = t), the convention of flow-matching
    libraries; t_min and t_max then bound the time as a number, and the data are at t_max.
    """

    data_at: int = 0
    t_min: float = 0.0
    t_max: float = 1.0

    def __post_init__(self) -> None:
        if self.data_at not in (0, 1):
            raise ValueError(f"data_at is the time of the data and must be 0 or 1, got {self.data_at!r}")

    @property
    def t_data(self) -> float:
        return self.t_max if self.data_at else self.t_min

    @property
    def t_prior(self) -> float:
        return self.t_min if self.data_at else self.t_max

    def alpha(self, t: Tensor | float) -> Tensor:
        return _time(t).clone() if self.data_at else 1 - _time(t)

    def sigma(self, t: Tensor | float) -> Tensor:
        return 1 - _time(t) if self.data_at else _time(t).clone()

    def rates(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        one = torch.ones_like(_time(t))
        return (one, -one) if self.data_at else (-one, one)

    def t(self, log_snr: Tensor | float) -> Tensor:
        return torch.sigmoid((0.5 if self.data_at else -0.5) * _time(log_snr))


@dataclass(frozen=True)
class LogSNR(Schedule):
    """gamma = log(sigma^2 / alpha^2) linear in t from gamma_min to gamma_max over [0, 1].

    ``path="vp"`` has alpha^2 + sigma^2 = 1 (VDM, i-DODE), ``path="straight"`` has alpha + sigma = 1
    (i-DODE's SP).
    """

    gamma_min: float = -13.3
    gamma_max: float = 5.0
    path: str = "vp"
    t_min: float = 0.0
    t_max: float = 1.0

    def __post_init__(self) -> None:
        if self.path not in ("vp", "straight"):
            raise ValueError(f"path must be 'vp' or 'straight', got {self.path!r}")

    @property
    def _power(self) -> float:
        # alpha = sigmoid(-gamma / (2 power))^power covers both paths
        return 0.5 if self.path == "vp" else 1.0

    def _gamma(self, t: Tensor | float) -> Tensor:
        return self.gamma_min + (self.gamma_max - self.gamma_min) * _time(t)

    def alpha(self, t: Tensor | float) -> Tensor:
        power = self._power
        return torch.exp(power * logsigmoid(-0.5 * self._gamma(t) / power))

    def sigma(self, t: Tensor | float) -> Tensor:
        power = self._power
        return torch.exp(power * logsigmoid(0.5 * self._gamma(t) / power))

    def rates(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        half_rate = 0.5 * (self.gamma_max - self.gamma_min)
        argument = 0.5 * self._gamma(t) / self._power
        return (
            -half_rate * self.alpha(t) * torch.sigmoid(argument),
            half_rate * self.sigma(t) * torch.sigmoid(-argument),
        )

    def log_snr(self, t: Tensor | float) -> Tensor:
        return -self._gamma(t)

    def t(self, log_snr: Tensor | float) -> Tensor:
        return (-_time(log_snr) - self.gamma_min) / (self.gamma_max - self.gamma_min)


@dataclass(frozen=True)
class DiscreteVP(Schedule):
    """A DDPM table: alpha^2 = alphas_cumprod[t], sigma^2 = 1 - alpha^2, time is the index.

    Between the indices the log-SNR is interpolated linearly, beyond them extrapolated.

    Raises ValueError unless the table has two or more values, strictly decreasing within (0, 1).
    """

    alphas_cumprod: tuple[float, ...]

    def __post_init__(self) -> None:
        table = torch.as_tensor(self.alphas_cumprod, dtype=torch.float64).flatten()
        inside = bool(((table > 0) & (table < 1)).all())
        if len(table) < 2 or not inside or bool((table.diff() >= 0).any()):
            raise ValueError("alphas_cumprod must hold two or more strictly decreasing values within (0, 1)")
        object.__setattr__(self, "alphas_cumprod", tuple(table.tolist()))

    @property
    def t_min(self) -> float:
        return 0.0

    @property
    def t_max(self) -> float:
        return float(len(self.alphas_cumprod) - 1)

    @cached_property
    def _tables(self) -> dict[tuple[torch.device, torch.dtype], Tensor]:
        return {}

    def _table(self, like: Tensor) -> Tensor:
        """The log-SNRs, kept where they are used: copying them makes the host wait."""
        key = like.device, like.dtype
        if key not in self._tables:
            table = torch.logit(torch.tensor(self.alphas_cumprod, dtype=torch.float64)).to(like)
            if torch.compiler.is_compiling():
                return table  # what is traced holds no numbers
            self._tables[key] = table
        return self._tables[key]

    def _log_snr_and_slope(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        t = _time(t)
        table = self._table(t)
        low = t.floor().clamp(0, len(table) - 2).long()
        slope = table[low + 1] - table[low]
        return table[low] + (t - low) * slope, slope

    def log_snr(self, t: Tensor | float) -> Tensor:
        return self._log_snr_and_slope(t)[0]

    def alpha(self, t: Tensor | float) -> Tensor:
        return torch.exp(0.5 * logsigmoid(self.log_snr(t)))

    def sigma(self, t: Tensor | float) -> Tensor:
        return torch.exp(0.5 * logsigmoid(-self.log_snr(t)))

    def rates(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        log_snr, slope = self._log_snr_and_slope(t)
        return (
            0.5 * slope * torch.sigmoid(-log_snr) * torch.exp(0.5 * logsigmoid(log_snr)),
            -0.5 * slope * torch.sigmoid(log_snr) * torch.exp(0.5 * logsigmoid(-log_snr)),
        )

    def t(self, log_snr: Tensor | float) -> Tensor:
        log_snr = _time(log_snr)
        table = self._table(log_snr)
        # the table decreases, searchsorted wants it increasing
        high = torch.searchsorted(-table, -log_snr.contiguous()).clamp(1, len(table) - 1)
        low = high - 1
        return low + (log_snr - table[low]) / (table[high] - table[low])


_BY_NAME = {
    kind.__name__.lower(): kind for kind in (VP, SubVP, VE, Cosine, EDM, RectifiedFlow, LogSNR, DiscreteVP)
}


def from_dict(description: dict) -> Schedule:
    """The schedule that ``Schedule.to_dict`` described."""
    arguments = dict(description)
    return named(arguments.pop("name"), **arguments)


def named(name: str | Schedule, **arguments: object) -> Schedule:
    """A schedule by its class name in any case ("vp", "subvp", "rectifiedflow", ...).

    Raises ValueError for an unknown name, listing the valid ones.
    """
    if isinstance(name, Schedule):
        return name
    kind = _BY_NAME.get(str(name).lower().replace("_", "").replace("-", ""))
    if kind is None:
        raise ValueError(f"unknown schedule {name!r}; the valid names are {', '.join(_BY_NAME)}")
    return kind(**arguments)
