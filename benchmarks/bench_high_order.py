"""Training steps of second and third order: work in steps of first order, and time beside plain PyTorch.

    FASTLIK_COMPILE=1 pytest benchmarks/bench_high_order.py --benchmark-only --benchmark-json=run.json
    python -m benchmarks.report run.json --figures benchmarks/results/high_order_steps.json

Without FASTLIK_COMPILE nothing is compiled, which takes minutes on the U-Net.
"""

from __future__ import annotations

import os
import statistics
from functools import cache

import pytest
import torch

import fastlik
from fastlik.objectives import choose_forms, draw, high_order_errors
from fastlik.training.network import score_model
from fastlik.training.objective import Objective

from .cost import flops
from .measure import environment, now
from .memory import peak_bytes
from .methods import FASTLIK
from .peers.reverse_hdsm import ReverseOverReverse

# the bars: work of a step in steps of first order
LIMITS = {2: 2.1, 3: 4.2}
# and memory of third order in steps of first order
MEMORY = 3.0
ROUNDS = 15
SECOND = "product+quadratic"
STEPS = [(2, "auto"), (3, "laplacian"), (3, "mixed"), (3, "gradient")]
COMPILE = bool(os.environ.get("FASTLIK_COMPILE"))
# all compile the same source lines; beyond the limit they would silently run uncompiled
torch._dynamo.config.recompile_limit = 64


@cache
def workload(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    """A network with a batch; layers that start at zero are filled, or work would be free."""
    torch.manual_seed(0)
    net, x0 = {
        "mlp": lambda: (fastlik.nn.MLP(8, width=128), torch.randn(512, 8)),
        "unet": lambda: (fastlik.nn.UNet(1), torch.randn(16, 1, 8, 8)),
    }[name]()
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return net, x0


def ours(
    name: str, order: int, third: str, *, compiled: bool = False, parts: int = 1, backend: str = "native"
):
    """A training step's gradients by fastlik: the objective of a run, backward."""
    net, x0 = workload(name)
    model = score_model(net, fastlik.VP(), "noise")
    forms = choose_forms(order, SECOND, third, x0[0].numel(), 1)
    objective = Objective(model, forms, (1.0, 1.0), backend)
    if compiled:
        objective.compile_for(x0[:2], {})
    torch.manual_seed(1)
    draws = draw(model, x0, "uniform", "importance", forms, 1)
    size = len(x0) // parts

    def step() -> None:
        net.zero_grad()
        for start in range(0, len(x0), size):
            rows = slice(start, start + size)
            (objective(x0[rows], draws.rows(rows), {})[0] / len(x0)).backward()

    return step


def plain(name: str, order: int, *, compiled: bool = False):
    """The same in plain PyTorch."""
    net, x0 = workload(name)
    loss = ReverseOverReverse(net, order)
    if compiled:
        loss = torch.compile(loss.__call__, fullgraph=True)
    torch.manual_seed(1)
    model = score_model(net, fastlik.VP(), "noise")
    draws = draw(model, x0, "uniform", "importance", choose_forms(2, SECOND, "auto", x0[0].numel(), 1), 1)

    def step() -> None:
        net.zero_grad()
        loss(x0, draws.t, draws.noise, draws.probes[0]).backward()

    return step


@pytest.mark.parametrize("name", ["mlp", "unet"])
@pytest.mark.parametrize(("order", "third"), STEPS)
def bench_step(benchmark, name, order, third):
    """Work and time in steps of first order, and time beside the peer, each compiled or not, as is faster."""
    step, peer, first = ours(name, order, third), plain(name, order), ours(name, 1, "auto")
    unit = flops(first)
    # nothing of what C++ does is counted
    counted = ours(name, order, third, backend="jets")
    cost, peers_cost = flops(counted) / unit, flops(peer) / unit
    runs = {"ours": step, "peer": peer, "first": first}
    if COMPILE:
        runs["peer, compiled"] = plain(name, order, compiled=True)
        runs["first, compiled"] = ours(name, 1, "auto", compiled=True)
        if third != "gradient":
            runs["ours, compiled"] = ours(name, order, third, compiled=True)
    for run in runs.values():
        run()
    others: dict[str, list[float]] = {other: [] for other in runs if other != "ours"}

    def run_others() -> None:
        for other, times in others.items():
            start = now()
            runs[other]()
            times.append(now() - start)

    benchmark.pedantic(step, setup=run_others, rounds=ROUNDS)
    benchmark.extra_info |= {
        "workload": name, "order": order, "third": third,
        "work in first-order steps": cost, "peer's work in first-order steps": peers_cost,
        **environment(FASTLIK),
    }  # fmt: skip
    if benchmark.stats:
        seconds = {"ours": benchmark.stats.stats.median}
        seconds |= {other: statistics.median(times) for other, times in others.items()}
        best = {
            who: min(value for run, value in seconds.items() if run.startswith(who))
            for who in ("ours", "peer", "first")
        }
        benchmark.extra_info |= {
            "seconds": seconds,
            "time in first-order steps": best["ours"] / best["first"],
            "peer's time / ours": best["peer"] / best["ours"],
        }
    assert cost <= LIMITS[order]


@pytest.mark.parametrize("third", ["laplacian", "mixed", "gradient"])
def bench_memory_of_third_order(benchmark, third):
    """Peak of all tensors made by a step on the U-Net, with the batch in the four parts that train takes."""
    first = peak_bytes(ours("unet", 1, "auto"))
    step = ours("unet", 3, third, parts=4)
    ratio, whole = peak_bytes(step) / first, peak_bytes(ours("unet", 3, third)) / first
    benchmark.extra_info |= {"third": third, "memory in first-order steps": ratio, "in one part": whole}
    benchmark.pedantic(step, rounds=1)
    assert ratio <= MEMORY


@pytest.mark.parametrize("name", ["mlp", "unet"])
def bench_the_peer_computes_the_same_loss(benchmark, name):
    """The peer's v'J is our J v where the Jacobian is symmetric, as that of a gradient field."""
    net, x0 = workload(name)
    x0 = x0[:4].double()
    linear = torch.nn.Linear(x0[0].numel(), x0[0].numel(), bias=False, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(linear.weight + linear.weight.T)

    class Symmetric(torch.nn.Module):
        def forward(self, x, time):
            value = linear(x.flatten(1))
            return (torch.tanh(value) @ linear.weight).reshape(x.shape)  # the gradient of sum log cosh

    model = fastlik.wrap(Symmetric(), fastlik.VP(), "noise")
    forms = choose_forms(3, SECOND, "gradient", x0[0].numel(), 1)
    torch.manual_seed(1)
    draws = draw(model, x0, "uniform", "importance", forms, 1)
    errors = high_order_errors(model, x0, draws.t, draws.noise, forms=forms, probes=draws.probes)
    expected = sum(error.mean() for error in errors)
    loss = ReverseOverReverse(model.net, 3)
    peer = benchmark.pedantic(loss, (x0, draws.t, draws.noise, draws.probes[0]))
    torch.testing.assert_close(peer, expected, rtol=1e-5, atol=0)
