"""The training loss: errors of every order, integrated over time with one weight."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..derivatives.jets import Captured
from ..model import ScoreModel
from .high_order import Errors, Forms, choose_forms, draw_probes, high_order_errors
from .time_sampling import sample_times, stratified
from .weighting import Weighting, weight


class Draws(NamedTuple):
    """All random numbers of a batch: times t (B,) and the factor w(t) / density (B,) float64, noise like
    x_0, and where the forms take them probes (K, B, *event) and mixing (B, *event)."""

    t: Tensor
    factor: Tensor
    noise: Tensor
    probes: Tensor | None
    mixing: Tensor | None

    def rows(self, rows: slice) -> Draws:
        """Those of some rows."""
        probes = None if self.probes is None else self.probes[:, rows]
        mixing = None if self.mixing is None else self.mixing[rows]
        return Draws(self.t[rows], self.factor[rows], self.noise[rows], probes, mixing)


def draw(
    model: ScoreModel, x0: Tensor, weighting: Weighting, time_sampling: str, forms: Forms, probes: int
) -> Draws:
    """Times (stratified over the batch), noise and probes from torch's global generator."""
    times = sample_times(model.schedule, time_sampling, stratified(len(x0), x0.device))
    factor = weight(weighting, model.schedule, times.t) / times.density
    noise = torch.randn_like(x0)
    signs = draw_probes(x0, probes) if forms.sampled else None
    mixed = forms.third in ("mixed", "mixed-pair")
    return Draws(times.t, factor, noise, signs, draw_probes(x0, 1)[0] if mixed else None)


def weighted_errors(
    model: ScoreModel,
    x0: Tensor,
    draws: Draws,
    forms: Forms,
    backend: str = "auto",
    captured: Captured | None = None,
    **condition: object,
) -> Errors:
    """The errors of each order times the factor of their time, each (B,); ``backend`` and ``captured`` as in
    :func:`high_order_errors`."""
    errors = high_order_errors(
        model, x0, draws.t, draws.noise, forms=forms, probes=draws.probes, mixing=draws.mixing,
        backend=backend, captured=captured, **condition,
    )  # fmt: skip
    return Errors(*(None if error is None else draws.factor.to(error.dtype) * error for error in errors))


def dsm_loss(
    model: ScoreModel,
    x0: Tensor,
    weighting: Weighting = "likelihood",
    time_sampling: str = "importance",
    **condition: object,
) -> Tensor:
    """(B,) unbiased estimates of the integral of w(t) E||eps_hat - eps||^2 / d over the path.

    With likelihood weighting, w = g^2 / sigma^2, half of it is the integral J of Song et al. 2021
    (NeurIPS, theorem 1) in nats per dimension, up to a constant that does not depend on the
    network; with importance-sampled times it is then Z ||eps_hat - eps||^2 / d.

    Times (stratified over the batch) and noise come from torch's global generator.

    Raises:
        ValueError: unknown ``weighting`` or ``time_sampling`` (the valid ones are listed).
    """
    return hdsm_loss(model, x0, 1, weighting, time_sampling, **condition).first


def hdsm_loss(
    model: ScoreModel,
    x0: Tensor,
    order: int = 2,
    weighting: Weighting = "likelihood",
    time_sampling: str = "importance",
    *,
    second: str = "auto",
    third: str = "auto",
    probes: int = 1,
    **condition: object,
) -> Errors:
    """(B,) estimates, for each order, of the integral of w(t) E error over the path (Lu et al. 2022).

    The errors are those of :mod:`.high_order`, in units of the noise: one weight and one sampling of time
    serve all orders.  First order is :func:`dsm_loss`; the sum of the orders, each with a factor of its own,
    is what is minimised.

    Args:
        order: 1, 2 or 3.
        second, third: forms of second and third order, see :mod:`.high_order`; "auto" takes all directions
            up to 3 dimensions, and probes above.
        probes: independent probes a row, for the forms that take probes.

    Raises:
        ValueError: unknown values (the valid ones are listed), a "-pair" of one probe.
    """
    forms = choose_forms(order, second, third, x0[:1].numel(), probes)
    draws = draw(model, x0, weighting, time_sampling, forms, probes)
    return weighted_errors(model, x0, draws, forms, **condition)
