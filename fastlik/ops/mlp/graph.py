"""A network as a graph of the few operations that the kernels know; what it is made of is its nodes.

A node stands for one line of ``width`` features for each row of a batch.  ``depends`` says on what: bits
TIME, CONDITION and STATE.  Nodes compare by identity, so that a value used twice is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TIME, CONDITION, STATE = 1, 2, 4


@dataclass(eq=False)
class Node:
    """One value.  ``kind`` decides which of the other fields mean something:

    input     name: "state", "time" or a condition's
    constant  weight (width,)
    linear    sources (a,), weight (width, a.width), bias (width,) or None
    function  sources (a,), name, parameter
    add       sources (a, b); a width of 1 serves every feature of the other
    multiply  sources (a, b)
    normalise sources (a,), parameter: (a - mean) / sqrt(variance + parameter) over the features
    cat       sources
    part      sources (a,), start
    """

    kind: str
    width: int
    depends: int
    sources: tuple[Node, ...] = ()
    name: str = ""
    weight: Tensor | None = None
    bias: Tensor | None = None
    parameter: float = 0.0
    start: int = 0


def entry(name: str, width: int, depends: int) -> Node:
    return Node("input", width, depends, name=name)


def constant(values: Tensor) -> Node:
    """values (width,)."""
    return Node("constant", len(values), 0, weight=values)


def linear(a: Node, weight: Tensor, bias: Tensor | None = None) -> Node:
    """weight (width, a.width), bias (width,)."""
    return Node("linear", len(weight), a.depends, (a,), weight=weight, bias=bias)


def function(name: str, a: Node, parameter: float = 0.0) -> Node:
    return Node("function", a.width, a.depends, (a,), name=name, parameter=parameter)


def normalise(a: Node, eps: float) -> Node:
    return Node("normalise", a.width, a.depends, (a,), parameter=eps)


def cat(sources: Sequence[Node]) -> Node:
    depends = 0
    for source in sources:
        depends |= source.depends
    return Node("cat", sum(source.width for source in sources), depends, tuple(sources))


def part(a: Node, start: int, stop: int) -> Node:
    """Features [start, stop) of a."""
    if (start, stop) == (0, a.width):
        return a
    if a.kind == "cat":
        for source in a.sources:
            if 0 <= start and stop <= source.width:
                return part(source, start, stop)
            start, stop = start - source.width, stop - source.width
        raise ValueError("a slice that crosses the parts of a concatenation")
    if a.kind == "part":
        return part(a.sources[0], a.start + start, a.start + stop)
    return Node("part", stop - start, a.depends, (a,), start=start)


def add(a: Node, b: Node) -> Node:
    outer = _outer(a, b)
    if outer is not None:
        value, terms = outer
        return linear(value, torch.ones_like(terms.weight)[:, None], terms.weight)
    a, b = _ordered(a, b)
    return Node("add", a.width, a.depends | b.depends, (a, b))


def multiply(a: Node, b: Node) -> Node:
    outer = _outer(a, b)
    if outer is not None:  # such as frequencies times the time
        value, factors = outer
        return linear(value, factors.weight[:, None])
    a, b = _ordered(a, b)
    return Node("multiply", a.width, a.depends | b.depends, (a, b))


def _outer(a: Node, b: Node) -> tuple[Node, Node] | None:
    """(value, constant) where a single feature meets a wider constant."""
    for value, other in ((a, b), (b, a)):
        if other.kind == "constant" and value.width == 1 < other.width:
            return value, other
    return None


def _ordered(a: Node, b: Node) -> tuple[Node, Node]:
    """The order that the kernels want: the wider one first, and the one with tangents."""
    if b.width > a.width or (b.width == a.width and b.depends & STATE):
        a, b = b, a
    if b.width not in (1, a.width):
        raise ValueError(f"widths {a.width} and {b.width} do not broadcast")
    if b.depends & STATE and not a.depends & STATE:
        raise ValueError("a single feature of x meets several that do not depend on x")
    return a, b


def filled(value: float, width: int, like: Tensor) -> Node:
    """The constant ``value`` in every one of ``width`` features."""
    return constant(torch.full((width,), value, dtype=like.dtype, device=like.device))
