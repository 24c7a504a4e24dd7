"""The objective of a run as a module: from the rows of a batch and its random numbers to the losses."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..model import ScoreModel
from ..objectives.high_order import Forms
from ..objectives.loss import Draws, weighted_errors


class Objective(nn.Module):
    """The loss of each order; a module, so that distributed wrappers see what is called."""

    def __init__(self, model: ScoreModel, forms: Forms) -> None:
        super().__init__()
        self.model, self.forms = model, forms

    def forward(self, x0: Tensor, draws: Draws, condition: dict[str, Tensor]) -> Tensor:
        """(order,) sums over the rows of x_0 (B, *event), in float32 at least."""
        errors = weighted_errors(self.model, x0, draws, self.forms, **condition)
        return torch.stack([error.sum() for error in errors if error is not None])
