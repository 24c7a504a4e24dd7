"""The MLP kernels: how near they come to the machine's matrix product, and whole likelihoods beside peers."""

from __future__ import annotations

import statistics
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

import fastlik
from benchmarks import workloads
from benchmarks.cost import flops
from benchmarks.measure import TARGET, environment, errors, loosest, now
from benchmarks.methods import COMPILED, FASTLIK, TORCHDIFFEQ
from fastlik.ops.mlp import Divergence, Ode, Packed, jet, recognise, reference
from fastlik.ops.mlp.grid import runge_kutta
from fastlik.solvers.tableau import RK4

ROUNDS = 5
ROUNDING = 1e-5
# calls of ours in a row, of so few rows that one call's time is what it finds in the caches
CALLS = {1: 64, 64: 4}

# dimensions, width, hidden layers, rows, divergence
SIZES = {
    "d=2 W=128 exact": (2, 128, 4, 1024, "exact"),
    "d=2 W=128 exact, 64 rows": (2, 128, 4, 64, "exact"),
    "d=2 W=128 exact, 1 row": (2, 128, 4, 1, "exact"),
    "d=2 W=128 state": (2, 128, 4, 1024, "none"),
    "d=16 W=128 exact": (16, 128, 4, 256, "exact"),
    "d=16 W=256 exact": (16, 256, 4, 256, "exact"),
    "d=64 W=256 one probe": (64, 256, 4, 256, "probes"),
    "d=64 W=512 one probe": (64, 512, 6, 64, "probes"),
    "d=64 W=256 closed form": (64, 256, 2, 256, "closed form"),
}


@pytest.mark.parametrize("size", SIZES)
def bench_throughput(benchmark, size):
    """Four RK4 steps; floating-point operations of the matrix products over those of a large one."""
    dim, width, depth, rows, mode = SIZES[size]
    torch.manual_seed(0)
    net = fastlik.nn.MLP(dim, width=width, depth=depth)
    nn.init.normal_(net.out.weight, std=width**-0.5)
    times = torch.linspace(0, 1, 5, dtype=torch.float64)
    program = recognise(net, dim, {}, times, torch.float32, torch.device("cpu"))
    packed, divergence = Packed.of(program, torch.float32), Divergence(mode)
    table = runge_kutta(_ode, times, RK4.a, RK4.b, RK4.c)
    z, ids = torch.randn(rows, dim), torch.arange(rows)

    def run() -> tuple:
        return packed.integrate_grid(z, {}, table, divergence, ids)

    error = 0.0
    if mode != "probes":  # those are the tests' business
        few = z[:4].double()
        exact = mode in ("exact", "closed form")
        expected = reference.integrate_grid(program, few, {}, table, None, exact)
        error = max(
            float((a[:4] - b).abs().max()) for a, b in zip(run(), expected, strict=False) if a.numel()
        )
    a = torch.randn(1024, 1024)
    products: list[float] = []

    def product() -> None:
        start = now()
        torch.mm(a, a)
        products.append(now() - start)

    benchmark.pedantic(run, setup=product, rounds=4 * ROUNDS, warmup_rounds=2)
    with torch.no_grad():
        forward = flops(lambda: net(z, torch.zeros(rows)))
        forward -= flops(lambda: net.shift(torch.zeros(rows, net.shift.in_features)))
    units = {"none": 1, "probes": 2, "exact": 1 + dim}.get(mode)
    if units is None:  # one matrix more
        forward, units = forward + 2 * rows * width**2, 1
    work = forward * units * len(table.u)
    if benchmark.stats:
        benchmark.extra_info["gflops"] = work / benchmark.stats.stats.median / 1e9
        benchmark.extra_info["sgemm_gflops"] = 2 * 1024**3 / statistics.median(products) / 1e9
    benchmark.extra_info |= {"size": size, "rows": rows, "error": error, "threads": torch.get_num_threads()}
    assert error < ROUNDING


def _ode(u: torch.Tensor) -> Ode:
    return Ode(u, torch.ones_like(u), -0.5 * u, 0.1 + u)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("directions", [1, 4])
def bench_derivatives_along_directions(benchmark, directions, order):
    """1024 rows of 4 x 128 units, beside ``fastlik.jet`` in eager mode."""
    torch.manual_seed(0)
    net = fastlik.nn.MLP(2, width=128, depth=4)
    nn.init.normal_(net.out.weight, std=0.1)
    times = torch.linspace(0, 1, 5, dtype=torch.float64)
    program = recognise(net, 2, {}, times, torch.float32, torch.device("cpu"))
    x, time_, v = torch.randn(1024, 2), torch.rand(1024), torch.randn(directions, 1024, 2)
    jets: list[float] = []

    def by_jets() -> tuple:
        return fastlik.jet(lambda x: net(x, time_), x, v, order)

    def run_jets() -> None:
        start = now()
        by_jets()
        jets.append(now() - start)

    with torch.no_grad():
        pairs = zip(jet(program, x, time_, v, order), by_jets(), strict=True)
        error = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
        benchmark.pedantic(jet, (program, x, time_, v, order), setup=run_jets, rounds=4 * ROUNDS)
    benchmark.extra_info |= {"directions": directions, "order": order, "error": error}
    benchmark.extra_info |= environment(FASTLIK)
    if benchmark.stats:
        benchmark.extra_info["jets / native"] = statistics.median(jets) / benchmark.stats.stats.median
    assert error < ROUNDING


@pytest.mark.parametrize("setting", ["as practised", "equal error"])
@pytest.mark.parametrize("method", [FASTLIK, TORCHDIFFEQ, COMPILED], ids=str)
@pytest.mark.parametrize("rows", [1, 64, 1024, 8192])
def bench_likelihood(benchmark, rows, method, setting):
    """Exact likelihoods in 2-D; ``ratio``: the time over that of fastlik's default settings, whose calls
    follow each other as the peer's many small operations do; ``ratio, one call``: of one call between two
    of the peer's."""
    small = _mlp()
    value = loosest(method, small) if setting == "equal error" else method.practice
    workload = _resized(small, rows)
    run, ours = method.likelihood(workload), FASTLIK.likelihood(workload)
    run(value)
    single: list[float] = []
    before: list[float] = []
    calls = CALLS.get(rows, 1)

    def run_ours() -> None:
        start = now()
        ours(FASTLIK.practice)
        single.append(now() - start)
        start = now()
        for _ in range(calls):
            ours(FASTLIK.practice)
        before.append((now() - start) / calls)

    benchmark.pedantic(run, (value,), setup=run_ours, rounds=ROUNDS if rows < 8192 else 2)
    error = errors(method, small, value)
    benchmark.extra_info |= {
        "workload": f"mlp, {rows} rows",
        "peer": method.name,
        "setting": setting,
        method.unit: value,
        "error": error.mean,
        "worst_error": error.worst,
        **environment(method),
    }
    if benchmark.stats:
        median = benchmark.stats.stats.median
        benchmark.extra_info["ratio"] = median / statistics.median(before)
        benchmark.extra_info["ratio, one call"] = median / statistics.median(single)
    assert setting == "as practised" or error.mean <= TARGET


# methods compile once a workload
_mlp = cache(workloads.mlp)


@cache
def _resized(workload: workloads.Workload, rows: int) -> workloads.Workload:
    """The same points, as often as it takes."""
    index = torch.arange(rows) % len(workload.x)
    names = ("x", "signs", "exact", "frozen")
    return replace(workload, **{name: getattr(workload, name)[index] for name in names})
