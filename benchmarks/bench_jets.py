"""Derivatives along directions: forward units and memory (asserted), and time beside PyTorch's.

A unit is the matrix and convolution FLOPs of one forward pass.  Times are the medians of rounds in which the
peers alternate, in CPU time of one thread, and are reported as ratios.
"""

from __future__ import annotations

import statistics
import time

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fastlik
from benchmarks.memory import peak_bytes
from fastlik.nn import MLP, UNet

# forward units at most, attention over all pixels at the lowest resolution included
UNITS = {"first, K = 1": 2.1, "first, K = 4": 5.2, "second": 3.2, "gradient": 6.3}
PEAK_MEMORY = 2.3


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    net, x = {
        "mlp": lambda: (MLP(64, width=256), torch.randn(64, 64)),
        "digits": lambda: (UNet(1), torch.randn(64, 1, 8, 8)),
        "mnist": lambda: (UNet(1, attention=False), torch.randn(64, 1, 28, 28)),
        "mnist with attention": lambda: (UNet(1), torch.randn(64, 1, 28, 28)),
    }[name]()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.1 * torch.randn_like(parameter))
    return net.eval(), x


def flops(function) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["mlp", "digits", "mnist", "mnist with attention"])
def bench_forward_units_and_memory(benchmark, name):
    net, x = network(name)
    x = x[:4]
    time_ = torch.rand(len(x))
    v = torch.randn(4, *x.shape)

    def f(x):
        return net(x, time_)

    def gradient():
        s, jv = fastlik.jvp(f, x, v[0])
        (s.square().sum() + jv.square().sum()).backward()

    with torch.no_grad():
        unit, memory = flops(lambda: f(x)), peak_bytes(lambda: f(x))
        units = {
            "first, K = 1": flops(lambda: fastlik.jvp(f, x, v[:1])) / unit,
            "first, K = 4": flops(lambda: fastlik.jvp(f, x, v)) / unit,
            "second": flops(lambda: fastlik.jet(f, x, v[0], 2)) / unit,
        }
        peak = peak_bytes(lambda: fastlik.jvp(f, x, v[:1])) / memory
    units["gradient"] = flops(gradient) / unit
    benchmark.extra_info |= {"workload": name, "forward_units": units, "peak_memory": peak}
    assert all(units[quantity] <= bar for quantity, bar in UNITS.items()), units
    assert peak <= PEAK_MEMORY
    benchmark.pedantic(fastlik.jvp, (f, x, v[:1]), rounds=3)


@pytest.mark.parametrize("name", ["mlp", "digits", "mnist"])
def bench_time_of_one_tangent(benchmark, name):
    """Beside a forward pass, torch.func.jvp, and a vector-Jacobian product with its stored activations."""
    net, x = network(name)
    net.requires_grad_(False)
    time_, v = torch.rand(len(x)), torch.randn_like(x)

    def f(x):
        return net(x, time_)

    def vjp():
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            return torch.autograd.grad(f(leaf), leaf, v)[0]

    peers = {
        "forward": lambda: f(x),
        "torch.func.jvp": lambda: torch.func.jvp(f, (x,), (v,)),
        "vjp": vjp,
    }
    times: dict[str, list[float]] = {peer: [] for peer in peers}
    own: list[float] = []

    def run_peers() -> None:
        for peer, run in peers.items():
            times[peer].append(cpu_time(run))

    def jets() -> None:
        own.append(cpu_time(lambda: fastlik.jvp(f, x, v, backend="jets")))

    with torch.no_grad():
        error = (fastlik.jvp(f, x, v)[1] - peers["torch.func.jvp"]()[1]).abs().max()
        benchmark.pedantic(jets, setup=run_peers, rounds=12, warmup_rounds=1)
    ratios = {peer: statistics.median(t) / statistics.median(own) for peer, t in times.items()}
    benchmark.extra_info |= {"workload": name, "time / jets": ratios}
    assert error <= 1e-5 * peers["torch.func.jvp"]()[1].abs().max()


def cpu_time(function) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start
