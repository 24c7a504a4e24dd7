"""Training steps of second and third order: work in steps of first order, and time beside plain PyTorch.

    pytest benchmarks/bench_high_order.py --benchmark-only
    FASTLIK_COMPILE=1 pytest benchmarks/bench_high_order.py --benchmark-only    # minutes of compilation
"""

from __future__ import annotations

import operator
import os
import statistics
import time
from functools import cache

import pytest
import torch

import fastlik
from fastlik.objectives import choose_forms, draw, high_order_errors
from fastlik.training.network import score_model
from fastlik.training.objective import Objective

from .cost import flops
from .measure import environment
from .methods import FASTLIK
from .peers.reverse_hdsm import ReverseOverReverse

# the bars: work of a step in steps of first order
LIMITS = {2: 2.1, 3: 4.2}
SECOND = "product+quadratic"
STEPS = [(2, "auto"), (3, "laplacian"), (3, "mixed"), (3, "gradient")]
COMPILE = bool(os.environ.get("FASTLIK_COMPILE"))


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


def ours(name: str, order: int, third: str, compiled: bool = False):
    """A training step's gradients by fastlik: the objective of a run, backward."""
    net, x0 = workload(name)
    model = score_model(net, fastlik.VP(), "noise")
    forms = choose_forms(order, SECOND, third, x0[0].numel(), 1)
    objective = Objective(model, forms, (1.0, 1.0))
    if compiled:
        objective.compile()
    torch.manual_seed(1)
    draws = draw(model, x0, "uniform", "importance", forms, 1)

    def step() -> None:
        net.zero_grad()
        (objective(x0, draws, {})[0] / len(x0)).backward()

    return step


def plain(name: str, order: int):
    """The same in plain PyTorch."""
    net, x0 = workload(name)
    model = score_model(net, fastlik.VP(), "noise")
    loss = ReverseOverReverse(net, order)
    torch.manual_seed(1)
    draws = draw(model, x0, "uniform", "importance", choose_forms(2, SECOND, "auto", x0[0].numel(), 1), 1)

    def step() -> None:
        net.zero_grad()
        loss(x0, draws.t, draws.noise, draws.probes[0]).backward()

    return step


@pytest.mark.parametrize("name", ["mlp", "unet"])
@pytest.mark.parametrize(("order", "third"), STEPS)
def bench_step(benchmark, name, order, third):
    step, peer, first = ours(name, order, third), plain(name, order), ours(name, 1, "auto")
    unit = flops(first)
    cost, peers_cost = flops(step) / unit, flops(peer) / unit
    compiled = ours(name, order, third, compiled=True) if COMPILE and third != "gradient" else None
    runs = {"ours": compiled or step, "peer": peer, "first": first}
    times: dict[str, list[float]] = {other: [] for other in runs}
    for run in runs.values():
        run()

    def others() -> None:
        for other in ("peer", "first"):
            start = time.process_time()
            runs[other]()
            times[other].append(time.process_time() - start)

    benchmark.pedantic(runs["ours"], setup=others, rounds=15)
    benchmark.extra_info |= {
        "workload": name, "order": order, "third": third, "compiled": compiled is not None,
        "work_in_first_order_steps": cost, "peer_work_in_first_order_steps": peers_cost,
        **environment(FASTLIK),
    }  # fmt: skip
    if benchmark.stats:
        seconds = benchmark.stats.stats.data
        for other in ("peer", "first"):
            ratio = statistics.median(map(operator.truediv, times[other], seconds))
            benchmark.extra_info[f"{other}_time_over_ours"] = ratio
    assert cost <= LIMITS[order]


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
