"""Fused jets on a GPU: times beside eager PyTorch, torch.compile and a plain copy of as many bytes.

* eager: torch.func.jvp of PyTorch's own functions, attention by its mathematics (the fused one has no jvp).
* compile: torch.compile of the same jet written out in PyTorch, which fuses better than a compiled jvp.
* forward: the function without its derivative, attention by the flash kernel.
* copy: a copy that reads and writes as many bytes in all.

Each time is the median of rounds on the GPU's clock after its cache was overwritten; the first rows of each
result are held to the float64 reference.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import fastlik
from fastlik.ops.activation import activation
from fastlik.ops.attention import attention
from fastlik.ops.gate import gate
from fastlik.ops.hutchinson import products
from fastlik.ops.normalisation import normalise
from fastlik.ops.residual import residual

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
ERRORS = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
PEERS = ("triton", "compile", "eager", "forward", "copy")
ROUNDS, JUDGED_ROWS = 20, 2

Jet = tuple[Tensor, ...]


class Case(NamedTuple):
    """``f`` of the primal (B, ...), and its jet (f(x), J v (1, B, ...)) by our kernel; of order 2 along a
    straight line, (f(x), J v, D^2 f[v, v]) from second derivatives that are 0."""

    shape: tuple[int, ...]
    f: Callable[[Tensor], Tensor]
    jet: Callable[[Tensor, Tensor, str], list[Tensor]]
    channels_last: bool = False
    order: int = 1


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(shape, device="cuda", generator=generator).to(dtype)


def _group_norm(channels: int, side: int, channels_last: bool, batch: int = 256) -> Case:
    def factors(x: Tensor) -> tuple[Tensor, Tensor]:
        return (normal(1, channels, seed=i).to(x.dtype) for i in (2, 3))

    def f(x: Tensor) -> Tensor:
        weight, bias = factors(x)
        return F.silu(F.group_norm(x, 32, weight[0], bias[0]))

    def jet(x: Tensor, v: Tensor, backend: str) -> list[Tensor]:
        weight, bias = factors(x)
        return normalise(x, v, groups=32, scale=weight, shift=bias, function="silu", backend=backend)

    return Case((batch, channels, side, side), f, jet, channels_last)


def _layer_norm() -> Case:
    def factors(x: Tensor) -> tuple[Tensor, Tensor]:
        return (normal(64, 1152, seed=i)[: len(x)].to(x.dtype) for i in (2, 3))

    def f(x: Tensor) -> Tensor:
        scale, shift = factors(x)
        return F.layer_norm(x, (1152,)) * scale[:, None] + shift[:, None]

    def jet(x: Tensor, v: Tensor, backend: str) -> list[Tensor]:
        scale, shift = factors(x)
        results = normalise(x.flatten(0, 1), v.flatten(1, 2), scale=scale, shift=shift, backend=backend)
        return [results[0].view_as(x), results[1].view_as(v)]

    return Case((64, 1024, 1152), f, jet)


def _attention(size: int, order: int = 1) -> Case:
    """Queries, keys and values side by side in x (B, 3, H, T, D)."""

    def f(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*x.unbind(1))

    def jet(x: Tensor, v: Tensor, backend: str) -> list[Tensor]:
        straight = torch.zeros_like(v).unbind(2) if order == 2 else ()
        return attention(*x.unbind(1), *v.unbind(2), *straight, backend=backend)

    return Case((16, 3, 16, 1024, size), f, jet, order=order)


def _gate(order: int = 1) -> Case:
    """SwiGLU of the halves of x."""

    def f(x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return F.silu(a) * b

    def jet(x: Tensor, v: Tensor, backend: str) -> list[Tensor]:
        straight = torch.zeros_like(v).chunk(2, -1) if order == 2 else ()
        return gate(*x.chunk(2, -1), *v.chunk(2, -1), *straight, function="silu", backend=backend)

    return Case((16, 1024, 2 * 4096), f, jet, order=order)


def _silu_jet(x: Tensor, v: Tensor, backend: str) -> list[Tensor]:
    return activation(x, v, function="silu", backend=backend)


CASES = {
    "silu": lambda: Case((256, 128, 32, 32), F.silu, _silu_jet),
    "group norm + silu, NCHW": lambda: _group_norm(128, 32, False),
    "group norm + silu, NHWC": lambda: _group_norm(128, 32, True),
    "group norm + silu, NHWC, 256 x 256": lambda: _group_norm(128, 256, True, 8),
    "layer norm + modulation": _layer_norm,
    "SwiGLU": _gate,
    "SwiGLU, order 2": lambda: _gate(2),
    "attention, T = 1024, D = 64": lambda: _attention(64),
    "attention, T = 1024, D = 128": lambda: _attention(128),
    "attention, T = 1024, D = 64, order 2": lambda: _attention(64, 2),
    "attention, T = 1024, D = 128, order 2": lambda: _attention(128, 2),
}


def milliseconds(run: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Median time on the GPU."""
    cache = torch.empty(256 << 20, dtype=torch.int8, device="cuda")
    times = []
    for _ in range(rounds + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        cache.zero_()
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[3:])


