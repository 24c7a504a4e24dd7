"""The likelihood of a model's probability-flow ODE: ``fastlik.ode_nll``.

One network evaluation serves state and trace, in per-sample adaptive steps or on fixed grids.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from .. import checks
from ..derivatives.divergence import choose_method
from ..model import ScoreModel
from .chunks import evaluate_by_chunks
from .dequantise import Quantisation
from .dequantiser import Dequantiser, choose_dequantiser
from .flow import Trace, take_rows
from .inputs import (
    check_data,
    check_options,
    check_placement,
    check_rows,
    check_target,
    choose_quantisation,
    row_target,
    state_dtype,
    time_span,
)
from .prior import choose_prior, prior_mismatch
from .probing import most_probes
from .problem import Problem
from .result import NLL, warn_of_failures
from .solve import solve, with_closed_form


def ode_nll(
    model: ScoreModel,
    x: Tensor,
    *,
    condition: dict | None = None,
    rows: Tensor | None = None,
    method: str = "auto",
    tolerance: float = 1e-3,
    divergence: str = "auto",
    probes: int = 1,
    probe: str = "rademacher",
    probe_mode: str = "fresh",
    target_stderr: float | tuple[str, float] | None = None,
    mode: str = "auto",
    seed: int = 0,
    prior: str | Distribution = "auto",
    t_min: float | None = None,
    t_max: float | None = None,
    dequantize: str | nn.Module | None = None,
    bins: int | None = None,
    data_range: tuple[float, float] | None = None,
    importance: int = 1,
    chunk: str | int = "auto",
    max_steps: int = 5000,
    precision: str = "auto",
    backend: str = "auto",
    progress: bool = False,
) -> NLL:
    """Negative log-likelihood of each row of ``x`` under the model's probability-flow ODE.

    Args:
        model: a network with its conventions, from :func:`fastlik.wrap` or :func:`fastlik.train`.
        x: (B, *event), taken as points of the process at its data end, unperturbed.  float32 or
            float64 (the precision of state and network), or integer levels with ``dequantize``.
        condition: keyword arguments of the network; tensors of B rows are split with x.
        rows: (B,) integer ids that key the random draws, default 0 .. B-1: a row keeps its number in
            any batch, order or chunk if it keeps its id.
        method: "auto" and "adams" take per-sample adaptive steps of one network evaluation each (Adams
            predictor-corrector of order 4, the trace by quadrature over its nodes); "rk45"
            (Dormand-Prince) and "tsit5" are adaptive Runge-Kutta methods, "rk4", "heun" and "euler"
            double a fixed grid until the tolerance is met.
        tolerance: discretisation error aimed at, in nats per dimension.  With "adams", a row whose
            estimated error misses it is solved again, and flagged where that does not help.
        divergence: "exact" (d tangents), "hutchinson", or "auto": exact up to 16 dimensions, and where a
            kernel has it in closed form (MLPs of one or two hidden layers).
        probes, probe, probe_mode: Hutchinson probes per row, "rademacher" or "gaussian", drawn anew for
            each step ("fresh", less variance) or kept along the ODE ("frozen", as published).  Each row
            has a standard error from two probes on, with "adams" and fresh probes from the first.
        target_stderr: nats.  With "adams", rows get more probes until their standard errors are met, or
            their exact trace where that is cheaper.  ("mean", nats): until the probes' share of the
            standard error of the mean over all rows of x is met.
        mode: derivatives by "jvp" (forward), "vjp" (reverse) or "auto".
        seed: seed of all random draws.
        prior: "auto" (moment-matched where the data's moments are known), "standard" (N(0, I), or
            N(0, sigma_max^2 I) where alpha = 1) or a distribution over the flattened latent.
        t_min, t_max: bounds of the time interval, default the schedule's.
        dequantize: of discrete data, whose -log P is bounded from above on average, by noise in the bins:
            "uniform"; "truncated_normal", the noise that the process has at the data, cut off at the bin,
            for models that were trained on levels with no other noise; or a module, such as one from
            :func:`fastlik.train_dequantiser`, called as ``module(centres, noise) -> (u, log_q)``: bin centres
            and uniform noise, both (B, *event), u in (0, 1) like them, the position in the bin, and
            log_q (B,) nats, the log density of u given the centres.
        bins, data_range: number of levels and the continuous range (low, high) they span in the model's
            units; default those the model was trained with, and (-1, 1).  With ``bins`` but without
            ``dequantize``, x holds values dequantised already.
        importance: dequantisation draws a row, averaged in probability (importance-weighted bound, which
            is tighter).
        chunk: rows integrated together, or "auto".  Memory only: it changes no number.
        max_steps: attempted adaptive steps after which a row is given up and flagged; a fixed grid ends
            at 4096 steps.
        precision: "auto" is that of x.  "fp16" takes the network's products of fp16 numbers, where an MLP is
            integrated on a GPU (see backend): faster, to about 2e-3 nats per dimension.
        backend: "auto" and "native" integrate an MLP in one native call (unless nodes are needed for
            ``target_stderr`` or gradients, or a ``mode`` is named), on a GPU a float32 one of up to 512
            units a layer, and take native steps; "torch" takes PyTorch's operations, and derivatives by
            plain autograd instead of jets.
        progress: show a progress bar over rows.

    Where x requires gradients (``x.requires_grad_()``) and grad mode is on, ``nats`` of the "adams" method
    (without ``target_stderr``) can be differentiated by x, by the model's parameters and by conditions: the
    discrete solution on the nodes that it chose, which is computed once more in the backward pass.

    Returns:
        :class:`NLL`: nats and bits/dim per row (lower is better), errors, latents, counts, protocol.
        Rows that failed are NaN, flagged in ``status``, and named in a ConvergenceWarning.

    Raises:
        TypeError, ValueError: input that has no likelihood as given; the message says what to change.
        RuntimeError: precision="fp16" where no kernel takes the model, with the reason.
        EvaluationInterrupted: on Ctrl-C, with the rows finished so far in its ``partial``.
    """
    check_options(model, method, divergence, probe, probe_mode, mode, dequantize, prior, backend, precision)
    check_target(target_stderr, method)
    for name, value in (("probes", probes), ("importance", importance), ("max_steps", max_steps)):
        checks.check_count(name, value)
    checks.check_count("seed", seed, least=0)
    checks.check_positive("tolerance", tolerance)
    quantisation = choose_quantisation(model, dequantize, bins, data_range)
    x = check_data(x, dequantize, quantisation, importance)
    check_placement(model, x)
    rows = check_rows(rows, x)
    condition = dict(condition or {})
    size, dtype = math.prod(x.shape[1:]), state_dtype(x, model)
    t_data, t_prior = time_span(model, t_min, t_max)
    dequantiser = choose_dequantiser(dequantize, quantisation, model.schedule, t_data, dtype, importance)
    exact = choose_method(divergence, size) == "exact"
    derivatives = "torch" if backend == "torch" else "auto"
    problem = Problem(
        model=model,
        t_data=t_data,
        t_prior=t_prior,
        prior=choose_prior(prior, model, t_prior, size, x.device),
        trace=Trace(exact, probes, probe, probe_mode == "fresh", seed, mode, backend=derivatives),
        method="adams" if method == "auto" else method,
        tolerance=tolerance,
        max_steps=max_steps,
        backend=backend,
        target_stderr=row_target(target_stderr, len(x)),
        precision=precision,
    )
    if divergence == "auto":
        problem = with_closed_form(problem, x.to(dtype), condition)
    # each dequantisation draw has probes of its own, added ones too
    stride = probes if target_stderr is None else most_probes(probes, size)
    protocol = _protocol(problem, size, quantisation, dequantiser, importance)

    def finish(result: NLL) -> NLL:
        of_state = str(result.latent.dtype).removeprefix("torch.")
        of_products = "" if precision == "auto" else ", products in float16"
        result.protocol = protocol | {"precision": of_state + of_products}
        warn_of_failures(result.status, result.stopped_at, "have no likelihood (nats = NaN)")
        return result

    def evaluate(index: slice, _: int) -> NLL:
        """The rows ``index``, all their draws."""
        taken = {name: take_rows(value, index, len(x)) for name, value in condition.items()}
        parts, drawn = [], problem
        for draw in range(importance):
            data, log_q = x[index], 0.0
            if dequantiser is not None:
                data, log_q = dequantiser(data, rows[index], draw, seed)
            elif quantisation is not None:
                log_q = -size * quantisation.log_bin_width
            if draw:
                drawn = replace(problem, trace=replace(problem.trace, first_draw=draw * stride))
            part = solve(drawn, data.to(dtype), rows[index], taken)
            parts.append(replace(part, nats=part.nats + log_q))
        return _importance_weighted(parts)

    return evaluate_by_chunks(evaluate, finish, model, x, chunk, progress)


def _importance_weighted(parts: list[NLL]) -> NLL:
    """log (1/K) sum_k p_k / q_k over K dequantisation draws; latents and times are the first draw's."""
    if len(parts) == 1:
        return parts[0]
    log_ratio = -torch.stack([part.nats for part in parts])
    weights = log_ratio.softmax(0)
    spread = torch.stack([part.stderr for part in parts])
    status = torch.stack([part.status for part in parts]).amax(0)
    return replace(
        parts[0],
        nats=-(log_ratio.logsumexp(0) - math.log(len(parts))),
        stderr=(weights * spread).square().sum(0).sqrt(),
        discretisation=(weights * torch.stack([part.discretisation for part in parts])).sum(0),
        nfe=torch.stack([part.nfe for part in parts]).sum(0),
        trace_evaluations=torch.stack([part.trace_evaluations for part in parts]).sum(0),
        status=status,
    )


