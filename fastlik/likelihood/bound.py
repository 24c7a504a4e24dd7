"""Upper bounds of the negative log-likelihood of a model's reverse SDE: ``fastlik.bound_nll``."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.distributions import Distribution

from .. import checks
from ..derivatives import divergence as divergences
from ..derivatives.probes import PROBES
from ..model import ScoreModel
from .anchor import PlainAnchor, choose_anchor
from .flow import Trace
from .inputs import Data
from .path_integral import Closed, PathIntegral, Span, evaluate_path_integral
from .prior import Prior, choose_prior, prior_mismatch
from .result import NLL
from .strata import Strata, UniformStrata

FORMS = ("dsm", "ism")
DRAWS = 256


def bound_nll(
    model: ScoreModel,
    x: Tensor,
    *,
    form: str = "dsm",
    draws: int = DRAWS,
    condition: dict | None = None,
    rows: Tensor | None = None,
    divergence: str = "auto",
    probes: int = 1,
    probe: str = "rademacher",
    seed: int = 0,
    prior: str | Distribution = "auto",
    t_min: float | None = None,
    t_max: float | None = None,
    dequantize: str | nn.Module | None = None,
    bins: int | None = None,
    data_range: tuple[float, float] | None = None,
    chunk: str | int = "auto",
    progress: bool = False,
) -> NLL:
    """Upper bound of the negative log-likelihood of each row of ``x`` under the model's reverse SDE.

    With gamma = log(sigma^2 / alpha^2) from g0 (at t_min) to g1 (at t_max), an estimate without bias of

        KL(q(x_T | x) || prior) + int_g0^g1 1/2 E||eps - eps_hat||^2 dgamma + E[-log p(x | x_0)],

    p(x | x_0) = N(x_0_hat, (sigma / alpha)^2 I) at t_min (Song, Durkan, Murray, Ermon 2021, theorem 3 with
    the offset of their code; Kingma et al. 2021, eq. 11).  It needs no derivative and ``draws`` evaluations
    of the network.  For the exact score it is the likelihood, up to a slack of order (sigma / alpha)^4 at
    t_min and the prior's mismatch.  It bounds the SDE's likelihood, which is not that of the ODE in
    :func:`fastlik.ode_nll`.

    Args:
        model: a network with its conventions, from :func:`fastlik.wrap` or :func:`fastlik.train`.
        x: (B, *event), data without the noise of t_min.  float32 or float64, or integer levels with
            ``dequantize``.
        form: "dsm" (denoising, as above) or "ism": 1/2 E(d + ||eps_hat||^2 - 2 sigma div eps_hat), of equal
            expectation, with a divergence a draw.
        draws: evaluations of the network a row, a multiple of 4: two pairs of opposite noises in each of
            draws / 4 strata of gamma.  The standard error falls as draws^(-1/2) or faster.
        condition: keyword arguments of the network; tensors of B rows are split with x.
        rows: (B,) integer ids that key the random draws, default 0 .. B-1: a row keeps its number in any
            batch, order or chunk if it keeps its id.
        divergence, probes, probe: of the form "ism", as in :func:`fastlik.ode_nll`: "exact" (d tangents),
            "hutchinson", or "auto": exact up to 16 dimensions.
        seed: seed of all random draws.
        prior: "auto" (moment-matched where the data's moments are known), "standard" (N(0, I), or
            N(0, sigma_max^2 I) where alpha = 1) or a distribution over the flattened latent.
        t_min, t_max: bounds of the time interval, default the schedule's; where the log-SNR is infinite the
            path is cut at 15.
        dequantize, bins, data_range: "uniform" or a module, as in :func:`fastlik.ode_nll`; the dequantisation
            noise is drawn anew for each pair and is part of the standard error.
        chunk: network evaluations made together, or "auto".  Memory only: it changes no number.
        progress: show a progress bar over rows.

    Where the data's moments are known, the error that their Gaussian makes is subtracted from each draw and
    its integral added in closed form, which leaves the expectation as it is (Kong et al. 2023).

    Returns:
        :class:`NLL`: nats and bits/dim per row with the draws' standard error; ``discretisation`` is 0 and
        ``latent`` a draw of x_T.  Rows that failed are NaN, flagged in ``status``, and named in a warning.

    Raises:
        TypeError, ValueError: input that has no bound as given; the message says what to change.
        EvaluationInterrupted: on Ctrl-C, with the rows finished so far in its ``partial``.
    """
    checks.check_choice("form", form, FORMS)
    data = Data.checked(model, x, rows, condition, dequantize, bins, data_range)
    span = Span.of(model, t_min, t_max)
    integral = PathIntegral(
        model,
        span,
        uniform_strata(span, draws),
        choose_anchor(model, data.size, data.x.device),
        implicit_trace(form == "ism", data.size, divergence, probes, probe, seed),
        seed,
    )
    chosen = choose_prior(prior, model, span.t_prior, data.size, data.x.device)
    protocol = describe(integral, data, "upper bound of the SDE", form) | {
        "prior": chosen.description,
        "standard_prior_mismatch_nats_per_dim": prior_mismatch(model, span.t_prior, data.size),
    }
    closed = variational_terms(integral, chosen, data.size)
    return evaluate_path_integral(integral, closed, data, chunk, progress, protocol)


def uniform_strata(span: Span, draws: int) -> UniformStrata:
    """Strata for ``draws`` evaluations a row; raises ValueError unless that is a multiple of 4."""
    check_draws(draws)
    return UniformStrata(span.start, span.end, draws // 4)


def check_draws(draws: object) -> None:
    checks.check_count("draws", draws, least=4)
    if draws % 4:
        raise ValueError(
            f"draws must be a multiple of 4, two pairs of opposite noises a stratum, got {draws}: "
            f"take {draws - draws % 4 + 4}"
        )


def implicit_trace(
    implicit: bool, size: int, divergence: str, probes: int, probe: str, seed: int
) -> Trace | None:
    """How the implicit form takes its divergence, with options checked; None for the explicit form."""
    checks.check_count("seed", seed, least=0)
    checks.check_count("probes", probes)
    checks.check_choice("probe", probe, PROBES)
    exact = divergences.choose_method(divergence, size) == "exact"
    return Trace(exact, probes, probe, True, seed, "auto") if implicit else None


def variational_terms(integral: PathIntegral, prior: Prior, size: int) -> Closed:
    """KL(q(x_T | x) || prior), the reconstruction's constant and the anchor's share."""
    schedule, span = integral.model.schedule, integral.span
    alpha, sigma = schedule.alpha(span.t_prior).item(), schedule.sigma(span.t_prior).item()
    # - H(q(x_T | x)) + d/2 (log 2 pi + start): what is left of them
    constant = 0.5 * size * (span.start - 1 - 2 * math.log(sigma))
    curvature = prior.precision_trace(size)

    def value(x0: Tensor, noise: Tensor | None) -> Tensor:
        fixed = integral.strata.anchored(integral.anchor, x0) + constant
        if len(x0) == 0:
            return fixed
        if curvature is None:
            return fixed - prior.log_prob(alpha * x0 + sigma * noise)
        return fixed - prior.log_prob(alpha * x0.double()) + 0.5 * sigma**2 * curvature

    return Closed(value, curvature is None)


def describe(integral: PathIntegral, data: Data, estimator: str, form: str) -> dict:
    """The part of a protocol that all estimates by a path integral have."""
    span, trace, strata = integral.span, integral.trace, integral.strata
    protocol = {
        "estimator": estimator,
        "form": form,
        "schedule": integral.model.schedule.to_dict(),
        "predicts": integral.model.predicts,
        "t_data": span.t_data,
        "t_prior": span.t_prior,
        "start": f"x is data without noise; {_below(strata)}",
        "draws": integral.draws,
        "sampling": _sampling(strata),
        "anchor": "none" if isinstance(integral.anchor, PlainAnchor) else "Gaussian of the data's moments",
        "seed": integral.seed,
        "dequantize": None,
    }
    if trace is not None:
        protocol["divergence"] = "exact" if trace.exact else "hutchinson"
        if not trace.exact:
            protocol |= {"probes": trace.probes, "probe": trace.kind}
    if data.dequantiser is not None:
        protocol["dequantize"] = f"{data.dequantiser.protocol()['dequantize']}, anew for each pair"
    if data.quantisation is not None:
        protocol |= {"bins": data.quantisation.bins, "data_range": data.quantisation.range}
    return protocol


def _below(strata: Strata) -> str:
    if isinstance(strata, UniformStrata):
        return "reconstruction N(x0_hat, (sigma / alpha)^2 I) at t_data"
    return "d/2 (1 + log(2 pi sigma^2 / (alpha^2 + sigma^2))) for what is below t_data"


def _sampling(strata: Strata) -> str:
    if isinstance(strata, UniformStrata):
        return f"uniform in log-SNR, {strata.count} strata of {strata.pairs} antithetic pairs"
    return f"{strata.count} fixed levels of {strata.pairs} antithetic pairs"
