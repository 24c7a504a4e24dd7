"""The fused Runge-Kutta step beside its PyTorch reference: time, and bandwidth beside a plain copy's.

The bytes are those that have to be moved: every tensor that takes part, read or written once.
"""

from __future__ import annotations

import statistics

import pytest
import torch

from benchmarks.measure import now
from fastlik.ops.rk_step import Controller, advance, combine
from fastlik.solvers.tableau import RK45

SHAPES = {"512 x 2": (512, 2), "32 x 64": (32, 64), "256 x 3072": (256, 3072)}
STAGES = RK45.stages
ROUNDS = 30
ROUNDING = 1e-5

pytestmark = [
    pytest.mark.parametrize("backend", ("native", "torch")),
    pytest.mark.parametrize("shape", SHAPES),
]


@pytest.fixture
def step(shape):
    """A step of every row that the controller accepts."""
    generator = torch.Generator().manual_seed(0)
    rows, size = SHAPES[shape]

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def clock(value: float) -> torch.Tensor:
        return torch.full((rows,), value, dtype=torch.float64)

    return {
        "y": normal(rows, size),
        "k": 1e-3 * normal(STAGES, rows, size),
        "h": clock(0.1),
        "error_prev": clock(1e-4),
        "rejected": torch.zeros(rows, dtype=torch.bool),
        "t": clock(0.0),
        "t_end": clock(10.0),
        "status": torch.zeros(rows, dtype=torch.int32),
        "defect": clock(0.0),
        "q": torch.zeros(rows, 1, dtype=torch.float64),
        "kq": torch.zeros(STAGES, rows, 1, dtype=torch.float64),
        "sensitivity": normal(rows, size),
    }


def bench_combine(benchmark, step, shape, backend):
    """The state of the last stage."""
    weights = RK45.a[-1]
    tensors = {name: step[name] for name in ("y", "k", "h")}

    def run(backend: str = backend) -> dict[str, torch.Tensor]:
        return {"out": combine(**tensors, weights=weights, backend=backend)}

    passes = 2 + sum(weight != 0 for weight in weights)
    _measure(benchmark, run, tensors, shape, backend, "combine", passes)


def bench_advance(benchmark, step, shape, backend):
    """The end of a step: new state, error, verdict, next step size."""
    settings = {"b": RK45.b, "e": RK45.e, "rtol": 1e-3, "atol": 1e-3, "q_atol": 1e-3}
    controller = Controller(order=RK45.order)

    def run(backend: str = backend) -> dict[str, torch.Tensor]:
        outcome = advance(**step, **settings, controller=controller, backend=backend)
        return step | outcome._asdict()

    used = sum(b != 0 or e != 0 for b, e in zip(RK45.b, RK45.e, strict=True))
    # y and the sensitivity are read, y and the first stage of the next step are written
    _measure(benchmark, run, step, shape, backend, "advance", used + 4)


def _measure(benchmark, run, tensors, shape, backend, op, passes):
    start = {name: value.clone() for name, value in tensors.items()}

    def restore() -> None:
        for name, value in start.items():
            tensors[name].copy_(value)

    answers = []
    for name in ("torch", backend):
        restore()
        answers.append({key: value.clone() for key, value in run(name).items()})
    difference = max(
        (answer.double() - answers[0][name].double()).abs().max().item()
        for name, answer in answers[1].items()
    )
    size = passes * tensors["y"].numel() * tensors["y"].element_size()
    source = torch.ones(size // 8)  # float32, read and written: as many bytes as the step moves
    target = torch.empty_like(source)
    copies: list[float] = []

    def copy_and_restore() -> None:
        begin = now()
        target.copy_(source)
        copies.append(now() - begin)
        restore()

    benchmark.pedantic(run, setup=copy_and_restore, rounds=ROUNDS, warmup_rounds=3)
    if benchmark.stats:
        benchmark.extra_info["gb_per_s"] = size / benchmark.stats.stats.median / 1e9
        benchmark.extra_info["copy_gb_per_s"] = size / statistics.median(copies) / 1e9
    benchmark.extra_info |= {
        "op": op,
        "shape": shape,
        "backend": backend,
        "bytes": size,
        "max_difference": difference,
        "threads": torch.get_num_threads(),
    }
    assert difference <= ROUNDING
