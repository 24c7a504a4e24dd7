"""The integral over noise levels behind bounds and density formulas, estimated for each row by random draws.

With gamma = log(sigma^2 / alpha^2) and eps_hat the model's noise prediction at alpha x_0 + sigma eps,

    nats(x_0) = closed(x_0) + int (1/2 E||eps - eps_hat||^2 - anchor) dgamma,

where ``closed`` holds the anchor's integral, the latent's density and constants.  An estimate is a sum over
strata of gamma of the mean of independent pairs of draws, whose spread within the strata gives its standard
error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..derivatives.divergence import exact_trace, traces
from ..derivatives.probes import Draws, Stream, gaussian
from ..model import ScoreModel, per_row
from ..objectives.residual import NoiseResidual
from ..objectives.time_sampling import log_snr_range
from ..solvers.status import Status
from .anchor import Anchor
from .chunks import evaluate_by_chunks
from .flow import Trace
from .inputs import Data, time_ends
from .result import NLL, warn_of_failures
from .strata import Strata


class Span(NamedTuple):
    """The part of the path that is integrated: gamma and the schedule's time at either end."""

    start: float
    end: float
    t_data: float
    t_prior: float

    @classmethod
    def of(cls, model: ScoreModel, t_min: float | None, t_max: float | None) -> Span:
        """Between t_min and t_max; infinite log-SNRs are cut as in training."""
        schedule = model.schedule
        times = time_ends(schedule, t_min, t_max)
        low, high = log_snr_range(schedule, times)
        cut = (torch.tensor(end, dtype=torch.float64) for end in (high, low))
        t_data, t_prior = (
            t if math.isfinite(schedule.log_snr(t)) else schedule.t(end).item()
            for t, end in zip(times, cut, strict=True)
        )
        return cls(-high, -low, t_data, t_prior)


@dataclass(frozen=True)
class PathIntegral:
    """The random part of an estimate.

    Attributes:
        span: within which ``strata`` has its levels.
        anchor: what is subtracted.
        trace: how the divergence of the implicit form is taken; None for the explicit form.
        seed: of levels, noise and probes.
    """

    model: ScoreModel
    span: Span
    strata: Strata
    anchor: Anchor
    trace: Trace | None
    seed: int

    @property
    def draws(self) -> int:
        """Evaluations of the network a row."""
        return 2 * self.strata.count * self.strata.pairs

    def gamma(self, rows: Tensor, number: Tensor) -> Tensor:
        """(N,) float64 levels of the pairs ``number`` (N,) of the rows with ids ``rows`` (N,)."""
        return self.strata.gamma(self.seed, rows, number)

    def noise(self, like: Tensor, rows: Tensor, number: Tensor) -> Tensor:
        """Their standard normal noise, like ``like`` (N, *event)."""
        size = like.shape[1:].numel()
        return gaussian(self.seed, Stream.NOISE, rows, 0, number, size).to(like).reshape(like.shape)

    def times(self, gamma: Tensor) -> Tensor:
        """The schedule's times, within the span whatever the rounding."""
        ends = sorted((self.span.t_data, self.span.t_prior))
        return self.model.schedule.t(-gamma).clamp(*ends)

    def values(
        self, x0: Tensor, gamma: Tensor, noise: Tensor, rows: Tensor, probe: Tensor | int, condition: dict
    ) -> Tensor:
        """(N,) float64 nats: 1/2 ||eps - eps_hat||^2, or its implicit form, less the anchor.

        x0, noise: (N, *event); gamma: (N,) float64.  rows, probe: (N,) ids and numbers that key the probes.
        """
        t, snr = self.times(gamma), (-gamma).exp()
        if self.trace is None:
            residual = NoiseResidual(self.model, x0, t, noise, condition)
            error = residual.value(residual.network(residual.x))
            return 0.5 * _square(error) - self.anchor.explicit(x0, noise, snr)
        schedule, trace = self.model.schedule, self.trace
        sigma = schedule.sigma(t)
        x = per_row(schedule.alpha(t), x0) * x0 + per_row(sigma, x0) * noise

        def predict(x: Tensor) -> Tensor:
            return self.model.noise(x, t, **condition)

        if trace.exact:
            guess, divergence = exact_trace(predict, x, trace.mode, trace.backend)
        else:
            draws = Draws(trace.kind, self.seed, rows, range(trace.probes), probe)
            guess, estimates = traces(predict, x, draws.vectors(x), trace.mode, trace.backend, draws=draws)
            divergence = estimates.mean(1)
        size = x0.shape[1:].numel()
        implicit = 0.5 * (size + _square(guess)) - sigma * divergence
        return implicit - self.anchor.implicit(x0, noise, snr)

    def pairs(
        self, x0: Tensor, gamma: Tensor, noise: Tensor, rows: Tensor, number: Tensor, condition: dict
    ) -> Tensor:
        """(N,) means of :meth:`values` over the two draws of each pair; conditions have 2 N rows."""
        values = self.values(
            torch.cat((x0, x0)),
            gamma.repeat(2),
            torch.cat((noise, -noise)),
            rows.repeat(2),
            torch.cat((2 * number, 2 * number + 1)),
            condition,
        )
        return values.unflatten(0, (2, -1)).mean(0)