def _runner(peer: str, case: Case, x: Tensor, v: Tensor, size: int) -> Callable[[], object]:
    if peer == "triton":
        return lambda: case.jet(x, v, "triton")
    if peer == "forward":
        return lambda: (case.f(x),)
    if peer == "copy":
        source = torch.ones(size // 8, device="cuda")
        target = torch.empty_like(source)
        return lambda: target.copy_(source)
    if peer == "compile":
        return _compiled(case, x, v)

    def eager() -> Jet:
        with sdpa_kernel(SDPBackend.MATH):
            return tuple(each if i == 0 else each[None] for i, each in enumerate(_nested(case, x, v[0])))

    return eager


def _nested(case: Case, x: Tensor, v: Tensor) -> Jet:
    """By torch.func.jvp, of itself for the second order."""

    def first(x: Tensor) -> Jet:
        return torch.func.jvp(case.f, (x,), (v,))

    if case.order == 1:
        return first(x)
    (value, slope), (_, bend) = torch.func.jvp(first, (x,), (v,))
    return value, slope, bend


def _compiled(case: Case, x: Tensor, v: Tensor) -> Callable[[], object]:
    def jet(x: Tensor, v: Tensor) -> Jet:
        return fastlik.jet(case.f, x, v, case.order, backend="jets")

    function = torch.compile(jet, fullgraph=True)
    return lambda: function(x, v)


def error_of(results: Jet, case: Case, x: Tensor, v: Tensor) -> float:
    """The largest error of the first rows, by the largest number of each result."""
    rows = slice(JUDGED_ROWS)
    truth = case.jet(x[rows].double(), v[:, rows].double(), "torch")
    judged = (results[0][rows], *(each[:, rows] for each in results[1:]))
    return max(
        ((a.double() - b).abs().max() / b.abs().max()).item() for a, b in zip(judged, truth, strict=False)
    )


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def bench_jet(benchmark, monkeypatch, name, dtype, peer):
    case, dtype = CASES[name](), DTYPES[dtype]
    x, v = (normal(*case.shape, dtype=dtype, seed=seed) for seed in (0, 1))
    if case.channels_last:
        x, v = (each.to(memory_format=torch.channels_last) for each in (x, v))
    if "D = 128" in name and dtype == torch.float32:
        pytest.skip("the kernel takes no such heads in float32")
    v = v[None]
    results = case.jet(x, v, "triton")
    size = x.nbytes + case.order * v.nbytes + sum(result.nbytes for result in results)
    if peer == "compile":  # of the rules in PyTorch, not of our kernels
        monkeypatch.setenv("FASTLIK_BACKEND", "torch")
    run = _runner(peer, case, x, v, size)
    error = 0.0 if peer == "copy" else error_of(run(), case, x, v)
    _report(benchmark, run, name, peer, dtype, size, error)


@pytest.mark.parametrize("peer", ["triton", "eager", "copy"])
@torch.no_grad()
def bench_hutchinson(benchmark, peer):
    """v'Jv with probes drawn again, beside the product with stored ones."""
    jv, rows = normal(1, 4096, 3, 64, 64), torch.arange(4096, device="cuda")
    v = torch.ones_like(jv)
    run = {
        "triton": lambda: products(jv, range(1), seed=0, rows=rows, backend="triton"),
        "eager": lambda: (v * jv).flatten(2).double().sum(2),
        "copy": _runner("copy", None, jv, jv, jv.nbytes),
    }[peer]
    error = 0.0
    if peer == "triton":
        truth = products(jv[:, :2].double(), range(1), seed=0, rows=rows[:2], backend="torch")
        error = ((run()[:, :2] - truth).abs().max() / truth.abs().max()).item()
    _report(benchmark, run, "hutchinson product", peer, jv.dtype, jv.nbytes, error)


@pytest.mark.parametrize("peer", ["triton", "eager", "copy"])
@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def bench_residual(benchmark, dtype, peer):
    """(a + b) s of a primal and its tangent."""
    dtype = DTYPES[dtype]
    a, b = (normal(2, 256, 128, 32, 32, dtype=dtype, seed=seed) for seed in (0, 1))
    run = {
        "triton": lambda: residual(a, b, 0.7, backend="triton"),
        "eager": lambda: (a + b) * 0.7,
        "copy": _runner("copy", None, a, b, 3 * a.nbytes),
    }[peer]
    error = 0.0
    if peer != "copy":
        truth = residual(a[:, :2].double(), b[:, :2].double(), 0.7, backend="torch")
        error = ((run()[:, :2] - truth).abs().max() / truth.abs().max()).item()
    _report(benchmark, run, "residual sum", peer, dtype, 3 * a.nbytes, error)


def _report(benchmark, run, name, peer, dtype, size, error):
    median = milliseconds(run)
    benchmark.extra_info |= {
        "op": name,
        "peer": peer,
        "dtype": str(dtype).removeprefix("torch."),
        "milliseconds": median,
        "bytes": size,
        "gb_per_s": size / median / 1e6,
        "error": error,
    }
    benchmark.pedantic(run, rounds=1)
    assert error <= ERRORS[dtype]
