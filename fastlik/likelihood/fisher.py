"""Fisher divergences over time between three scores: the model's, its ODE's, and the true one.

First-order score matching makes "model, true" small, whose integral bounds KL(data | SDE model).  The KL of
the ODE model is bounded by the geometric mean of the integrals of "model, true" and "ode, true" (Lu et al.
2022), and "ode, true" is what second and third order are for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import checks
from ..derivatives.probes import Stream, gaussian
from ..model import ScoreModel, check_model, evaluating, per_row
from ..objectives.time_sampling import log_snr_range
from .flow import take_rows
from .ode_score import ode_score


@dataclass(frozen=True)
class FisherDivergences:
    """E sigma^2 ||a - b||^2 / d over x_t of the data's own process, at times t (T,), all float64 (T,).

    ``model_ode`` compares the model's score with that of its ODE, ``model_true`` and ``ode_true`` either with
    the true score, None where that is not known; ``stderr`` holds their standard errors by name.
    ``weights`` (T,) are those of the quadrature in log-SNR, in which half the integral is in nats per
    dimension.
    """

    t: Tensor
    log_snr: Tensor
    weights: Tensor
    model_ode: Tensor
    model_true: Tensor | None
    ode_true: Tensor | None
    stderr: dict[str, Tensor]

    def integral(self, name: str) -> float:
        """1/2 int g^2 E||a - b||^2 / d dt in nats per dimension."""
        return 0.5 * float(self.weights @ getattr(self, name))


def fisher_divergences(
    model: ScoreModel,
    x0: Tensor,
    times: Tensor | int = 20,
    *,
    true_score: Callable[[Tensor, Tensor], Tensor] | None = None,
    condition: dict | None = None,
    seed: int = 0,
    **options: object,
) -> FisherDivergences:
    """Compare the model's score, the score of its ODE's density and the true score along the process.

    Args:
        x0: data (B, *event); every time gets the same rows with other noise.
        times: T times on the schedule's axis, in order (integrated by the trapezium rule), or their
            number: midpoints of equal intervals of log-SNR.
        true_score: (x (B, *event), t (B,)) -> grad log q_t(x), where it is known.
        condition: keyword arguments of the network.
        seed: of the noise and of the probes.
        options: of :func:`fastlik.ode_score`.

    Raises:
        TypeError, ValueError: as :func:`fastlik.ode_score`.
    """
    check_model(model)
    checks.check_batch(x0, "x0")
    schedule = model.schedule
    if isinstance(times, int):
        low, high = log_snr_range(schedule)
        weights = torch.full((times,), (high - low) / times, dtype=torch.float64)
        times = schedule.t(high - weights.cumsum(0) + weights / 2)
    else:
        gaps = schedule.log_snr(times.double()).diff().abs() / 2
        weights = torch.cat((gaps, gaps.new_zeros(1))) + torch.cat((gaps.new_zeros(1), gaps))
    count = len(times)
    # all times in one solve, whose rows have spans of their own
    t = times.to(x0.device).double().repeat_interleave(len(x0))
    rows = torch.arange(len(x0), device=x0.device).repeat(count)
    node = torch.arange(count, device=x0.device).repeat_interleave(len(x0))
    size = max(1, x0[:1].numel())
    noise = gaussian(seed, Stream.NOISE, rows, 0, node, size).to(x0.dtype).reshape(-1, *x0.shape[1:])
    sigma = per_row(schedule.sigma(t), noise)
    x = per_row(schedule.alpha(t), noise) * x0.repeat(count, *(1,) * (x0.dim() - 1)) + sigma * noise
    index = torch.arange(len(x0), device=x0.device).repeat(count)
    condition = {name: take_rows(value, index, len(x0)) for name, value in (condition or {}).items()}
    with torch.no_grad(), evaluating(model):
        own = model.score(x, t, **condition)
    ode = ode_score(model, x, t, condition=condition, seed=seed, rows=rows, **options)
    pairs = {"model_ode": (own, ode)}
    if true_score is not None:
        truth = true_score(x, t)
        pairs |= {"model_true": (own, truth), "ode_true": (ode, truth)}
    tables = {
        name: (sigma * (a - b)).flatten(1).double().square().mean(1).reshape(count, len(x0))
        for name, (a, b) in pairs.items()
    }
    means = {name: table.mean(1) for name, table in tables.items()}
    return FisherDivergences(
        t=times,
        log_snr=schedule.log_snr(times),
        weights=weights,
        model_ode=means["model_ode"],
        model_true=means.get("model_true"),
        ode_true=means.get("ode_true"),
        stderr={name: table.std(1) / max(1, len(x0)) ** 0.5 for name, table in tables.items()},
    )
