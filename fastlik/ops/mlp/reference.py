"""A program of operations in plain PyTorch: the specification of the kernels.

Shapes: x (B, d), time (B,), conditions {name: (B, width)}, tangents (K, B, d).  Every value that depends on
the state is a pair (value (B, width), tangents (K, B, width)).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .graph import STATE
from .grid import GridTable
from .program import Op, Program, View

_SQRT_2_PI = 0.7978845608028654


def _silu(x: Tensor, _: float) -> tuple[Tensor, Tensor]:
    s = torch.sigmoid(x)
    return x * s, s * (1 + x * torch.sigmoid(-x))


def _gelu(x: Tensor, _: float) -> tuple[Tensor, Tensor]:
    density = 0.5 * _SQRT_2_PI * torch.exp(-0.5 * x**2)
    mass = 0.5 * torch.erfc(-x * 0.5**0.5)  # ndtr loses its digits in the left tail
    return x * mass, mass + x * density


def _gelu_tanh(x: Tensor, _: float) -> tuple[Tensor, Tensor]:
    u = 2 * _SQRT_2_PI * (x + 0.044715 * x**3)
    s, rest = torch.sigmoid(u), torch.sigmoid(-u)
    return x * s, s + x * s * rest * 2 * _SQRT_2_PI * (1 + 3 * 0.044715 * x**2)


def _softplus(x: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    linear = beta * x > 20
    return F.softplus(x, beta), torch.where(linear, 1.0, torch.sigmoid(beta * x))


def _elu(x: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    slope = torch.where(x > 0, 1.0, alpha * torch.exp(torch.where(x > 0, 0.0, x)))
    return F.elu(x, alpha), slope


# name -> (x, parameter) -> (f(x), f'(x))
FUNCTIONS: dict[str, Callable[[Tensor, float], tuple[Tensor, Tensor]]] = {
    "silu": _silu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "tanh": lambda x, _: (x.tanh(), 1 / x.cosh() ** 2),
    "sigmoid": lambda x, _: (x.sigmoid(), x.sigmoid() * (-x).sigmoid()),
    "softplus": _softplus,
    "elu": _elu,
    "leaky_relu": lambda x, p: (torch.where(x > 0, x, p * x), torch.where(x > 0, torch.ones_like(x), p)),
    "sin": lambda x, _: (x.sin(), x.cos()),
    "cos": lambda x, _: (x.cos(), -x.sin()),
    "exp": lambda x, _: (x.exp(), x.exp()),
    "log": lambda x, _: (x.log(), 1 / x),
    "sqrt": lambda x, _: (x.sqrt(), 0.5 / x.sqrt()),
    "reciprocal": lambda x, _: (1 / x, -1 / x**2),
    "square": lambda x, _: (x**2, 2 * x),
}


class Evaluation(NamedTuple):
    """output (B, d), products J v (K, B, d), trace (B,) of J in closed form or None."""

    output: Tensor
    products: Tensor
    trace: Tensor | None


def evaluate(
    program: Program, x: Tensor, time: Tensor, conditions: dict[str, Tensor], tangents: Tensor
) -> Evaluation:
    """Run every operation of ``program``."""
    values, slopes = _values(program, x, time, conditions, tangents)

    def line(lines: dict[int, Tensor], view: View) -> Tensor:
        return lines[view.buffer][..., view.offset : view.offset + view.width]

    trace = None if program.trace is None else line(values, program.trace)[:, 0]
    return Evaluation(line(values, program.output), line(slopes, program.output), trace)


def _values(
    program: Program, x: Tensor, time: Tensor, conditions: dict[str, Tensor], tangents: Tensor
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """The values and tangents of every buffer."""
    values: dict[int, Tensor] = {program.input: x, program.time: time.to(x.dtype)[:, None]}
    slopes = {program.input: tangents}
    for name, buffer in program.conditions.items():
        values[buffer] = conditions[name].to(x.dtype)
    for number, buffer in enumerate(program.buffers):
        if buffer.constant is not None:
            values[number] = buffer.constant.to(x).expand(len(x), -1)

    def value(view: View) -> Tensor:
        return values[view.buffer][:, view.offset : view.offset + view.width]

    def slope(view: View) -> Tensor:
        if view.buffer not in slopes:
            return x.new_zeros(len(tangents), len(x), view.width)
        return slopes[view.buffer][..., view.offset : view.offset + view.width]

    for op in program.ops:
        y, dy = _run(op, value, slope, values)
        width = program.buffers[op.out.buffer].width
        if op.out.width < width:  # a part of a concatenation
            parts = slice(op.out.offset, op.out.offset + op.out.width)
            whole = values.get(op.out.buffer, x.new_zeros(len(x), width)).clone()
            whole[:, parts] = y
            d_whole = slopes.get(op.out.buffer, x.new_zeros(len(tangents), len(x), width)).clone()
            d_whole[..., parts] = dy
            y, dy = whole, d_whole
        values[op.out.buffer], slopes[op.out.buffer] = y, dy
    return values, slopes


def contexts(program: Program, time: Tensor, conditions: dict[str, Tensor]) -> Callable[[View], Tensor]:
    """Whatever does not depend on the state, at times and conditions of as many rows."""
    rows = len(time)
    nothing = time.new_zeros(rows, program.dim)
    early = replace(program, ops=[op for op in program.ops if not op.depends & STATE], trace=None)
    values = _values(early, nothing, time, conditions, nothing.new_zeros(0, *nothing.shape))[0]
    return lambda view: values[view.buffer][:, view.offset : view.offset + view.width]


def _run(
    op: Op,
    value: Callable[[View], Tensor],
    slope: Callable[[View], Tensor],
    values: dict[int, Tensor],
) -> tuple[Tensor, Tensor]:
    a, da = value(op.a), slope(op.a)
    if op.code == "linear":
        weight = op.weight.to(a)
        y, dy = a @ weight.T, da @ weight.T
        return (y, dy) if op.b is None else (y + value(op.b), dy + slope(op.b))
    if op.code == "function":
        y, derivative = FUNCTIONS[op.function](a, op.parameter)
        if op.b is not None:
            values[op.b.buffer] = derivative
        return y, derivative * da
    if op.code == "add":
        return a + value(op.b), da + slope(op.b)
    if op.code == "multiply":
        b = value(op.b)
        return a * b, da * b + a * slope(op.b)
    if op.code == "normalise":
        factor = (a.var(1, correction=0, keepdim=True) + op.parameter).rsqrt()
        y = factor * (a - a.mean(1, keepdim=True))
        dc = da - da.mean(2, keepdim=True)
        return y, factor * (dc - y * (y * dc).mean(2, keepdim=True))
    if op.code == "dot":
        return (a * value(op.b)).sum(1, keepdim=True), da[..., :1] * 0
    return a, da  # copy


def jet(
    program: Program, x: Tensor, time: Tensor, conditions: dict[str, Tensor], directions: Tensor, order: int
) -> tuple[Tensor, Tensor]:
    """(F(x), derivatives (order, K, B, d) along directions (K, B, d)), by nested reverse differentiation."""
    keep = torch.is_grad_enabled()
    none = x.new_zeros(0, *x.shape)
    with torch.enable_grad():
        output = evaluate(program, x, time, conditions, none).output
        along = []
        for v in directions:
            step = x.new_zeros(len(x), 1, requires_grad=True)
            series = [evaluate(program, x + step * v, time, conditions, none).output]
            for _ in range(order):
                series.append(_derivative(series[-1], step))
            along.append(torch.stack(series[1:]))
        shape = (order, 0, *x.shape)
        derivatives = torch.stack(along, 1) if along else x.new_zeros(shape)
    return (output, derivatives) if keep else (output.detach(), derivatives.detach())


def _derivative(values: Tensor, step: Tensor) -> Tensor:
    """Of each row's values (B, d) by its step (B, 1): a reverse pass, differentiated by its vector."""
    if not values.requires_grad:
        return torch.zeros_like(values)
    vector = torch.zeros_like(values, requires_grad=True)
    (pulled,) = torch.autograd.grad(values, step, vector, create_graph=True, materialize_grads=True)
    if not pulled.requires_grad:
        return torch.zeros_like(values)
    ones = torch.ones_like(pulled)
    return torch.autograd.grad(pulled, vector, ones, create_graph=True, materialize_grads=True)[0]


