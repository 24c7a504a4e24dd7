"""Operations without a rule: differentiated by autograd, that operation alone.

A directional derivative is the derivative with respect to w of the vector-Jacobian product w' J, which is
linear in w.  Unlike forward-mode duals, whose tangents a custom operator drops without a word, this raises
where an operator has no derivative.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import NoDerivative
from .jet import Jet, first_jet, transform
from .layout import Layout

_WARNED: set[str] = set()


class _Surface(NamedTuple):
    """The results of a function, each with its derivatives (None where it has none)."""

    results: list[tuple[object, list[Tensor] | None]]
    several: bool


def fallback(name: str, function: Callable[..., object], args: tuple, options: dict) -> object:
    """function(*args, **options) on jets; warns once for each ``name``."""
    if name not in _WARNED:
        _WARNED.add(name)
        warnings.warn(
            f"fastlik jets have no rule for {name}: this operation alone goes through autograd, exact but "
            f"slower",
            stacklevel=2,
        )
    layout = first_jet((args, options)).layout
    parts = [part for jet in _jets((args, options)) for part in jet.parts if part is not None]
    count = max((len(part) for part in parts), default=0)
    with torch.inference_mode(False), torch.enable_grad():
        surfaces = [_surface(name, function, args, options, layout, k) for k in range(count)]
    if not count:
        return function(*transform((args, options), lambda jet: jet.primal))
    return _assemble(layout, surfaces)


def _jets(values: object) -> Iterator[Jet]:
    found: list[Jet] = []
    transform(values, lambda jet: found.append(jet) or jet)
    return iter(found)


def _surface(
    name: str, function: Callable, args: tuple, options: dict, layout: Layout, k: int
) -> _Surface:
    """For every result of the function, its value and its derivatives along directions number k."""
    directions = {d for component in layout.components for d in component}
    steps = {d: torch.zeros((), dtype=torch.float64, requires_grad=True) for d in directions}
    moved_args, moved_options = transform((args, options), lambda jet: _moved(jet, steps, k))
    value = function(*moved_args, **moved_options)
    several = isinstance(value, (tuple, list))
    results = value if several else (value,)
    if not any(isinstance(result, Tensor) for result in results):
        raise NoDerivative(f"{name} returns {type(value).__name__}, no tensor")
    derived = [(result, _derivatives(name, result, steps, layout)) for result in results]
    # of several results some may be piecewise constant, like the sign beside a log determinant
    if all(derivatives is None for _, derivatives in derived) and any(map(_is_continuous, results)):
        raise NoDerivative(f"{name} has neither a rule for jets nor a derivative for autograd")
    return _Surface(derived, several)


def _is_continuous(result: object) -> bool:
    return isinstance(result, Tensor) and (result.is_floating_point() or result.is_complex())


def _moved(jet: Jet, steps: dict[int, Tensor], k: int) -> Tensor:
    """The point of the surface x(e) that the jet describes, along its directions number k."""
    point = _plain(jet.primal)
    for index, (component, part) in enumerate(zip(jet.layout.components, jet.parts, strict=True)):
        if part is None or (index == jet.layout.collapsed and k > 0):
            continue
        weight = 1 / math.prod(math.factorial(n) for n in Counter(component).values())
        for direction in component:
            weight = weight * steps[direction].to(point.device)
        point = point + weight.to(point.dtype) * _plain(part[min(k, len(part) - 1)])
    return point


def _plain(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor


def _derivatives(name: str, value: object, steps: dict[int, Tensor], layout: Layout) -> list[Tensor] | None:
    """Of one result, a derivative for each component; None where it does not depend on the steps."""
    if not _is_continuous(value):
        return None
    derivatives: dict[tuple, Tensor] = {}
    for component in layout.components:
        derivative = _along(name, derivatives.get(component[:-1], value), steps[component[-1]])
        if derivative is None and len(component) == 1:
            return None
        # none of the second order: the operation is linear
        derivatives[component] = torch.zeros_like(value) if derivative is None else derivative
    return list(derivatives.values())


def _along(name: str, value: Tensor, step: Tensor) -> Tensor | None:
    """d value / d step, as the derivative of w' d value / d step with respect to w."""
    if not value.requires_grad:
        return None
    weights = torch.zeros_like(value, requires_grad=True)
    try:
        (slope,) = torch.autograd.grad(value, step, weights, create_graph=True, allow_unused=True)
    except RuntimeError as reason:
        raise NoDerivative(f"{name} has no rule for jets, and in autograd: {reason}") from reason
    if slope is None or not slope.requires_grad:
        return None
    return torch.autograd.grad(slope, weights, create_graph=True)[0]


def _assemble(layout: Layout, surfaces: list[_Surface]) -> object:
    keep = torch.is_grad_enabled()
    results = []
    for position, (value, derivatives) in enumerate(surfaces[0].results):
        if derivatives is None:
            results.append(value)
            continue
        each = [surface.results[position][1] for surface in surfaces]
        parts = [torch.stack(component) for component in zip(*each, strict=True)]
        if layout.collapsed is not None:
            parts[layout.collapsed] = parts[layout.collapsed].sum(0, keepdim=True)
        value, *parts = (tensor if keep else tensor.detach() for tensor in (value, *parts))
        results.append(Jet(layout, value, tuple(parts)))
    return tuple(results) if surfaces[0].several else results[0]
