"""From a network to the ScoreModel that is trained, and back from a description of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import schedule as schedules
from ..model import ScoreModel, per_row, wrap
from ..nn import MLP, UNet, build, describe
from ..objectives.time_sampling import LOG_SNR_LIMIT, log_snr_range
from ..schedule import Schedule

TIME_SCALE = -0.125
"""The network's time is log(sigma / alpha) / 4, EDM's c_noise: of order one and smooth."""


class LimitedLogSNR:
    """log-SNR as a network's time on a path where it is infinite at an end."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def __call__(self, t: Tensor) -> Tensor:
        return self.schedule.log_snr(t).clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT)


class UnitScale:
    """Calls a network so that its input and its output are of order one for unit-variance data.

    The input is x / sqrt(alpha^2 + sigma^2); the output is multiplied by the scale of what it
    predicts: 1 / sigma for a score, |d(alpha, sigma)/dt| for a velocity.
    """

    def __init__(self, schedule: Schedule, predicts: str) -> None:
        self.schedule = schedule
        self.predicts = predicts

    def __call__(self, net: nn.Module, x: Tensor, time: Tensor, **condition: object) -> Tensor:
        t = self.schedule.t(time.double() / TIME_SCALE)
        raw = net(x / per_row(self.schedule.scale(t), x), time, **condition)
        return raw if self.predicts in ("noise", "x0") else per_row(self.gain(t), x) * raw

    def gain(self, t: Tensor) -> Tensor:
        """The scale of the predicted quantity, (B,) float64."""
        if self.predicts == "score":
            return 1 / self.schedule.sigma(t)
        if self.predicts == "velocity":
            return torch.hypot(*self.schedule.rates(t))
        return self.schedule.scale(t)  # v = alpha eps - sigma x0

    @classmethod
    def needed(cls, schedule: Schedule, predicts: str) -> bool:
        """False where all its scales are 1 already, and for "edm", which scales by itself."""
        if predicts in ("score", "velocity"):
            return True
        low, high = log_snr_range(schedule)
        scale = schedule.scale(schedule.t(torch.linspace(low, high, 9, dtype=torch.float64)))
        return predicts != "edm" and not torch.allclose(scale, torch.ones_like(scale))


def default_network(event: tuple[int, ...], condition: dict[str, Tensor]) -> nn.Module:
    """An MLP for events (d,), a UNet for events (C, H, W), at their default sizes.

    The MLP takes a condition named "condition" (N, c), the UNet one named "label", integers (N,).
    """
    accepted = {1: "condition", 3: "label"}.get(len(event))
    if accepted is None:
        raise ValueError(
            f"there is a default network for data of shape (N, d) and (N, C, H, W), not for "
            f"events of shape {event}: pass model="
        )
    if set(condition) - {accepted}:
        raise ValueError(
            f"the default network takes a condition named {accepted!r}, not "
            f"{', '.join(map(repr, condition))}: pass model="
        )
    values = condition.get(accepted)
    if len(event) == 1:
        return MLP(event[0], condition_dim=0 if values is None else values.shape[1])
    return UNet(event[0], classes=0 if values is None else int(values.max()) + 1)


def score_model(net: nn.Module, schedule: Schedule, predicts: str) -> ScoreModel:
    """A network with the conventions of training: scaled log-SNR time, inputs of unit scale."""
    low, high = schedule.log_snr(schedule.t_prior), schedule.log_snr(schedule.t_data)
    finite = bool(low.isfinite() & high.isfinite())
    return wrap(
        net,
        schedule,
        predicts,
        time="log_snr" if finite else LimitedLogSNR(schedule),
        time_scale=TIME_SCALE,
        call=UnitScale(schedule, predicts) if UnitScale.needed(schedule, predicts) else None,
    )


def describe_model(model: ScoreModel) -> dict:
    """A JSON-able description from which :func:`rebuild_model` makes the model.

    What is no plain value (a foreign network, a callable) is named, and needed again to rebuild.
    """
    conventions: dict[str, object] = {}
    for name in ("time", "call", "output"):
        value = getattr(model, name)
        ours = isinstance(value, (LimitedLogSNR, UnitScale))
        plain = value is None or isinstance(value, str)
        conventions[name] = value if plain else type(value).__name__ if ours else "custom"
    kind = type(model.net)
    network = describe(model.net) or {"foreign": f"{kind.__module__}.{kind.__qualname__}"}
    return {
        "predicts": model.predicts,
        "schedule": model.schedule.to_dict(),
        **conventions,
        "time_scale": model.time_scale,
        "sigma_data": model.sigma_data,
        "network": network,
    }


def rebuild_model(description: dict, net: nn.Module | None) -> ScoreModel:
    """The model of a description, its weights still to be loaded.

    Args:
        net: the network where it is none of fastlik.nn, or the whole ScoreModel where its
            conventions are functions.

    Raises ValueError where ``net`` is needed and missing.
    """
    if isinstance(net, ScoreModel):
        return net
    custom = [name for name in ("time", "call", "output") if description[name] == "custom"]
    if custom:
        raise ValueError(
            f"the model was trained with its own {', '.join(custom)}=, which a file cannot hold: "
            f"pass net= the same fastlik.wrap(...)"
        )
    if net is None:
        foreign = description["network"].get("foreign")
        if foreign:
            raise ValueError(f"the run trained a {foreign}: pass one as net=")
        net = build(description["network"])
    schedule = schedules.from_dict(description["schedule"])
    limited, scaled = description["time"] == "LimitedLogSNR", description["call"] == "UnitScale"
    return wrap(
        net,
        schedule,
        description["predicts"],
        time=LimitedLogSNR(schedule) if limited else description["time"],
        time_scale=description["time_scale"],
        call=UnitScale(schedule, description["predicts"]) if scaled else None,
        sigma_data=description["sigma_data"],
    )
