"""Networks and schedulers of Hugging Face diffusers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..model import ScoreModel, wrap
from ..schedule import EDM, DiscreteVP, RectifiedFlow

_PREDICTIONS = {"epsilon": "noise", "sample": "x0", "v_prediction": "v"}


def from_diffusers(
    model: Any, scheduler: Any = None, *, moments: tuple[object, object] | None = None
) -> ScoreModel:
    """A diffusers network with the conventions that its scheduler's configuration states.

    Args:
        model: a pipeline, or a network such as UNet2DModel, UNet2DConditionModel or DiTTransformer2DModel,
            which is called as ``model(x, timestep, **condition)``; where it returns twice as many channels as
            x has, as with a learned variance, the first half counts.
        scheduler: with a network, the scheduler it was trained with: one that holds ``alphas_cumprod``
            (DDPM, DDIM, DPMSolverMultistep, ...), EDMEuler or EDMDPMSolverMultistep, FlowMatchEuler or
            FlowMatchHeun.  How it samples does not matter.
        moments: as for :func:`fastlik.wrap`.

    Returns:
        The model of what the network sees: of latents, where an autoencoder stands before it.

    Raises:
        TypeError: there is no scheduler, or one whose process is not known here; :func:`fastlik.wrap` takes
            any network.
        ValueError: the scheduler's prediction type is not known.
    """
    if scheduler is None:
        model, scheduler = _parts(model)
    conventions = _conventions(scheduler)
    return wrap(model, **conventions, call=_call, moments=moments)


def _parts(pipeline: Any) -> tuple[nn.Module, Any]:
    net = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    scheduler = getattr(pipeline, "scheduler", None)
    if net is None or scheduler is None:
        raise TypeError(
            f"{type(pipeline).__name__} is no pipeline with a unet or transformer and a scheduler; pass the "
            f"network and its scheduler: from_diffusers(net, scheduler)"
        )
    return net, scheduler


def _conventions(scheduler: Any) -> dict[str, Any]:
    config = getattr(scheduler, "config", None)
    kind = type(scheduler).__name__
    if hasattr(scheduler, "alphas_cumprod"):
        return _of_table(scheduler.alphas_cumprod, _prediction(config, _PREDICTIONS))
    if kind.startswith("EDM"):
        # both are the residual of the denoiser, which diffusers scales by different signs
        sign = _prediction(config, {"epsilon": 1.0, "v_prediction": -1.0})
        return {
            "schedule": EDM(float(config.sigma_min), float(config.sigma_max)),
            "predicts": "edm",
            "time": "log_snr",
            "time_scale": -1 / 8,
            "sigma_data": float(config.sigma_data),
            "output": None if sign > 0 else torch.neg,
        }
    if kind.startswith("FlowMatch"):
        steps = float(config.num_train_timesteps)
        return {"schedule": RectifiedFlow(), "predicts": "velocity", "time_scale": steps}
    raise TypeError(
        f"the process of {kind} is not known; say what the network predicts, and on which process, with "
        f"fastlik.wrap(net, schedule, predicts=...)"
    )


def _of_table(alphas_cumprod: Tensor, predicts: str) -> dict[str, Any]:
    # the last step of a schedule rescaled to zero SNR has no score
    table = tuple(value for value in alphas_cumprod.double().tolist() if value > 0)
    return {"schedule": DiscreteVP(table), "predicts": predicts, "time": "index"}


def _prediction(config: Any, known: dict[str, Any]) -> Any:
    kind = config.prediction_type
    if kind not in known:
        raise ValueError(f"prediction_type {kind!r} is not known: it must be one of {', '.join(known)}")
    return known[kind]


def _call(net: nn.Module, x: Tensor, time: Tensor, **condition: object) -> Tensor:
    out = net(x, time, **condition)
    sample = out.sample if hasattr(out, "sample") else out[0]
    return sample[:, : x.shape[1]] if sample.shape[1] == 2 * x.shape[1] else sample
