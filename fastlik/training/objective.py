"""The objective of a run as a module: from the rows of a batch and its random numbers to the losses."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..derivatives.jets import Captured, capture
from ..model import ScoreModel
from ..objectives.high_order import Forms
from ..objectives.loss import Draws, weighted_errors
from ..objectives.weighting import OrderWeight, order_weight


class Objective(nn.Module):
    """The losses of a batch; a module, so that wrappers and compilers see all that is differentiated.

    weights: of second and third order, numbers or functions of time.
    backend: of the derivatives, as in ``fastlik.objectives.high_order_errors``.
    """

    def __init__(
        self,
        model: ScoreModel,
        forms: Forms,
        weights: tuple[OrderWeight, OrderWeight],
        backend: str = "native",
    ) -> None:
        super().__init__()
        self.model, self.forms, self.weights, self.backend = model, forms, weights, backend
        self.captured: Captured | None = None

    def compile_for(self, x0: Tensor, condition: dict[str, Tensor]) -> None:
        """Compile the losses with their derivatives, for rows like these.

        Where the network is differentiated inside, its graph of operations is captured first:
        torch.compile follows jets through the graph, but not through any network's Python code.

        Raises NoDerivative where there is no such graph.
        """
        if self.forms.second:
            t = torch.full((len(x0),), self.model.schedule.t_prior, dtype=torch.float64, device=x0.device)
            self.captured, self.backend = capture(self.model, x0, t, **condition), "auto"
        self.compile()

    def forward(self, x0: Tensor, draws: Draws, condition: dict[str, Tensor]) -> Tensor:
        """(1 + order,) sums over the rows of x_0 (B, *event): what is minimised, and each order's loss."""
        errors = weighted_errors(self.model, x0, draws, self.forms, self.backend, self.captured, **condition)
        errors = [error for error in errors if error is not None]
        total = errors[0].sum()
        for weight, error in zip(self.weights, errors[1:], strict=False):
            total = total + (order_weight(weight, draws.t).to(error.dtype) * error).sum()
        return torch.stack([total, *(error.sum() for error in errors)])