class Closed(NamedTuple):
    """The part without network: of x_0 (N, *event) and, where ``is_random``, of a draw's noise like it."""

    value: Callable[[Tensor, Tensor | None], Tensor]
    is_random: bool


def evaluate_path_integral(
    integral: PathIntegral, closed: Closed, data: Data, chunk: str | int, progress: bool, protocol: dict
) -> NLL:
    """The rows' estimates; ``chunk`` is the number of network evaluations made together."""

    def evaluate(index: slice, together: int) -> NLL:
        return _evaluate_rows(integral, closed, data, index, together)

    def finish(result: NLL) -> NLL:
        result.protocol = protocol | {"precision": str(result.latent.dtype).removeprefix("torch.")}
        warn_of_failures(result.status, result.stopped_at, "have no estimate (nats = NaN)")
        return result

    with torch.no_grad():
        return evaluate_by_chunks(evaluate, finish, data.model, data.x, chunk, progress, integral.draws)


def _evaluate_rows(integral: PathIntegral, closed: Closed, data: Data, index: slice, together: int) -> NLL:
    strata, device = integral.strata, data.x.device
    position = torch.arange(len(data.x), device=device)[index]
    # where the part without network is another for each pair, it is averaged with the rest
    drawn = data.dequantiser is not None or closed.is_random
    block = max(1, together // max(1, 2 * strata.pairs * len(position)))
    tables, levels = [], []
    for start in range(0, strata.count, block):
        stop = min(start + block, strata.count)
        number = torch.arange(start * strata.pairs, stop * strata.pairs, device=device)
        shape = len(position), stop - start, strata.pairs
        owner, number = position.repeat_interleave(len(number)), number.repeat(len(position))
        (x0, log_q), rows = data.points(owner, number, integral.seed), data.rows[owner]
        gamma, noise = integral.gamma(rows, number), integral.noise(x0, rows, number)
        values = integral.pairs(x0, gamma, noise, rows, number, data.conditions(owner.repeat(2)))
        values = strata.weights(device)[number // strata.pairs] * values
        if drawn:
            ends = log_q + 0.5 * (closed.value(x0, noise) + closed.value(x0, -noise))
            values = values + ends / strata.count
        tables.append(values.reshape(shape))
        levels.append(gamma.reshape(shape))
    table = torch.cat(tables, 1)
    nats = table.mean(2).sum(1)
    if not drawn:
        x0, log_q = data.points(position, 0, integral.seed)
        nats = nats + closed.value(x0, None) + log_q
    return _as_nll(integral, data, position, nats, table, torch.cat(levels, 1).flatten(1))


def _as_nll(
    integral: PathIntegral, data: Data, position: Tensor, nats: Tensor, table: Tensor, gamma: Tensor
) -> NLL:
    good = nats.isfinite()
    status = torch.where(good, int(Status.DONE), int(Status.NON_FINITE))
    # where a row failed: at its first pair that is not finite
    first = (~table.flatten(1).isfinite()).long().argmax(1)
    span = integral.span
    stopped_at = integral.times(gamma.gather(1, first[:, None])[:, 0])
    evaluations = torch.full_like(position, integral.draws)
    return NLL(
        nats=nats.masked_fill(~good, torch.nan),
        stderr=standard_error(table).masked_fill(~good, torch.nan),
        discretisation=torch.full_like(nats, integral.strata.gap * data.size),
        latent=_latent(integral, data, position),
        nfe=evaluations,
        trace_evaluations=evaluations if integral.trace is not None else torch.zeros_like(evaluations),
        status=status,
        stopped_at=stopped_at.masked_fill(good, span.t_prior),
    )


def standard_error(table: Tensor) -> Tensor:
    """(B,) of the sum over strata of the mean over pairs, from weighted values (B, strata, pairs).

    The pairs of a stratum are independent and alike.  Those of its neighbours are, up to a trend over the
    strata that is removed, and count as well: the spread of a stratum is that of six pairs instead of two,
    which makes error over standard error more nearly normal.
    """
    strata, pairs = table.shape[1:]
    width = min(3, strata)
    first = (torch.arange(strata, device=table.device) - 1).clamp(0, strata - width)
    windows = first[:, None] + torch.arange(width, device=table.device)
    values = table[:, windows].flatten(2)
    place = torch.arange(width, dtype=table.dtype, device=table.device).repeat_interleave(pairs)
    trends = torch.stack([place**power for power in range(min(2, width))], 1)
    basis = torch.linalg.qr(trends).Q
    squares = (values - values @ basis @ basis.T).square().sum(2)
    return (squares.sum(1) / (pairs * (len(place) - basis.shape[1]))).sqrt()


def _latent(integral: PathIntegral, data: Data, position: Tensor) -> Tensor:
    """x_T of each row's first draw."""
    zero = torch.zeros_like(position)
    x0, _ = data.points(position, zero, integral.seed)
    noise = integral.noise(x0, data.rows[position], zero)
    schedule, t = integral.model.schedule, integral.span.t_prior
    return schedule.alpha(t).item() * x0 + schedule.sigma(t).item() * noise


def _square(values: Tensor) -> Tensor:
    return values.flatten(1).double().square().sum(1)
