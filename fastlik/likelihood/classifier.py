"""Which of several conditions fits best: ``fastlik.classify``, a diffusion classifier with error bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .. import checks
from ..derivatives.probes import Stream, uniform
from ..model import ScoreModel
from ..solvers.status import Status
from .anchor import PlainAnchor
from .bound import DRAWS, check_draws, uniform_strata
from .chunks import evaluate_by_chunks
from .inputs import Data
from .path_integral import PathIntegral, Span, standard_error
from .result import warn_of_failures

# a class whose log-odds against the leader are below this, by more than so many standard errors, is dropped
_OUT, _CERTAIN = -7.0, 3.0
# after so many of the strata in each block of 8, and 8 in all
_BLOCK, _STOPS, _LEAST = 8, (1, 2, 4), 8


@dataclass
class Classification:
    """Posteriors of B rows over C classes.

    Attributes:
        log_posterior: (B, C) float64 nats, normalised over the classes; NaN where the row failed.
        stderr: (B, C) float64 nats, standard error of that from the draws.
        draws: (B, C) int64 evaluations of the network for each class.
        status: (B,) int64 codes of :class:`fastlik.solvers.status.Status`; DONE is a good row.
        protocol: every convention behind the numbers.
    """

    log_posterior: Tensor
    stderr: Tensor
    draws: Tensor
    status: Tensor
    protocol: dict = field(default_factory=dict)

    @property
    def predicted(self) -> Tensor:
        """(B,) int64: the most probable class."""
        return self.log_posterior.argmax(1)

    @property
    def nfe(self) -> Tensor:
        """(B,) int64 evaluations of the network."""
        return self.draws.sum(1)

    def __len__(self) -> int:
        return len(self.log_posterior)


def classify(
    model: ScoreModel,
    x: Tensor,
    classes: Sequence[object],
    *,
    key: str = "y",
    prior: Tensor | Sequence[float] | None = None,
    draws: int = DRAWS,
    condition: dict | None = None,
    rows: Tensor | None = None,
    seed: int = 0,
    prune: bool = True,
    t_min: float | None = None,
    t_max: float | None = None,
    dequantize: str | nn.Module | None = None,
    bins: int | None = None,
    data_range: tuple[float, float] | None = None,
    chunk: str | int = "auto",
    progress: bool = False,
) -> Classification:
    """log p(class | x) of each row of ``x`` under a conditional model, by Bayes' rule.

    log p(x | c) is -1/2 int E||eps - eps_hat(x_gamma; c)||^2 dgamma up to what is the same for all classes
    (Li & Yan 2024, with the weights of the likelihood).  All classes see the same noise levels and noises, so
    that their differences have little noise of their own.

    Args:
        model: a conditional network with its conventions.
        x: (B, *event), as in :func:`fastlik.bound_nll`.
        classes: C values of the network's keyword ``key``, or dictionaries of keyword arguments.  Numbers and
            tensors are repeated for all rows, other values passed as they are.
        prior: (C,) probabilities of the classes, normalised here; default equal ones.
        draws: evaluations of the network a row and class, a multiple of 4.
        condition: keyword arguments that all classes share; tensors of B rows are split with x.
        rows, seed: key the random draws, as in :func:`fastlik.bound_nll`.
        prune: drop a class after an eighth, a quarter or half of the draws, spread over all noise levels, if
            its odds against the best are below exp(-7) by three standard errors.  It keeps the odds of its
            draws so far; the others' are not changed.  Only after 32 draws or more of a multiple of 32.
        t_min, t_max, dequantize, bins, data_range, chunk, progress: as in :func:`fastlik.bound_nll`.

    Returns:
        :class:`Classification`.

    Raises:
        TypeError, ValueError: input that cannot be classified as given; the message says what to change.
        EvaluationInterrupted: on Ctrl-C, with the rows finished so far in its ``partial``.
    """
    data = Data.checked(model, x, rows, condition, dequantize, bins, data_range)
    conditions = [each if isinstance(each, dict) else {key: each} for each in classes]
    log_prior = _log_prior(prior, len(conditions), data.x.device)
    checks.check_count("seed", seed, least=0)
    check_draws(draws)
    span = Span.of(model, t_min, t_max)
    integral = PathIntegral(model, span, uniform_strata(span, draws), PlainAnchor(), None, seed)
    stops = [*_stops(integral.strata.count if prune else 0), _BLOCK]
    protocol = {
        "estimator": "diffusion classifier, likelihood weights",
        "schedule": model.schedule.to_dict(),
        "predicts": model.predicts,
        "t_data": span.t_data,
        "t_prior": span.t_prior,
        "draws": draws,
        "pruned": prune,
        "seed": seed,
        "prior": log_prior.exp().tolist(),
    }

    def evaluate(index: slice, together: int) -> Classification:
        position = torch.arange(len(data.x), device=data.x.device)[index]
        race = _Race(integral, log_prior, data.rows[position])
        for stop in stops:
            number = race.lap(stop)
            race.add(number, _values(integral, data, conditions, position, number, race.running, together))
        return race.result()

    def finish(result: Classification) -> Classification:
        result.protocol = protocol
        warn_of_failures(result.status, None, "have no posterior (NaN)")
        return result

    with torch.no_grad():
        return evaluate_by_chunks(evaluate, finish, model, data.x, chunk, progress, integral.draws)


def _log_prior(prior: Tensor | Sequence[float] | None, count: int, device: torch.device) -> Tensor:
    if count == 0:
        raise ValueError("classes is empty: pass the condition of each class")
    weights = torch.ones(count) if prior is None else torch.as_tensor(prior)
    weights = weights.to(device, torch.float64)
    if weights.shape != (count,) or not bool((weights.isfinite() & (weights > 0)).all()):
        raise ValueError(
            f"prior must be {count} probabilities above 0, one for each class, got {prior!r}; "
            f"leave classes of probability 0 out"
        )
    return (weights / weights.sum()).log()


def _stops(strata: int) -> list[int]:
    """After how many strata in each block of 8 classes are dropped."""
    if strata % _BLOCK:
        return []
    return [stop for stop in _STOPS if strata // _BLOCK * stop >= _LEAST]


def _values(
    integral: PathIntegral,
    data: Data,
    conditions: list[dict],
    position: Tensor,
    number: Tensor,
    running: Tensor,
    together: int,
) -> Tensor:
    """(R, C, n) values of the pairs ``number`` (R, n) of the rows at ``position`` (R,), where ``running``."""
    count = number.shape[1]
    owner, number = position.repeat_interleave(count), number.flatten()
    rows, (x0, _) = data.rows[owner], data.points(owner, number, integral.seed)
    gamma, noise = integral.gamma(rows, number), integral.noise(x0, rows, number)
    table = gamma.new_zeros(*running.shape, count)
    for label, condition in enumerate(conditions):
        chosen = running[:, label].repeat_interleave(count).nonzero().flatten()
        for part in chosen.split(max(1, together // 2)):
            both = owner[part].repeat(2)
            given = data.conditions(both) | _repeated(condition, len(both), x0)
            values = integral.pairs(x0[part], gamma[part], noise[part], rows[part], number[part], given)
            table[part // count, label, part % count] = values
    return table


def _repeated(condition: dict, count: int, like: Tensor) -> dict:
    """The class's keyword arguments for ``count`` samples."""

    def repeat(value: object) -> object:
        if isinstance(value, Tensor):
            return value.to(like.device).expand(count, *value.shape)
        if isinstance(value, float):
            return torch.full((count,), value, dtype=like.dtype, device=like.device)
        if isinstance(value, int):
            return torch.full((count,), value, device=like.device)
        return value

    return {name: repeat(value) for name, value in condition.items()}


