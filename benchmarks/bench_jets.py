"""Derivatives along directions: forward units and memory (asserted), and time beside PyTorch's.

    pytest benchmarks/bench_jets.py --benchmark-only
    FASTLIK_COMPILE=1 pytest benchmarks/bench_jets.py --benchmark-only    # and compiled: a quarter of an hour

A unit is the matrix and convolution FLOPs of one forward pass.  Times are CPU time of one thread, medians of
rounds in which the peers alternate, as ratios to fastlik's.
"""

from __future__ import annotations

import os
import statistics

import pytest
import torch

import fastlik

from .cost import flops
from .measure import environment, now
from .memory import peak_bytes
from .methods import FASTLIK
from .one_tangent import COMPILED, EAGER, Process, make, network

# forward units at most, attention over all pixels at the lowest resolution included
UNITS = {"first, K = 1": 2.1, "first, K = 4": 5.2, "second": 3.2, "collapsed, K = 4": 6.3, "gradient": 6.3}
PEAK_MEMORY = 2.3
ERROR = 1e-5  # float32, of the largest product
ROUNDS = 12


@pytest.mark.parametrize("name", ["mlp", "digits", "mnist", "mnist with attention"])
def bench_forward_units_and_memory(benchmark, name):
    net, x = network(name)
    x = x[:4]
    time_ = torch.rand(len(x))
    v = torch.randn(4, *x.shape)

    def f(x):
        return net(x, time_)

    def gradient():
        net.requires_grad_()
        s, jv = fastlik.jvp(f, x, v[0])
        (s.square().sum() + jv.square().sum()).backward()
        net.requires_grad_(False)

    def divergence(probes: int):
        fastlik.divergence(f, x, method="hutchinson", mode="jvp", probes=probes, chunk=1)

    with torch.no_grad():
        unit, memory = flops(lambda: f(x)), peak_bytes(lambda: f(x))
        units = {
            "first, K = 1": flops(lambda: fastlik.jvp(f, x, v[:1])) / unit,
            "first, K = 4": flops(lambda: fastlik.jvp(f, x, v)) / unit,
            "second": flops(lambda: fastlik.jet(f, x, v[0], 2)) / unit,
            "collapsed, K = 4": flops(lambda: fastlik.jet(f, x, v, collapse=True)) / unit,
        }
        peaks = {
            "(s, Jv), K = 1": peak_bytes(lambda: fastlik.jvp(f, x, v[:1])) / memory,
            "divergence, 1 probe": peak_bytes(lambda: divergence(1)) / memory,
            "divergence, 4 probes one by one": peak_bytes(lambda: divergence(4)) / memory,
        }
    units["gradient"] = flops(gradient) / unit
    benchmark.extra_info |= {"workload": name, "forward_units": units, "peak_memory": peaks}
    benchmark.extra_info |= environment(FASTLIK)
    assert all(units[quantity] <= bar for quantity, bar in UNITS.items()), units
    assert all(peak <= PEAK_MEMORY for peak in peaks.values()), peaks
    benchmark.pedantic(fastlik.jvp, (f, x, v[:1]), rounds=3)


@pytest.mark.parametrize("name", ["mlp", "digits", "mnist"])
def bench_time_of_one_tangent(benchmark, name):
    """Beside PyTorch's ways, without torch.compile, in one process."""
    ways = [way for way in (*EAGER, "vjp channels_last") if name != "mlp" or "channels" not in way]
    made = {way: make(name, way) for way in ways}
    runs = {way: run for way, (run, _) in made.items()}
    benchmark.extra_info |= {"workload": name, "errors": {way: error for way, (_, error) in made.items()}}
    _alternate(benchmark, "jets", {way: lambda run=run: cpu_time(run) for way, run in runs.items()})
    assert all(error <= ERROR for _, error in made.values())


@pytest.mark.skipif(not os.environ.get("FASTLIK_COMPILE"), reason="minutes of compilation: FASTLIK_COMPILE=1")
@pytest.mark.parametrize("name", ["mlp", "digits", "mnist"])
def bench_time_compiled(benchmark, name):
    """Beside PyTorch's ways, compiled or not, each in a process of its own."""
    processes = {way: Process(name, way) for way in (*COMPILED, *EAGER)}
    made = {way: process.made for way, process in processes.items()}
    benchmark.extra_info |= {"workload": name, "compiled": made}
    running = {way: process.seconds for way, process in processes.items() if "error" in made[way]}
    _alternate(benchmark, "compiled jets", running)
    for process in processes.values():
        process.close()
    assert all(made[way]["error"] <= ERROR for way in running)


def _alternate(benchmark, ours: str, clocks: dict) -> None:
    """Rounds of all ways in turn; each clock runs its way and returns the seconds it took."""
    seconds: dict[str, list[float]] = {way: [] for way in clocks}

    def turn() -> None:
        for way, clock in clocks.items():
            seconds[way].append(clock())

    benchmark.pedantic(turn, rounds=ROUNDS, warmup_rounds=2)
    medians = {way: statistics.median(taken[2:]) for way, taken in seconds.items()}
    benchmark.extra_info |= {
        "milliseconds": {way: 1e3 * median for way, median in medians.items()},
        "time / fastlik": {way: median / medians[ours] for way, median in medians.items()},
        **environment(FASTLIK),
    }


def cpu_time(run) -> float:
    with torch.no_grad():
        start = now()
        run()
        return now() - start
