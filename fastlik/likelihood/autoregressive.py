"""Sequences whose tokens come from a diffusion model given a context: ``fastlik.ar_nll``."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from torch import Tensor

from ..model import ScoreModel
from ..solvers.status import Status
from .flow import take_rows
from .formula import formula_nll
from .inputs import check_rows
from .result import NLL, ConvergenceWarning, EvaluationInterrupted, warn_of_failures


def ar_nll(
    model: ScoreModel,
    tokens: Tensor,
    contexts: Tensor | dict[str, Tensor],
    *,
    key: str = "context",
    condition: dict | None = None,
    rows: Tensor | None = None,
    **options: object,
) -> NLL:
    """-log p of sequences of continuous tokens, sum_i -log p(x_i | z_i), z_i the context of token i.

    A diffusion loss a token, with the weights and constants of the density formula (Li & Yan 2024, section 4;
    Li et al. 2024, "Autoregressive image generation without vector quantization").  It is the likelihood of
    the sequence where z_i is a function of the tokens before i alone.

    Args:
        model: the diffusion model of one token, a network that takes the context as a keyword.
        tokens: (B, n, *event), n tokens a sequence.
        contexts: (B, n, ...) for the network's keyword ``key``, or a dictionary of such tensors.
        condition: keyword arguments that a sequence's tokens share; tensors of B rows are split with them.
        rows: (B,) integer ids of the sequences, which key the random draws, default 0 .. B-1.
        options: of :func:`fastlik.formula_nll`, for every token: form, draws, seed, dequantize, ...

    Returns:
        :class:`NLL` of B rows with events of shape (n, *event): sums over the tokens.  A sequence with a
        token that failed is NaN and flagged.

    Raises:
        TypeError, ValueError: shapes that do not fit, and as in :func:`fastlik.formula_nll`.
        EvaluationInterrupted: on Ctrl-C, with the sequences finished so far in its ``partial``.
    """
    if not isinstance(tokens, Tensor) or tokens.dim() < 3 or tokens.shape[1] == 0:
        shape = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
        raise ValueError(f"tokens must be a tensor (B, n, *event), n tokens a sequence, got {shape}")
    batch, length = tokens.shape[:2]
    contexts = contexts if isinstance(contexts, dict) else {key: contexts}
    for name, value in contexts.items():
        if not isinstance(value, Tensor) or value.shape[:2] != tokens.shape[:2]:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"the context {name!r} must be a tensor ({batch}, {length}, ...), one entry for each token, "
                f"got {shape}"
            )
    owner = torch.arange(batch, device=tokens.device).repeat_interleave(length)
    place = torch.arange(length, device=tokens.device).repeat(batch)
    shared = {name: take_rows(value, owner, batch) for name, value in (condition or {}).items()}
    each = {name: value.flatten(0, 1) for name, value in contexts.items()}

    def finish(result: NLL) -> NLL:
        whole = _sum_over_tokens(result, length)
        warn_of_failures(whole.status, whole.stopped_at, "have no estimate (nats = NaN)")
        return whole

    ids = check_rows(rows, tokens)[owner] * length + place
    try:
        with warnings.catch_warnings():
            # of tokens: those of sequences follow
            warnings.simplefilter("ignore", ConvergenceWarning)
            result = formula_nll(model, tokens.flatten(0, 1), condition=shared | each, rows=ids, **options)
    except EvaluationInterrupted as stopped:
        if len(stopped.partial) < length:
            raise KeyboardInterrupt from stopped
        raise EvaluationInterrupted(finish(stopped.partial), batch) from stopped
    return finish(result)


def _sum_over_tokens(result: NLL, length: int) -> NLL:
    """Rows that are tokens, ``length`` of them a sequence, as rows that are the sequences that are whole."""
    count = len(result) // length

    def table(values: Tensor) -> Tensor:
        return values[: count * length].unflatten(0, (count, length))

    status = table(result.status)
    # the first token that failed, if any
    first = (status != Status.DONE).long().argmax(1, keepdim=True)
    return replace(
        result,
        nats=table(result.nats).sum(1),
        stderr=table(result.stderr).square().sum(1).sqrt(),
        discretisation=table(result.discretisation).sum(1),
        latent=table(result.latent),
        nfe=table(result.nfe).sum(1),
        trace_evaluations=table(result.trace_evaluations).sum(1),
        status=status.gather(1, first)[:, 0],
        stopped_at=table(result.stopped_at).gather(1, first)[:, 0],
        protocol=result.protocol | {"tokens": length},
    )
