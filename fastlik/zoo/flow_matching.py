"""Velocity fields of flow_matching and torchcfm, which have the data at t = 1."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..model import ScoreModel, wrap
from ..schedule import RectifiedFlow


def from_flow_matching(
    model: Callable[..., Tensor], *, moments: tuple[object, object] | None = None
) -> ScoreModel:
    """A velocity of Meta's flow_matching, called as ``model(x=x, t=t, **condition)`` with t (B,).

    Any path from N(0, I) at t = 0 to the data at t = 1, straight or not, and any coupling: the ODE is the
    velocity's own.  Scores follow where the path is ``CondOTProbPath`` with independent ends.

    ``moments``: as for :func:`fastlik.wrap`.
    """
    return wrap(model, RectifiedFlow(data_at=1), "velocity", call=_by_keyword, moments=moments)


def from_torchcfm(net: Callable[..., Tensor], *, moments: tuple[object, object] | None = None) -> ScoreModel:
    """A velocity of torchcfm: called as ``net(t, x, **condition)``, as its U-Nets are, or, where the network
    is its MLP with ``time_varying=True``, with x (B, d) and t in one tensor (B, d + 1).

    x is N(0, I) at t = 0; ``moments``: as for :func:`fastlik.wrap`.
    """
    call = _joined if getattr(net, "time_varying", False) else _time_first
    return wrap(net, RectifiedFlow(data_at=1), "velocity", call=call, moments=moments)


def _by_keyword(net: Callable[..., Tensor], x: Tensor, t: Tensor, **condition: object) -> Tensor:
    return net(x=x, t=t, **condition)


def _time_first(net: Callable[..., Tensor], x: Tensor, t: Tensor, **condition: object) -> Tensor:
    return net(t, x, **condition)


def _joined(net: Callable[..., Tensor], x: Tensor, t: Tensor) -> Tensor:
    return net(torch.cat((x, t[:, None]), 1))
