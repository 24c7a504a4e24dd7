"""Linear layers, matrix products, einsum."""

from __future__ import annotations

import string
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import kernels
from ..jet import Jet, lift
from ..registry import rule
from .arithmetic import Operand, add, mul, multilinear, primal_of
from .shape import squeeze, transpose, unsqueeze


@rule("linear")
def linear(a: Operand, weight: Operand, bias: Operand | None = None) -> Jet:
    if isinstance(weight, Jet) or isinstance(bias, Jet) or not isinstance(a, Jet):
        transposed = transpose(weight, -2, -1) if isinstance(weight, Jet) else weight.mT
        product = matmul(a, transposed)
        return product if bias is None else add(product, bias)

    def multiply(part: Tensor) -> Tensor:
        return F.linear(part, weight)

    joined = kernels.affine(a, lambda a: a.linear(multiply), bias)
    return a.linear(multiply, bias, lambda part: F.linear(part, weight, bias)) if joined is None else joined


def _product(x: Tensor, y: Tensor) -> Tensor:
    """Matrices (n, ..., i, j) and (m, ..., j, k), n and m equal or 1, without copies where n = m = 1."""
    if x.shape[0] == y.shape[0] == 1:
        return (x[0] @ y[0])[None]
    return x @ y


@rule("matmul", "__matmul__", "mm", "bmm", "mv", "dot", "inner")
def matmul(a: Operand, b: Operand) -> Jet | Tensor:
    if not isinstance(a, Jet) and not isinstance(b, Jet):
        return a @ b
    ndims = primal_of(a).dim(), primal_of(b).dim()
    if ndims[0] == 1:
        return squeeze(matmul(_unsqueezed(a, 0), b), -2 if ndims[1] > 1 else -1)
    if ndims[1] == 1:
        return squeeze(matmul(a, _unsqueezed(b, 1)), -1)
    if not isinstance(b, Jet):
        return a.linear(lambda part: lift(part, ndims[1]) @ b)
    if not isinstance(a, Jet):
        return b.linear(lambda part: a @ lift(part, ndims[0]))
    ndim = max(ndims)
    return multilinear(lambda x, y: _product(lift(x, ndim), lift(y, ndim)), a, b)


def _unsqueezed(a: Operand, dim: int) -> Operand:
    return unsqueeze(a, dim) if isinstance(a, Jet) else a.unsqueeze(dim)


@rule("__rmatmul__")
def rmatmul(a: Operand, b: Operand) -> Jet:
    return matmul(b, a)


@rule("addmm", "baddbmm", "addbmm", "addmv")
def addmm(bias: Operand, a: Operand, b: Operand, *, beta: float = 1, alpha: float = 1) -> Jet:
    product = matmul(a, b)
    if alpha != 1:
        product = mul(product, alpha) if isinstance(product, Jet) else product * alpha
    if beta != 1:
        bias = mul(bias, beta) if isinstance(bias, Jet) else bias * beta
    return add(product, bias)


@rule("einsum")
def einsum(equation: str, *operands: object, path: object = None) -> Jet:
    """One more letter for the derivatives, on the operands that have them."""
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    inputs, output = _explicit(equation, operands)
    extra = next(letter for letter in string.ascii_letters if letter not in equation)

    def product(*factors: Tensor) -> Tensor:
        stacked = [factor.shape[0] > 1 for factor in factors]
        names = [extra + name if many else name for name, many in zip(inputs, stacked, strict=True)]
        plain = [factor if many else factor[0] for factor, many in zip(factors, stacked, strict=True)]
        target = extra + output if any(stacked) else output
        result = torch.einsum(f"{','.join(names)}->{target}", *plain)
        return result if any(stacked) else result[None]

    return multilinear(product, *operands)


def _explicit(equation: str, operands: Sequence[object]) -> tuple[list[str], str]:
    """The operands' letters and the result's, which may be left out of an equation."""
    equation = equation.replace(" ", "")
    if "->" in equation:
        left, output = equation.split("->")
        return left.split(","), output
    letters = equation.replace(",", "").replace(".", "")
    output = "".join(sorted(letter for letter in set(letters) if letters.count(letter) == 1))
    return equation.split(","), ("..." if "..." in equation else "") + output


@rule("bilinear")
def bilinear(a: Operand, b: Operand, weight: Tensor, bias: Tensor | None = None) -> Jet:
    product = einsum("...i,oij,...j->...o", a, weight, b)
    return product if bias is None else add(product, bias)


@rule("outer", "ger")
def outer(a: Operand, b: Operand) -> Jet:
    return mul(_unsqueezed(a, 1), b)
