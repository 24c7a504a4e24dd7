"""A score model: a network, what it predicts, and the schedule of the process it was trained on.

Whatever the network predicts, everything below the model sees one ODE.  With
s = sqrt(alpha^2 + sigma^2), the state z = x / s and the angle phi = arctan(sigma / alpha), every
Gaussian path's probability-flow ODE is

    dz / dphi = v(z, phi),      v = cos(phi) eps_hat - sin(phi) x0_hat,

which is dy / drho = eps_hat (y = x / alpha, rho = sigma / alpha) in coordinates that stay regular
where alpha or sigma vanishes.  Each prediction is an affine function of x and the network's output, so
one table of coefficients turns any of the six predictions into any quantity.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .checks import check_choice
from .schedule import DiscreteVP, Schedule

PREDICTIONS = ("noise", "score", "x0", "v", "velocity", "edm")
TIMES = ("t", "sigma", "log_snr", "index")


class Affine(NamedTuple):
    """A quantity as ``x * of_x + output * of_output``, coefficients of shape (B,)."""

    of_x: Tensor
    of_output: Tensor

    def __call__(self, x: Tensor, output: Tensor) -> Tensor:
        return per_row(self.of_x, x) * x + per_row(self.of_output, x) * output


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, ..., 1) in the dtype of ``like`` (B, *event)."""
    return values.to(like.dtype).reshape(-1, *(1,) * (like.dim() - 1))


class ScoreModel(nn.Module):
    """A network with its conventions; made by :func:`wrap`.

    The methods take x (B, *event) and t, a number or a tensor (B,) on the schedule's time axis, and
    return a tensor like x:

    * ``noise``: eps_hat = E[eps | x_t],
    * ``score``: grad log p_t = -eps_hat / sigma,
    * ``denoised``: x0_hat = E[x_0 | x_t],
    * ``velocity``: dx/dt of the probability-flow ODE.
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        schedule: Schedule,
        predicts: str,
        time: str | Callable[[Tensor], Tensor] = "t",
        time_scale: float = 1.0,
        output: Callable[[object], Tensor] | None = None,
        call: Callable[..., object] | None = None,
        moments: tuple[object, object] | None = None,
        sigma_data: float = 0.5,
    ) -> None:
        super().__init__()
        self.net = net
        self.schedule = schedule
        self.predicts = predicts
        self.time = time
        self.time_scale = time_scale
        self.output = output
        self.call = call
        self.sigma_data = sigma_data
        # the bins and range of discrete training data (a likelihood.dequantise.Quantisation), if any
        self.quantisation = None
        # the shape of one training sample, if known
        self.event_shape: tuple[int, ...] | None = None
        self.set_moments(moments)

    def set_moments(self, moments: tuple[object, object] | None) -> None:
        """Store the data's (mean, variance or covariance), or None; float64 buffers."""
        mean, spread = (None, None) if moments is None else moments
        for name, value in (("data_mean", mean), ("data_spread", spread)):
            if value is not None:
                value = torch.as_tensor(value, dtype=torch.float64).detach().clone()
            self.register_buffer(name, value, persistent=False)

    @property
    def moments(self) -> tuple[Tensor, Tensor] | None:
        """(mean, variance or covariance) of the data, or None where they are not known."""
        return None if self.data_mean is None else (self.data_mean, self.data_spread)

    def noise(self, x: Tensor, t: Tensor | float, **condition: object) -> Tensor:
        return self._quantity("noise", x, t, condition)

    def score(self, x: Tensor, t: Tensor | float, **condition: object) -> Tensor:
        t = self._times(x, t)
        return -self.noise(x, t, **condition) / per_row(self.schedule.sigma(t), x)

    def denoised(self, x: Tensor, t: Tensor | float, **condition: object) -> Tensor:
        return self._quantity("x0", x, t, condition)

    def velocity(self, x: Tensor, t: Tensor | float, **condition: object) -> Tensor:
        t = self._times(x, t)
        v = self._quantity("v", x, t, condition)
        growth, turn, scale = _motion(self.schedule, t)
        return per_row(growth, x) * x + per_row(scale * turn, x) * v

    def angular_velocity(self, z: Tensor, angle: Tensor, **condition: object) -> Tensor:
        """dz/dphi at z (B, *event) and angle phi (B,) float64: the ODE that everything integrates."""
        return self.field(angle, z, condition)(z)

    def field(self, angle: Tensor, like: Tensor, condition: dict) -> Callable[[Tensor], Tensor]:
        """z -> dz/dphi at angles phi (B,), for states like ``like`` (B, *event).

        What depends on the angles alone is formed here, once, and not where z's derivatives are taken.
        """
        t = self.schedule.t_at_angle(angle)
        scale = per_row(self.schedule.scale(t), like)
        affine = coefficients("v", self.predicts, self.schedule, t, self.sigma_data)
        of_x, of_output = (per_row(each, like) for each in affine)

        def velocity(z: Tensor) -> Tensor:
            x = scale * z
            return of_x * x + of_output * self(x, t, **condition)

        return velocity

    def forward(self, x: Tensor, t: Tensor | float, **condition: object) -> Tensor:
        """The network's own prediction at time t, in the network's own parameterisation."""
        t = self._times(x, t)
        if self.predicts == "edm":
            alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
            x = x / per_row(torch.hypot(sigma, alpha * self.sigma_data), x)
        return self._evaluate(x, self._network_time(t).to(x.dtype), condition)

    def _quantity(self, name: str, x: Tensor, t: Tensor | float, condition: dict) -> Tensor:
        t = self._times(x, t)
        affine = coefficients(name, self.predicts, self.schedule, t, self.sigma_data)
        return affine(x, self(x, t, **condition))

    def _times(self, x: Tensor, t: Tensor | float) -> Tensor:
        t = torch.as_tensor(t, dtype=torch.float64, device=x.device)
        return t.expand(x.shape[0]) if t.dim() == 0 else t

    def _network_time(self, t: Tensor) -> Tensor:
        if callable(self.time):
            time = self.time(t)
        elif self.time == "sigma":
            time = self.schedule.sigma(t)
        elif self.time == "log_snr":
            time = self.schedule.log_snr(t)
        else:
            time = t
        return time * self.time_scale

    def _evaluate(self, x: Tensor, time: Tensor, condition: dict) -> Tensor:
        if self.call is not None:
            raw = self.call(self.net, x, time, **condition)
        else:
            raw = self.net(x, time, **condition)
        raw = raw if self.output is None else self.output(raw)
        if not hasattr(raw, "shape"):  # a tensor, or a jet under torch.compile
            raise TypeError(
                f"the network returned {type(raw).__name__}, not a tensor; say how to read it with "
                f"wrap(..., output=lambda out: out.sample) or out[0]"
            )
        if raw.shape != x.shape:
            raise ValueError(
                f"the network maps {tuple(x.shape)} to {tuple(raw.shape)}, but a prediction has the "
                f"shape of x; for a learned variance take wrap(..., output=lambda out: out.chunk(2, 1)[0])"
            )
        return raw


