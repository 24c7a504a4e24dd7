"""Divergences tr(df/dx) of a batched function: exact, or Hutchinson's estimate from probes.

Hutchinson (1990): tr J = E v'Jv for E v v' = I.  With Rademacher probes the variance is
2 sum_{i != j} S_ij^2, S the symmetric part of J: the diagonal costs nothing; Gaussian probes add
2 sum_i S_ii^2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..checks import check_choice
from .mode import faster
from .probes import Draws
from .products import vjp
from .taylor import jvp

METHODS = ("auto", "exact", "hutchinson")
MODES = ("auto", "jvp", "vjp")
# below this size d exact tangents cost less than the probes that reach the same error
EXACT_UP_TO = 16
# unit vectors differentiated together in an exact trace: bounds the memory at 16 copies of x
_BASIS_GROUP = 16


def choose_method(method: str, size: int) -> str:
    """ "exact" or "hutchinson" for events of ``size`` numbers."""
    check_choice("divergence", method, METHODS)
    if method == "auto":
        return "exact" if size <= EXACT_UP_TO else "hutchinson"
    return method


def traces(
    f: Callable[[Tensor], Tensor],
    x: Tensor,
    vectors: Tensor,
    mode: str = "auto",
    backend: str = "auto",
    chunk: int | None = None,
    draws: Draws | None = None,
) -> tuple[Tensor, Tensor]:
    """(f(x), v'Jv of shape (B, K) float64) for vectors (K, *x.shape), ``chunk`` of them at once.

    draws: what the vectors are, if they are probes.
    """
    results, step = [], chunk or max(1, len(vectors))
    for start in range(0, len(vectors), step):
        which = slice(start, start + step)
        value, products = _products(f, x, vectors[which], mode, backend)
        if draws is None:
            results.append(_parts(vectors[which], products).sum(2))
        else:
            results.append(draws[which].products(vectors[which], products))
    return value, torch.cat(results).T


def trace_parts(
    f: Callable[[Tensor], Tensor], x: Tensor, vectors: Tensor, mode: str = "auto", backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """(f(x), v_i (Jv)_i of shape (K, B, d) float64), which sum to v'Jv; for vectors (K, *x.shape)."""
    value, products = _products(f, x, vectors, mode, backend)
    return value, _parts(vectors, products)


def _products(
    f: Callable[[Tensor], Tensor], x: Tensor, vectors: Tensor, mode: str, backend: str
) -> tuple[Tensor, Tensor]:
    """(f(x), J v or J' v).

    Mode "auto" is forward, so that a likelihood does not depend on a clock; reverse with backend "torch".
    """
    check_choice("mode", mode, MODES)
    if mode == "vjp" or (mode == "auto" and backend == "torch"):
        return vjp(f, x, vectors)
    return jvp(f, x, vectors, backend=backend)


def _parts(vectors: Tensor, products: Tensor) -> Tensor:
    return (vectors * products).flatten(2).double()


def exact_trace(
    f: Callable[[Tensor], Tensor], x: Tensor, mode: str = "auto", backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """(f(x), tr J of shape (B,) float64) from all d unit vectors."""
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    value = torch.empty_like(x)
    for basis in _unit_vectors(x):
        value, parts = traces(f, x, basis, mode, backend)
        total = total + parts.sum(1)
    return value, total


def _unit_vectors(x: Tensor) -> Iterator[Tensor]:
    size = x[0].numel() if len(x) else 0
    for start in range(0, size, _BASIS_GROUP):
        index = torch.arange(start, min(start + _BASIS_GROUP, size), device=x.device)
        basis = torch.nn.functional.one_hot(index, size).to(x.dtype)
        yield basis.reshape(-1, 1, *x.shape[1:]).expand(-1, *x.shape)


def divergence(
    f: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    method: str = "auto",
    mode: str = "auto",
    probes: int = 1,
    probe_kind: str = "rademacher",
    seed: int = 0,
    rows: Tensor | None = None,
    backend: str = "auto",
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """(f(x), trace of df/dx): trace (B,) float64, exact or averaged over ``probes`` probes.

    Args:
        f: rows independent, (B, *event) -> (B, *event).
        x: (B, *event).
        method: "exact" (d tangents), "hutchinson", or "auto": exact up to 16 dimensions.
        mode: "jvp" (forward), "vjp" (reverse) or "auto": the faster of the two at the first calls, within a
            quarter of the free memory.  They agree up to rounding; name one for the same bits on every run.
        probes: number of Hutchinson probes; the evaluation of f is shared by all.
        probe_kind: "rademacher" or "gaussian".
        seed, rows: the probes are a function of (seed, row id); rows defaults to 0 .. B-1.
        backend: forward mode by "jets" or by "torch" (plain autograd; then "auto" is reverse mode).
        chunk: probes at once; each further chunk evaluates f again, and the memory is that of 1 + chunk
            evaluations.

    Raises:
        ValueError: unknown option values, or probes < 1.
    """
    if probes < 1:
        raise ValueError(f"probes must be at least 1, got {probes}")
    check_choice("mode", mode, MODES)
    size = x[0].numel() if len(x) else 0
    exact = choose_method(method, size) == "exact"
    rows = torch.arange(len(x), device=x.device) if rows is None else rows
    draws = None if exact else Draws(probe_kind, seed, rows, range(probes))
    vectors = None if exact else draws.vectors(x)

    def run(mode: str) -> tuple[Tensor, Tensor]:
        if exact:
            return exact_trace(f, x, mode, backend)
        value, estimates = traces(f, x, vectors, mode, backend, chunk, draws)
        return value, estimates.mean(1)

    if mode == "auto" and backend == "auto":
        return faster(run, f, x, size if exact else probes)
    return run(mode)
