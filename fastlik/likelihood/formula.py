"""The score-based density formula: ``fastlik.formula_nll``."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .. import checks
from ..model import ScoreModel
from ..schedule import DiscreteVP
from .anchor import GaussianAnchor, PlainAnchor, choose_anchor
from .bound import DRAWS, check_draws, describe, implicit_trace, uniform_strata
from .inputs import Data
from .path_integral import Closed, PathIntegral, Span, evaluate_path_integral
from .result import NLL
from .strata import RiemannSum

FORMS = ("anchored", "difference", "ism", "ddpm")
# of the form "ddpm", where the schedule has no table; draws at each
STEPS, DRAWS_A_STEP = 1000, 4


def formula_nll(
    model: ScoreModel,
    x: Tensor,
    *,
    form: str = "anchored",
    draws: int | None = None,
    steps: int | None = None,
    condition: dict | None = None,
    rows: Tensor | None = None,
    divergence: str = "auto",
    probes: int = 1,
    probe: str = "rademacher",
    seed: int = 0,
    t_min: float | None = None,
    t_max: float | None = None,
    dequantize: str | nn.Module | None = None,
    bins: int | None = None,
    data_range: tuple[float, float] | None = None,
    chunk: str | int = "auto",
    progress: bool = False,
) -> NLL:
    """-log p of each row of ``x`` by the score-based density formula (Li & Yan 2024), in nats.

    For any Gaussian path with gamma = log(sigma^2 / alpha^2), and for the true noise prediction,

        -log p(x) = d/2 log(2 pi e) + 1/2 int (E||eps - eps_hat||^2 - d alpha^2 / (alpha^2 + sigma^2)) dgamma

    over all gamma.  With a learned one it is an upper bound of the SDE's negative log-likelihood, above the
    truth by 1/2 int E||eps_hat - eps*||^2 dgamma on average.  The estimate has no bias of its own: below
    t_min the integrand is continued in proportion to (sigma / alpha)^2 (the reconstruction term of
    :func:`fastlik.bound_nll`), above t_max it is that of the Gaussian named below.

    Args:
        model, x, condition, rows, seed, t_min, t_max, chunk, progress: as in :func:`fastlik.bound_nll`.
        form: what is subtracted from ||eps - eps_hat||^2, and what stands in for the model above t_max.

            * "anchored" (Kong et al. 2023): the error of the Gaussian of the data's moments, pathwise:
              -log N(x; mean, covariance) + 1/2 int E[||eps - eps_hat||^2 - ||eps - eps_G||^2] dgamma.  The
              least noise, none at all for Gaussian data.
            * "difference": d alpha^2 / (alpha^2 + sigma^2) as above, N(0, I).  Needs no moments.
            * "ism": d + ||eps_hat||^2 - 2 sigma div eps_hat in place of the squared error (Stein's identity);
              anchored where moments are known.
            * "ddpm": the paper's discrete sum over t_i = 1 - alphas_cumprod[i], i = 1 .. T,
              d/2 (1 + log(2 pi t_1)) + sum_i (t_{i+1} - t_i) / (2 t_i (1 - t_i)) S_i,
              S_i = E||eps - eps_hat_i||^2.  Its error does not vanish even for the true score: the value is
              too high by about d times the sum of (t_{i+1} - t_i) / (2 t_i) less 1/2 log(t_T / t_1), which
              ``discretisation`` reports; 0.46 nats/dim for DDPM's 1000 steps.
        draws: evaluations of the network a row, a multiple of 4, default 256; with "ddpm", at each of its
            steps, default 4.
        steps: T of the form "ddpm", default the table of a ``DiscreteVP``, otherwise 1000; equally spaced in
            the schedule's time.
        divergence, probes, probe: of the form "ism", as in :func:`fastlik.ode_nll`.
        dequantize, bins, data_range: as in :func:`fastlik.bound_nll`.

    Returns:
        :class:`NLL`: lower is better; ``stderr`` from the draws, ``latent`` a draw of x_T.

    Raises:
        TypeError, ValueError: input that has no density as given; the message says what to change.
        EvaluationInterrupted: on Ctrl-C, with the rows finished so far in its ``partial``.
    """
    checks.check_choice("form", form, FORMS)
    data = Data.checked(model, x, rows, condition, dequantize, bins, data_range)
    if form == "anchored" and model.moments is None:
        raise ValueError(
            'form="anchored" needs the mean and variance of the data: wrap(..., moments=(mean, variance)), '
            'or take form="difference"'
        )
    anchor = PlainAnchor() if form == "difference" else choose_anchor(model, data.size, data.x.device)
    span = Span.of(model, t_min, t_max)
    if form == "ddpm":
        check_draws(DRAWS_A_STEP if draws is None else draws)
        strata = RiemannSum(levels(model, span, steps), (draws or DRAWS_A_STEP) // 2)
    elif steps is not None:
        raise ValueError(f'steps belongs to form="ddpm", not to {form!r}, whose noise levels are random')
    else:
        strata = uniform_strata(span, DRAWS if draws is None else draws)
    trace = implicit_trace(form == "ism", data.size, divergence, probes, probe, seed)
    integral = PathIntegral(model, span, strata, anchor, trace, seed)
    closed = (
        _discrete_constant(integral, data.size) if form == "ddpm" else continuous_ends(integral, data.size)
    )
    protocol = describe(integral, data, "score-based density formula", form)
    gaussian = "N(0, I)" if isinstance(anchor, PlainAnchor) else "the Gaussian of the data's moments"
    protocol["beyond_t_prior"] = "nothing" if form == "ddpm" else gaussian
    return evaluate_path_integral(integral, closed, data, chunk, progress, protocol)


def levels(model: ScoreModel, span: Span, steps: int | None) -> Tensor:
    """(T,) float64 log(sigma^2 / alpha^2) of equally spaced times; of a table, at its indices."""
    schedule, of_table = model.schedule, isinstance(model.schedule, DiscreteVP)
    most = int(abs(span.t_prior - span.t_data)) + 1
    steps = (most if of_table else STEPS) if steps is None else steps
    checks.check_count("steps", steps, least=2)
    if of_table and steps > most:
        raise ValueError(f"steps={steps} is more than the {most} of the schedule's table")
    t = torch.linspace(span.t_data, span.t_prior, steps, dtype=torch.float64)
    return -schedule.log_snr(t.round() if of_table else t)


def continuous_ends(integral: PathIntegral, size: int) -> Closed:
    """Beyond t_max the model counts as the Gaussian of the moments, or N(0, I) where none are subtracted."""
    anchor, span = integral.anchor, integral.span

    def value(x0: Tensor, noise: Tensor | None) -> Tensor:
        beyond = anchor
        if isinstance(anchor, PlainAnchor):
            unit = torch.ones(size, dtype=torch.float64, device=x0.device)
            beyond = GaussianAnchor(torch.zeros_like(unit), unit)
        rest = beyond.integral(x0, math.exp(-span.end), 0.0)
        constant = 0.5 * size * (math.log(2 * math.pi) + span.start)
        return integral.strata.anchored(anchor, x0) + rest + constant

    return Closed(value, False)


def _discrete_constant(integral: PathIntegral, size: int) -> Closed:
    """d/2 (1 + log(2 pi t_1)), with the anchor's share."""
    first = integral.strata.at[0].sigmoid().item()

    def value(x0: Tensor, noise: Tensor | None) -> Tensor:
        return integral.strata.anchored(integral.anchor, x0) + 0.5 * size * (
            1 + math.log(2 * math.pi * first)
        )

    return Closed(value, False)
