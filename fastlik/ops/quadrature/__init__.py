"""Quadrature over the nodes that a solver chose for each row, and how far values are from one another's
polynomials."""

from __future__ import annotations

from torch import Tensor

from ..dispatch import choose
from . import native, reference
from .reference import MOST_NODES

__all__ = ["MOST_NODES", "node_weights", "residuals"]


def node_weights(t: Tensor, count: Tensor, points: int = MOST_NODES, backend: str = "auto") -> Tensor:
    """Quadrature weights (B, N) float64 over each row's own nodes, from its first to its last.

    Each interval takes the polynomial through its ``points`` <= 6 nearest nodes (centred, one-sided at the
    ends): order ``points`` for even numbers.  t (B, N) float64 monotone; count (B,) int64: row b has the
    nodes t[b, :count[b]], the others get weight 0.  backend: "auto", "native" or "torch".
    """
    return _run(t, backend).node_weights(t, count, points)


def residuals(t: Tensor, count: Tensor, values: Tensor, points: int, backend: str = "auto") -> Tensor:
    """(B, N) how far each value is from the polynomial through its ``points`` <= 6 nearest nodes without it.

    In units of independent noise of the values: for white noise of variance s^2 their mean square is s^2.
    t, count, backend: as for :func:`node_weights`; values (B, N) float64; 0 beyond the count.
    """
    return _run(t, backend).residuals(t, count, values, points)


def _run(t: Tensor, backend: str):  # noqa: ANN202  (one of the two modules)
    return native if choose("quadrature", backend, t) == "native" else reference