def exact_divergence(program: Program, x: Tensor, time: Tensor, conditions: dict[str, Tensor]) -> Tensor:
    """tr J (B,) float64: in closed form where there is one, else from the d unit vectors."""
    if program.trace is not None:
        return evaluate(program, x, time, conditions, x.new_zeros(0, *x.shape)).trace.double()
    basis = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)[:, None].expand(-1, *x.shape)
    products = evaluate(program, x, time, conditions, basis).products
    return products.diagonal(dim1=0, dim2=2).double().sum(1)


def integrate_grid(
    program: Program,
    z: Tensor,
    conditions: dict[str, Tensor],
    table: GridTable,
    probes: Callable[[int], Tensor] | None,
    exact: bool,
) -> tuple[Tensor, Tensor]:
    """(z, q (B, columns, quadratures) float64) at the end of the grid; see :class:`GridTable`.

    probes: the vectors (K, B, d) of a node; None with ``exact``, or where the state is all that is wanted.
    """
    columns = 1 if exact else 0 if probes is None else len(probes(0))
    q = z.new_zeros(len(z), columns, table.weight.shape[1], dtype=torch.float64)
    k: dict[int, Tensor] = {}
    for e, node in enumerate(table.node.tolist()):
        time = table.ode.time[e].expand(len(z))
        scale, of_state, of_output = (float(values[e]) for values in table.ode[1:])
        state = z + sum(w * k[s] for s, w in enumerate(table.stage[e].tolist()) if w)
        x = scale * state
        traced = columns and bool(table.weight[e].any())
        vectors = probes(node) if traced and not exact else x.new_zeros(0, *x.shape)
        output, products, _ = evaluate(program, x, time, conditions, vectors)
        if traced:
            if exact:
                tr = scale * of_output * exact_divergence(program, x, time, conditions)[:, None]
                tr = tr + of_state * z.shape[1]
            else:
                square = vectors.double().square().sum(2).T
                tr = scale * of_output * (vectors.double() * products.double()).sum(2).T
                tr = tr + of_state * square
            q += tr[..., None] * table.weight[e]
        slot = int(table.slot[e])
        if slot >= 0:
            k[slot] = of_state * state + of_output * output
        if bool(table.commit[e]):
            z = z + sum(w * k[s] for s, w in enumerate(table.update[e].tolist()) if w)
    return z, q