def _motion(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(d log s / dt, d phi / dt, s) of the polar form s = sqrt(alpha^2 + sigma^2), phi = arctan."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    d_alpha, d_sigma = schedule.rates(t)
    square = alpha**2 + sigma**2
    growth = (alpha * d_alpha + sigma * d_sigma) / square
    turn = (alpha * d_sigma - sigma * d_alpha) / square
    return growth, turn, square.sqrt()


def coefficients(
    quantity: str, predicts: str, schedule: Schedule, t: Tensor, sigma_data: float = 0.5
) -> Affine:
    """How ``quantity`` ("noise", "x0" or "v" of the angle) follows from x and the prediction.

    Formed in float64 from (B,) times, so that nothing cancels in the state's precision.
    """
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
    direct = {
        ("noise", "noise"): (zero, one),
        ("noise", "score"): (zero, -sigma),
        ("x0", "x0"): (zero, one),
    }
    if (quantity, predicts) in direct:
        return Affine(*direct[quantity, predicts])
    scale = torch.hypot(alpha, sigma)
    v = _angular_velocity(predicts, schedule, t, sigma_data)
    if quantity == "v":
        return v
    if quantity == "noise":  # eps = sin(phi) z + cos(phi) v
        return Affine((sigma / scale + alpha * v.of_x) / scale, alpha * v.of_output / scale)
    # x0 = cos(phi) z - sin(phi) v
    return Affine((alpha / scale - sigma * v.of_x) / scale, -sigma * v.of_output / scale)


def _angular_velocity(predicts: str, schedule: Schedule, t: Tensor, sigma_data: float) -> Affine:
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    scale = torch.hypot(alpha, sigma)
    if predicts in ("noise", "score"):  # v = (eps - sin z) / cos
        gain = scale / alpha
        return Affine(-sigma / (alpha * scale), gain if predicts == "noise" else -gain * sigma)
    if predicts == "x0":  # v = (cos z - x0) / sin
        return Affine(alpha / (sigma * scale), -scale / sigma)
    if predicts == "v":  # the prediction is alpha eps - sigma x0 = s v
        return Affine(torch.zeros_like(scale), 1 / scale)
    if predicts == "velocity":  # dx/dt = (s'/s) x + s phi' v
        growth, turn, scale = _motion(schedule, t)
        return Affine(-growth / (scale * turn), 1 / (scale * turn))
    # edm: D(y) = c_skip y + c_out F of y = x / alpha, put into v = (cos z - D) / sin
    spread = torch.hypot(sigma, alpha * sigma_data)
    return Affine(alpha * sigma * (1 - sigma_data**2) / (scale * spread**2), -sigma_data * scale / spread)


def check_model(model: object) -> None:
    """Raise TypeError unless ``model`` is a ScoreModel."""
    if not isinstance(model, ScoreModel):
        raise TypeError(
            f"model must be a ScoreModel, got {type(model).__name__}; say what the network predicts "
            f'and on which process: fastlik.wrap(net, fastlik.VP(), predicts="noise")'
        )


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off and the like; every module's own mode is restored afterwards."""
    training = [module for module in model.modules() if module.training]
    # by hand where that is all there is to it: nn.Module's own assignment takes ten times as long
    plain = all(map(_has_plain_mode, training))
    if not plain:
        model.eval()
    else:
        for module in training:
            vars(module)["training"] = False
    try:
        yield
    finally:
        for module in training:
            if plain:
                vars(module)["training"] = True
            else:
                module.training = True


def _has_plain_mode(module: nn.Module) -> bool:
    """Not so of scripted and compiled modules."""
    return "training" in vars(module) and type(module).train is nn.Module.train


def wrap(
    net: Callable[..., Tensor],
    schedule: Schedule,
    predicts: str,
    time: str | Callable[[Tensor], Tensor] = "t",
    time_scale: float = 1.0,
    output: Callable[[object], Tensor] | None = None,
    call: Callable[..., object] | None = None,
    moments: tuple[object, object] | None = None,
    sigma_data: float = 0.5,
) -> ScoreModel:
    """Describe a network to fastlik.

    Args:
        net: called as ``net(x, time, **condition)``, x (B, *event) and time (B,), both in x's dtype.
        schedule: the process it was trained on, e.g. ``fastlik.VP()``.
        predicts: "noise" (eps), "score" (grad log p_t), "x0" (the denoised sample, also an EDM
            denoiser D), "v" (alpha eps - sigma x0), "velocity" (dx/dt), or "edm" (the raw residual
            network F of Karras et al. 2022, table 1, called with the input c_in x / alpha).
        time: what the network gets as its time: "t", "sigma", "log_snr", "index" (of a
            ``DiscreteVP``), or a function of t (B,) float64.
        time_scale: multiplies it (999 or 1000 for most VP networks; with "log_snr", -1/8 is EDM's
            c_noise).
        output: picks the prediction out of what the network returns.
        call: ``call(net, x, time, **condition)`` where the network has another signature.
        moments: (mean, variance or covariance) of the data: scalars, event-shaped, or a covariance
            (d, d) over the flattened event.  Gives the matched prior.
        sigma_data: the data's standard deviation in EDM's preconditioning, for "edm".

    Returns:
        A :class:`ScoreModel`, an nn.Module that holds ``net``.

    Raises:
        ValueError: unknown ``predicts`` or ``time`` (the valid ones are listed).
        TypeError: ``schedule`` is not a Schedule.
    """
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule must be one of fastlik's schedules, e.g. fastlik.VP(), got {schedule!r}")
    check_choice("predicts", predicts, PREDICTIONS)
    if not callable(time):
        check_choice("time", time, TIMES)
        if time == "index" and not isinstance(schedule, DiscreteVP):
            raise ValueError('time="index" is the index of a table: it needs a fastlik.DiscreteVP')
    return ScoreModel(net, schedule, predicts, time, time_scale, output, call, moments, sigma_data)
