"""Whole likelihoods of an MLP on a GPU, one kernel each, beside peers; and the rate of the kernel's products.

* kernel: ``fastlik.ode_nll`` at its default tolerance, in fp32's accuracy and with fp16 products.
* torchdiffeq: dopri5 at 1e-5, as people run it.
* compile: RK4 in log sigma with the fewest steps that meet 1e-3 nats/dim, compiled, the whole of it one CUDA
  graph.

Each time is the median of rounds on the GPU's clock; errors are those of the first 512 rows, in nats/dim.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import fastlik
from benchmarks import workloads
from benchmarks.bench_triton import milliseconds
from benchmarks.gpu_profile import graphed
from fastlik.ops.mlp import Divergence, Ode, recognise
from fastlik.ops.mlp.chain import chain_of
from fastlik.ops.mlp.grid import runge_kutta
from fastlik.ops.mlp.packed_chain import PRECISIONS, PackedChain
from fastlik.solvers.tableau import RK4

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

ROWS = (64, 4096, 65_536)
PEERS = ("kernel", "kernel, fp16", "torchdiffeq", "compile")
ERRORS = {"kernel": 1e-3, "kernel, fp16": 2e-3, "torchdiffeq": 1e-3, "compile": 1e-3}
COMPILED_STEPS = (16, 32, 64, 128)


@functools.cache
def workload(rows: int) -> workloads.Workload:
    """The 2-D ring's points, as often as it takes, on the GPU."""
    small = workloads.mlp()
    index = torch.arange(rows) % len(small.x)
    return replace(
        small,
        net=small.net.cuda(),
        x=small.x[index].cuda(),
        signs=small.signs[index].cuda(),
        exact=small.exact,
    )


def _kernel(rows: int, **options: object) -> Callable[[], Tensor]:
    given = workload(rows)
    return lambda: fastlik.ode_nll(given.model, given.x, divergence="exact", prior="standard", **options).nats


def _torchdiffeq(rows: int) -> Callable[[], Tensor]:
    pytest.importorskip("torchdiffeq", reason="this peer needs: pip install torchdiffeq")
    peer = importlib.import_module("benchmarks.peers.torchdiffeq_dopri5")
    run = peer.likelihood(workload(rows))
    return lambda: run(1e-5)


def _compile(rows: int) -> Callable[[], Tensor]:
    peer = importlib.import_module("benchmarks.peers.torch_rk4")
    plain = peer.likelihood(workload(512))
    steps = next(n for n in COMPILED_STEPS if error(plain(n)) <= ERRORS["compile"])
    run = peer.likelihood(workload(rows), compiled=True)
    return graphed(lambda: run(steps))


def error(nats: Tensor) -> float:
    """Mean over the rows whose answer is known, in nats/dim."""
    exact = workload(512).exact
    count = min(len(exact), len(nats))
    return float((nats[:count].cpu() - exact[:count]).abs().mean() / 2)


def runner(peer: str, rows: int) -> Callable[[], Tensor]:
    if peer == "torchdiffeq":
        return _torchdiffeq(rows)
    if peer == "compile":
        return _compile(rows)
    return _kernel(rows, precision="fp16" if peer.endswith("fp16") else "auto")


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("rows", ROWS)
def bench_likelihood(benchmark, rows, peer):
    run = runner(peer, rows)
    found = error(run())
    benchmark.extra_info |= {
        "op": f"2-D likelihood of an MLP of 4 x 128, {rows} rows",
        "peer": peer,
        "dtype": "float32",
        "milliseconds": milliseconds(run, rounds=5),
        "error": found,
    }
    benchmark.pedantic(run, rounds=1)
    assert found <= ERRORS[peer]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("dim", "width", "depth", "mode"),
    [(2, 128, 4, "probes"), (16, 256, 4, "probes"), (64, 512, 4, "probes"), (64, 256, 2, "closed form")],
)
@torch.no_grad()
def bench_products(benchmark, dim, width, depth, mode, precision):
    """Sixteen RK4 steps with one probe: the rate of the network's products and its tangents'.  Or with the
    exact trace in closed form, where one more product takes the tangents' place."""
    rows, steps = 65_536, 16
    torch.manual_seed(0)
    net = fastlik.nn.MLP(dim, width=width, depth=depth).cuda()
    nn.init.normal_(net.out.weight, std=width**-0.5)
    times = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    packed = PackedChain(
        chain_of(recognise(net, dim, {}, times, torch.float32, net.out.weight.device)), "cuda", precision
    )
    table = runge_kutta(_ode, times, RK4.a, RK4.b, RK4.c).to(net.out.weight.device)
    z, ids = torch.randn(rows, dim, device="cuda"), torch.arange(rows, device="cuda")

    def run() -> Tensor:
        return packed.integrate_grid(z, {}, table, Divergence(mode), ids)[0]

    median = milliseconds(run, rounds=5)
    of_value = 2 * dim * width + (depth - 1) * width**2
    of_trace = width**2 if mode == "closed form" else of_value
    work = 2 * rows * len(table.u) * (of_value + of_trace)
    trace = ", exact trace in closed form" if mode == "closed form" else ""
    benchmark.extra_info |= {
        "op": f"products of an MLP of {depth} x {width}, d = {dim}{trace}",
        "peer": "kernel",
        "dtype": precision,
        "milliseconds": median,
        "tflops": work / median / 1e9,
        "error": 0.0,
    }
    benchmark.pedantic(run, rounds=1)
    assert bool(run().isfinite().all())


def _ode(u: Tensor) -> Ode:
    return Ode(u, torch.ones_like(u), -0.5 * u, 0.1 + u)


def once() -> None:
    """One call of the main kernel, for ncu."""
    _kernel(65_536)()
    torch.cuda.synchronize()


if __name__ == "__main__":
    once()
