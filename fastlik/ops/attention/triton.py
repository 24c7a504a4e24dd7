"""The jet of softmax attention by Triton kernels.

With scores S, S1 = scale (Q1 K' + Q K1'), S2 = scale (Q2 K' + 2 Q1 K1' + Q K2'), weights P, the means
mu = rowsum(P S1), a = S1 - mu, nu = rowsum(P (S2 + a^2)):

    P1 = P a,    P2 = P (S2 + a^2 - nu),    O = P V,    O1 = P1 V + P V1,    O2 = P2 V + 2 P1 V1 + P V2.

Backwards from gradients g of O, h of O1 and w of O2, with A = g V' + h V1' + w V2', B = h V' + 2 w V1',
C = w V', and of each row alpha = g . O + h . O1 + w . O2, beta = h . O + 2 w . O1, gamma = w . O:

    dS2 = P (C - gamma),    dS1 = P (B - beta + 2 a (C - gamma)),
    dS = P (A - alpha + a (B - beta) + (S2 + a^2 - nu) (C - gamma)).

All is a sum of matrix products of tiles, linear in what each direction contributes: each has a program.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from fastlik.ops.differentiable import Fused
from fastlik.ops.memory import empty_jet

from . import reference
from .backward import backward_keys_kernel, backward_queries_kernel
from .forward import forward_kernel


class Call(NamedTuple):
    """The arguments of the operation."""

    query: Tensor
    key: Tensor
    value: Tensor
    query1: Tensor
    key1: Tensor
    value1: Tensor
    query2: Tensor | None
    key2: Tensor | None
    value2: Tensor | None
    mask: Tensor | None
    causal: bool
    scale: float

    @property
    def curved(self) -> bool:
        return self.query2 is not None

    def runs(self) -> Iterator[tuple[slice, bool]]:
        """Directions that one launch takes, and whether they have second derivatives of the inputs."""
        count = len(self.query1)
        bent = len(self.query2) if self.curved else 0
        if bent:
            yield slice(0, bent), True
        if bent < count:
            yield slice(bent, count), False

    def tensors(self, run: slice, bent: bool) -> tuple[Tensor, ...]:
        """Inputs of a launch, and the mask; any tensor for what there is not."""
        primals = self[:3]
        seconds = self[6:9] if bent else primals
        firsts = (each[run] for each in self[3:6])
        return *primals, *firsts, *seconds, self.query if self.mask is None else self.mask

    def sizes(self) -> tuple[int | float, ...]:
        _, heads, length, size = self.query.shape
        return heads, length, self.key.shape[2], size, self.scale, self.query.numel(), self.key.numel()

    def strides(self) -> tuple[int, ...]:
        return (0, 0, 0, 0) if self.mask is None else self.mask.stride()

    def constants(self, bent: bool) -> dict[str, object]:
        kind = "none" if self.mask is None else "bool" if self.mask.dtype == torch.bool else "sum"
        return {
            "CURVED": self.curved,
            "BENT": bent,
            "CAUSAL": self.causal,
            "MASK": kind,
            "enable_fp_fusion": True,
        }

    def grid(self, length: int, block: int, count: int) -> tuple[int, int, int]:
        return triton.cdiv(length, block), self.query.shape[0] * self.query.shape[1], count


def _head(call: Call) -> int:
    return max(16, triton.next_power_of_2(call.query.shape[-1]))


def _options(rows: int, columns: int, warps: int, stages: int, head: int) -> dict[str, int]:
    return {"ROWS": rows, "COLUMNS": columns, "HEAD": head, "num_warps": warps, "num_stages": stages}


def _blocks(call: Call, several: bool) -> dict[str, int]:
    """Tiles that the registers hold, as benchmarks/results/triton_resources.json tells."""
    head = _head(call)
    if call.query.dtype == torch.float32:
        return _options(16, 16, 8, 1, head) if call.curved else _options(16, 32, 4, 2, head)
    if call.curved:
        return _options(64, 32, 4, 2, head) if head <= 64 else _options(32, 32, 8, 2, head)
    return _options(128, 32 if several else 64, 8, 2, head) if head <= 64 else _options(64, 32, 8, 2, head)


def _backward_blocks(call: Call) -> tuple[dict[str, int], dict[str, int]]:
    """Tiles of the kernel of queries and of the one of keys."""
    head = _head(call)
    if call.query.dtype == torch.float32:
        # the second order spills in any shape: 600 and 1000 bytes a thread
        return _options(16, 16, 2 if call.curved else 4, 1, head), _options(16, 16, 4, 1, head)
    if call.curved and head > 64:
        return (_options(16, 16, 8, 1, head),) * 2
    return (_options(32, 32, 4 if head <= 64 else 8, 1, head),) * 2


def allocate(query: Tensor, *others: object, together: bool) -> list[Tensor]:
    """O, O1 and O2, and for the backward pass log2 of the weights' sum, mu and nu."""
    call = Call(query, *others)
    rows = query.new_empty(query.shape[:3], dtype=torch.float32)
    orders = 2 if call.curved else 1
    means = [query.new_empty(call.query1.shape[:4], dtype=torch.float32) for _ in range(orders)]
    return [*empty_jet(query, [len(call.query1)] * orders, together), rows, *means]


