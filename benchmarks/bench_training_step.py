"""Gradients of a training step on an MLP, beside the floor of its matrix products.

    FASTLIK_COMPILE=1 pytest benchmarks/bench_training_step.py --benchmark-only

The floor is the work of the products that a step cannot do without (forward, and twice that backward, for the
value and each tangent) at the rate of ``torch.mm`` of the layers' own shape.  Times are CPU time of one
thread, medians of rounds in which step and product alternate.
"""

from __future__ import annotations

import os
import statistics

import pytest
import torch
from torch import nn

import fastlik
from fastlik.objectives import choose_forms, draw
from fastlik.training.network import score_model
from fastlik.training.objective import Objective

from .measure import environment, now
from .methods import FASTLIK

DIM, DEPTH, FEATURES, ROWS, ROUNDS = 2, 4, 32, 2048, 30
WAYS = ("kernels", "jets", "compiled")
torch._dynamo.config.recompile_limit = 64


@pytest.mark.parametrize(("order", "way"), [(1, "jets"), (1, "compiled"), *((2, way) for way in WAYS)])
@pytest.mark.parametrize("width", [64, 128, 256])
def bench_gradients(benchmark, width, order, way):
    """By the kernels, by jets, and by jets under torch.compile."""
    if way == "compiled" and not os.environ.get("FASTLIK_COMPILE"):
        pytest.skip("a minute of compilation: FASTLIK_COMPILE=1")
    torch.manual_seed(0)
    net = fastlik.nn.MLP(DIM, width=width, depth=DEPTH, time_features=FEATURES)
    nn.init.normal_(net.out.weight, std=0.02)
    forms = choose_forms(order, "full", "auto", DIM, 1)
    backend = "native" if way == "kernels" else "auto"
    objective = Objective(score_model(net, fastlik.VP(), "noise"), forms, (0.5, 0.1), backend)
    if way == "compiled":
        objective.compile()
    x0 = torch.randn(ROWS, DIM)
    draws = draw(objective.model, x0, "likelihood", "importance", forms, 1)
    a, b = torch.randn(ROWS, width), torch.randn(width, width)
    out = torch.empty(ROWS, width)
    products: list[float] = []

    def product() -> None:
        start = now()
        for _ in range(8):
            torch.mm(a, b, out=out)
        products.append((now() - start) / 8)

    def step() -> None:
        net.zero_grad()
        (objective(x0, draws, {})[0] / ROWS).backward()

    benchmark.pedantic(step, setup=product, rounds=ROUNDS, warmup_rounds=5)
    tangents = 0 if order == 1 else DIM
    layers = (DEPTH - 1) * width**2 + 2 * DIM * width
    work = 3 * 2 * ROWS * ((1 + tangents) * layers + FEATURES * DEPTH * width)
    rate = 2 * ROWS * width**2 / statistics.median(products)
    benchmark.extra_info |= {
        "width": width,
        "order": order,
        "way": way,
        "floor_ms": 1e3 * work / rate,
        "sgemm_gflops": rate / 1e9,
        **environment(FASTLIK),
    }
    if benchmark.stats:
        benchmark.extra_info["time / floor"] = benchmark.stats.stats.median / (work / rate)
    assert all(torch.isfinite(parameter.grad).all() for parameter in net.parameters())
