"""Gradients of a training step on an MLP, beside the floor of its matrix products.

    FASTLIK_COMPILE=1 pytest benchmarks/bench_training_step.py --benchmark-only

The floor is the work of the products that a step cannot do without (forward, and twice that backward, for the
value and each derivative) at the rate of ``torch.mm`` of the layers' own shape.  Times are CPU time of one
thread, medians of rounds in which step and product alternate.  Gradients are compared with those of nested
float64 autograd; what the peer computes is compared with ours in ``bench_high_order.py``.
"""

from __future__ import annotations

import copy
import os
import statistics

import pytest
import torch
from torch import nn

import fastlik
from fastlik.objectives import Forms, choose_forms, draw
from fastlik.objectives.loss import Draws
from fastlik.training.network import score_model
from fastlik.training.objective import Objective

from .measure import environment, now
from .methods import FASTLIK
from .peers.reverse_hdsm import ReverseOverReverse

DIM, DEPTH, FEATURES, ROWS, ROUNDS = 2, 4, 32, 2048, 30
# order, forms of second and third order, and how many values and derivatives a step cannot do without
STEPS = {
    "first": (1, "auto", "auto", 1),
    "second": (2, "full", "auto", 1 + DIM),
    "third": (3, "full", "vector-laplacian", 2 + DIM),
    # the peer's loss: value and tangent, and both again by the reverse pass inside the loss
    "third, gradient": (3, "product+quadratic", "gradient", 4),
}
WAYS = {"first": ("jets", "compiled"), "third, gradient": ("kernels", "jets", "peer")}
CASES = [(step, way) for step in STEPS for way in WAYS.get(step, ("kernels", "jets", "compiled"))]
# of float32 gradients, relative to all of them
ACCURACY = 1e-4
torch._dynamo.config.recompile_limit = 64


@pytest.mark.parametrize(("kind", "way"), CASES)
@pytest.mark.parametrize("width", [64, 128, 256])
def bench_gradients(benchmark, width, kind, way):
    """By the kernels, by jets, by jets under torch.compile, and by the peer in plain PyTorch."""
    if way == "compiled" and not os.environ.get("FASTLIK_COMPILE"):
        pytest.skip("a minute of compilation: FASTLIK_COMPILE=1")
    torch.manual_seed(0)
    net = fastlik.nn.MLP(DIM, width=width, depth=DEPTH, time_features=FEATURES)
    nn.init.normal_(net.out.weight, std=0.02)
    order, second, third, lines = STEPS[kind]
    forms = choose_forms(order, second, third, DIM, 1)
    objective = objective_of(net, forms, "native" if way == "kernels" else "auto")
    if way == "compiled":
        objective.compile()
    x0 = torch.randn(ROWS, DIM)
    draws = draw(objective.model, x0, "likelihood", "importance", forms, 1)
    peer = ReverseOverReverse(net, order)
    a, b = torch.randn(ROWS, width), torch.randn(width, width)
    out = torch.empty(ROWS, width)
    products: list[float] = []

    def product() -> None:
        start = now()
        for _ in range(8):
            torch.mm(a, b, out=out)
        products.append((now() - start) / 8)

    def loss() -> torch.Tensor:
        if way == "peer":
            return peer(x0, draws.t, draws.noise, draws.probes[0])
        return objective(x0, draws, {})[0] / ROWS

    def step() -> None:
        net.zero_grad()
        loss().backward()

    benchmark.pedantic(step, setup=product, rounds=ROUNDS, warmup_rounds=5)
    layers = (DEPTH - 1) * width**2 + 2 * DIM * width
    work = 3 * 2 * ROWS * (lines * layers + FEATURES * DEPTH * width)
    rate = 2 * ROWS * width**2 / statistics.median(products)
    benchmark.extra_info |= {
        "width": width,
        "order": order,
        "third": forms.third,
        "way": way,
        "floor_ms": 1e3 * work / rate,
        "sgemm_gflops": rate / 1e9,
        **environment(FASTLIK),
    }
    if benchmark.stats:
        benchmark.extra_info["time / floor"] = benchmark.stats.stats.median / (work / rate)
    assert all(torch.isfinite(parameter.grad).all() for parameter in net.parameters())
    if way != "peer":
        error = gradient_error(net, forms, x0, draws)
        benchmark.extra_info["error"] = error
        assert error < ACCURACY


def objective_of(net: nn.Module, forms: Forms, backend: str) -> Objective:
    return Objective(score_model(net, fastlik.VP(), "noise"), forms, (0.5, 0.1), backend)


def gradient_error(net: nn.Module, forms: Forms, x0: torch.Tensor, draws: Draws) -> float:
    """Of the gradients that the parameters have, relative to those of plain autograd in float64."""
    exact = copy.deepcopy(net).double()
    exact.zero_grad()
    objective = objective_of(exact, forms, "torch")
    doubled = Draws(*(None if each is None else each.double() for each in draws))
    (objective(x0.double(), doubled, {})[0] / len(x0)).backward()
    ours, truth = (torch.cat([p.grad.flatten() for p in each.parameters()]) for each in (net, exact))
    return float((ours - truth).norm() / truth.norm())
