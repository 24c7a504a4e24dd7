"""Derivatives of a function along directions, by jets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from .eager import evaluate
from .jet import Jet
from .layout import ALONG, COLLAPSED, MIXED, Layout

Field = Callable[[Tensor], Tensor]


def push(f: Field, x: Tensor, layout: Layout, first: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """f(x) and its derivatives, one (K, *shape) for each component of ``layout``.

    first: (K, *x.shape) for each single direction of the layout; x moves along straight lines.
    """
    given = dict(zip([c for c in layout.components if len(c) == 1], first, strict=True))
    parts = tuple(given.get(component) for component in layout.components)
    result = evaluate(f, Jet(layout, x, parts))
    if isinstance(result, Tensor):  # constant in x
        result = Jet(layout, result, (None,) * len(parts))
    if not isinstance(result, Jet):
        raise TypeError(f"f must return one tensor, got {type(result).__name__}")
    return tuple(each.contiguous() for each in (result.primal, *_dense(result, len(first[0]))))


def _dense(result: Jet, count: int) -> list[Tensor]:
    counts = [1 if c == result.layout.collapsed else count for c in range(len(result.parts))]
    return [
        result.primal.new_zeros(n, *result.shape) if part is None else part
        for part, n in zip(result.parts, counts, strict=True)
    ]


def along(f: Field, x: Tensor, v: Tensor, order: int) -> tuple[Tensor, ...]:
    """(f, Df[v], ..., D^order f[v, ..., v]) for v (K, *x.shape)."""
    return push(f, x, ALONG[order], (v,))


def mixed(f: Field, x: Tensor, directions: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """f and all mixed derivatives of different directions, each (K, *x.shape): (f, u, v, uv) for two."""
    return push(f, x, MIXED[len(directions)], directions)


def collapsed(f: Field, x: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """(f, Df[v_k] (K, ...), sum over k of D^2 f[v_k, v_k])."""
    value, first, second = push(f, x, COLLAPSED, (v,))
    return value, first, second[0]
