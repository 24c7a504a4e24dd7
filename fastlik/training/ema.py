"""Exponential moving average of a model's weights."""

from __future__ import annotations

import copy

import torch
from torch import nn

from ..model import ScoreModel


class EMA:
    """``model`` is a frozen copy, in eval mode, whose weights trail those of the trained model.

    The decay grows as (1 + step) / (10 + step) up to ``decay``, so that the first weights, which
    are noise, are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Follow ``model`` after its ``step``-th update, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        mine, theirs = list(self.model.parameters()), list(model.parameters())
        torch._foreach_lerp_(mine, theirs, 1 - decay)
        # of a ScoreModel those of its network: the data's moments do not change
        pair = (self.model, model)
        mine, theirs = ((m.net if isinstance(m, ScoreModel) else m).buffers() for m in pair)
        buffers = zip(mine, theirs, strict=True)
        for buffer, current in buffers:
            buffer.copy_(current)
