"""Networks of score_sde_pytorch (Song et al. 2021, ICLR), trained in continuous time."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..model import ScoreModel, wrap
from ..schedule import VE, VP, SubVP


def from_score_sde(net: nn.Module, sde: Any, *, moments: tuple[object, object] | None = None) -> ScoreModel:
    """A score network as ``models.utils.get_score_fn(sde, net, continuous=True)`` calls it.

    Args:
        net: called with 999 t (VPSDE, subVPSDE), or with sigma (VESDE).
        sde: an object of ``sde_lib``: VPSDE, subVPSDE, or VESDE.
        moments: as for :func:`fastlik.wrap`.

    Raises:
        TypeError: another SDE.
    """
    kind = type(sde).__name__
    if kind == "VESDE":
        schedule = VE(sigma_min=float(sde.sigma_min), sigma_max=float(sde.sigma_max))
        return wrap(net, schedule, "score", time="sigma", moments=moments)
    processes = {"VPSDE": VP, "subVPSDE": SubVP}
    if kind not in processes:
        raise TypeError(f"sde must be a VPSDE, subVPSDE or VESDE of sde_lib, got {kind}")
    schedule = processes[kind](beta_min=float(sde.beta_0), beta_max=float(sde.beta_1))
    return wrap(net, schedule, "noise", time_scale=999.0, moments=moments)