class _Race:
    """The classes of R rows, which drop out as soon as they cannot win.

    Of every block of neighbouring strata each row takes one at random first, then another, and so on: what it
    has had by then is stratified as well, by blocks, and in the end it has had them all.

    Attributes:
        running: (R, C) bool: who is still in the race.
        laps: (R, C) int64: how many strata of each block a class has had.
    """

    def __init__(self, integral: PathIntegral, log_prior: Tensor, rows: Tensor) -> None:
        strata, classes = integral.strata, len(log_prior)
        self.log_prior = log_prior
        self.running = torch.ones(len(rows), classes, dtype=torch.bool, device=rows.device)
        self.laps = torch.zeros_like(self.running, dtype=torch.int64)
        self.pairs, self.weights = strata.pairs, strata.weights(rows.device)
        self.table = self.weights.new_zeros(len(rows), classes, strata.count, strata.pairs)
        blocks = 1 if strata.count % _BLOCK else strata.count // _BLOCK
        self.block = strata.count // blocks
        keys = uniform(integral.seed, Stream.TIME, rows, 1, 0, strata.count).unflatten(1, (blocks, -1))
        # (R, blocks, block): the strata of each block in the order in which they are taken
        order = keys.argsort(2) + self.block * torch.arange(blocks, device=rows.device)[:, None]
        self.order, self.done = order, 0

    def lap(self, stop: int) -> Tensor:
        """(R, n) numbers of the pairs until ``stop`` eighths of each block have been taken."""
        stop = self.block * stop // _BLOCK
        strata = self.order[:, :, self.done : stop].flatten(1)
        self.done = stop
        return (strata[..., None] * self.pairs + torch.arange(self.pairs, device=strata.device)).flatten(1)

    def add(self, number: Tensor, values: Tensor) -> None:
        """Values (R, C, n) of the pairs ``number``, after which the classes that are out run no more."""
        index = number[:, None].expand_as(values)
        values = self.weights[index // self.pairs] * values
        self.table.flatten(2).scatter_(2, index, values)
        self.laps += self.running * (self.done - self.laps)
        _, odds, stderr = self._log_odds()
        self.running &= ~(odds + _CERTAIN * stderr < _OUT)

    def _log_odds(self) -> tuple[Tensor, Tensor, Tensor]:
        """The leaders (R, 1), and the log-odds of each class against them with their standard errors."""
        score = self.log_prior - self.block / self.done * self.table.mean(3).sum(2)
        score = score.masked_fill(~self.running, -torch.inf)
        leader = score.nan_to_num(nan=torch.inf).argmax(1, keepdim=True)
        lead = self.table.gather(1, leader[..., None, None].expand(-1, 1, *self.table.shape[2:]))
        odds = self.log_prior - self.log_prior[leader]
        stderr = torch.zeros_like(odds)
        for laps in self.laps.unique().tolist():
            row, label = (self.laps == laps).nonzero(as_tuple=True)
            # in the strata that both have had; those of a block are alike
            values = (lead - self.table)[row, label].mean(2)
            values = self.block / laps * values.gather(1, self.order[row, :, :laps].flatten(1))
            odds[row, label] += values.sum(1)
            stderr[row, label] = standard_error(laps * values.unflatten(1, (-1, laps)))
        return leader, odds, stderr

    def result(self) -> Classification:
        leader, odds, of_odds = self._log_odds()
        log_posterior = odds.log_softmax(1)
        posterior, finished = log_posterior.exp(), self.laps == self.done
        # to first order its log moves as the odds do, less what those of the probable classes do
        mean = (posterior * finished)[..., None, None]
        moved = (mean * self.table).sum(1, keepdim=True) - self.table
        stderr = standard_error(moved.flatten(0, 1)).unflatten(0, moved.shape[:2])
        stderr = torch.where(finished, stderr, torch.hypot(of_odds, stderr.gather(1, leader)))
        dropped = (posterior * of_odds).masked_fill(finished, 0.0).square().sum(1, keepdim=True)
        good = log_posterior.isfinite().all(1)
        return Classification(
            log_posterior=log_posterior.masked_fill(~good[:, None], torch.nan),
            stderr=(stderr.square() + dropped).sqrt().masked_fill(~good[:, None], torch.nan),
            draws=2 * self.pairs * self.order.shape[1] * self.laps,
            status=torch.where(good, int(Status.DONE), int(Status.NON_FINITE)),
        )