def _protocol(
    problem: Problem,
    size: int,
    quantisation: Quantisation | None,
    dequantiser: Dequantiser | None,
    importance: int,
) -> dict:
    trace, model = problem.trace, problem.model
    protocol = {
        "estimator": "probability-flow ODE",
        "schedule": model.schedule.to_dict(),
        "predicts": model.predicts,
        "t_data": problem.t_data,
        "t_prior": problem.t_prior,
        "start": "x at t_data, unperturbed",
        "prior": problem.prior.description,
        "standard_prior_mismatch_nats_per_dim": prior_mismatch(model, problem.t_prior, size),
        "method": problem.method,
        "tolerance_nats_per_dim": problem.tolerance,
        "divergence": "exact" if trace.exact else "hutchinson",
        "backend": problem.backend,
        "dequantize": None,
    }
    if not trace.exact:
        protocol |= {
            "probes": trace.probes,
            "probe": trace.kind,
            "probe_mode": "fresh" if trace.fresh else "frozen",
        }
        if problem.target_stderr is not None:
            protocol["target_stderr"] = problem.target_stderr
    if quantisation is not None:
        protocol |= {"bins": quantisation.bins, "data_range": quantisation.range}
    if dequantiser is not None:
        protocol |= dequantiser.protocol()
    if dequantiser is not None or not trace.exact:
        protocol["seed"] = trace.seed
    if importance > 1:
        protocol["importance"] = importance
    return protocol