def _named(call: Call, results: Sequence[Tensor]) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """[O1, O2], lse, [mu, nu]; the last of each twice where there is no second order."""
    orders = 2 if call.curved else 1
    outputs, lse, means = results[1 : 1 + orders], results[1 + orders], results[2 + orders :]
    return [*outputs, outputs[-1]][:2], lse, [*means, means[-1]][:2]


def forward(results: list[Tensor], *args: object) -> None:
    call = Call(*args)
    outputs, lse, means = _named(call, results)
    for run, bent in call.runs():
        count = len(call.query1[run])
        several = count > 1 and not call.curved and call.query.dtype != torch.float32 and _head(call) <= 64
        blocks = _blocks(call, several)
        grid = call.grid(call.query.shape[2], blocks["ROWS"], (count + 1) // 2 if several else count)
        forward_kernel[grid](
            *call.tensors(run, bent),
            results[0],
            *(each[run] for each in outputs),
            lse,
            *(each[run] for each in means),
            *call.sizes(),
            count,
            run.start,
            *call.strides(),
            SEVERAL=several,
            **call.constants(bent),
            **blocks,
        )


def backward(
    gradients: list[Tensor], grads: Sequence[Tensor], results: Sequence[Tensor], *args: object
) -> None:
    call = Call(*args)
    outputs, lse, means = _named(call, results)
    g, h, *w = (each.contiguous() for each in grads[: 3 if call.curved else 2])
    w = w[0] if w else h
    rows = _products(call, results[0], outputs, g, h, w)
    of_queries, of_keys = _backward_blocks(call)
    primals, firsts, seconds = gradients[:3], gradients[3:6], gradients[6:9] if call.curved else None
    # of each direction; they are summed below
    parts = [torch.empty_like(each) for each in call[3:6]]
    for run, bent in call.runs():
        count = len(call.query1[run])
        inputs = (*call.tensors(run, bent), g, h[run], w[run], lse)
        inputs = (*inputs, *(each[run] for each in (*means, *rows)))
        dq, dk, dv = ((part[run], first[run]) for part, first in zip(parts, firsts, strict=True))
        dq2, dk2, dv2 = seconds if bent else (parts[0],) * 3
        sizes = (*call.sizes(), run.start, *call.strides())
        constants = call.constants(bent)
        grid = call.grid(call.query.shape[2], of_queries["ROWS"], count)
        backward_queries_kernel[grid](*inputs, *dq, dq2, *sizes, **constants, **of_queries)
        grid = call.grid(call.key.shape[2], of_keys["COLUMNS"], count)
        outputs = (dk[0], dv[0], dk[1], dv[1], dk2, dv2)
        backward_keys_kernel[grid](*inputs, *outputs, *sizes, **constants, **of_keys)
    for gradient, part in zip(primals, parts, strict=True):
        gradient.copy_(part[0] if len(part) == 1 else part.sum(0))
    if call.mask is not None and call.mask.is_floating_point():
        gradients[-1].zero_()  # of a mask that wants none: the entry refuses others


def _products(
    call: Call, out: Tensor, outputs: Sequence[Tensor], g: Tensor, h: Tensor, w: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """alpha, beta and gamma, (K, B, H, T) float32."""

    def product(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(-1, dtype=torch.float32)

    alpha, beta, gamma = product(h, outputs[0]), product(h, out), product(w, out)
    alpha[0] += product(g, out)
    if call.curved:
        alpha += product(w, outputs[1])
        beta += 2 * product(w, outputs[0])
    return alpha, beta, gamma


FUSED = Fused(
    "attention",
    "Tensor query, Tensor key, Tensor value, Tensor query1, Tensor key1, Tensor value1, Tensor? query2, "
    "Tensor? key2, Tensor? value2, Tensor? mask, bool causal, float scale",
    reference.attention,
    allocate,
    forward,
    backward,
)
