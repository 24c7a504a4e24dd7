"""One benchmark of one method: its accuracy asserted, its cost counted, its time beside fastlik's."""

from __future__ import annotations

import operator
import platform
import statistics
import time
from functools import cache
from importlib.metadata import version
from typing import NamedTuple

import torch

from .cost import Cost, count
from .methods import Method
from .workloads import Workload

TARGET = 1e-3  # nats per dimension
FEWEST_ROUNDS, MOST_ROUNDS = 4, 16
SECONDS_OF_ROUNDS = 2.0
# the exact trace of an image costs 64 backward passes an evaluation
JUDGED_ROWS = 8


def now() -> float:
    """Seconds: of one thread its CPU time, which a busy machine disturbs least; of several the wall clock."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


class Errors(NamedTuple):
    """|-log p - answer| in nats per dimension: the mean over the rows and the worst row."""

    mean: float
    worst: float


@cache
def errors(method: Method, workload: Workload, setting: float) -> Errors:
    """Discretisation error: the answer is that of the same estimator, with the same probe if frozen.

    Probes drawn anew have no such answer; there the exact trace is integrated with the same setting.
    """
    if workload.hutchinson and method.name == "fastlik":
        workload = workload.with_exact_trace(JUDGED_ROWS)
    nats = method.likelihood(workload)(setting)
    gap = (nats - method.answer(workload)).abs() / workload.dimensions
    return Errors(gap.mean().item(), gap.max().item())


@cache
def loosest(method: Method, workload: Workload) -> float:
    """The loosest setting of the method's ladder whose mean error meets TARGET."""
    for setting in method.ladder:
        if errors(method, workload, setting).mean <= TARGET:
            return setting
    raise AssertionError(f"{method} misses {TARGET} nats/dim on {workload.name} at every setting")


def choose(method: Method, workload: Workload, setting: str) -> float:
    return method.practice if setting == "as practised" else loosest(method, workload)


def measure(benchmark, method: Method, ours: Method, workload: Workload, setting: str) -> None:
    """Time ``method`` in rounds that alternate with ``ours``, both "as practised" or at "equal error"."""
    run, value = method.likelihood(workload), choose(method, workload, setting)
    baseline, its_value = ours.likelihood(workload), choose(ours, workload, setting)
    error = errors(method, workload, value)
    counted = method.likelihood(workload, counted=True)
    cost: Cost = count(workload, lambda: counted(value))
    start = now()
    run(value)
    rounds = int(SECONDS_OF_ROUNDS / (now() - start))
    rounds = max(FEWEST_ROUNDS, min(rounds, MOST_ROUNDS))
    before: list[float] = []

    def run_ours() -> None:
        if method is not ours:
            start = now()
            baseline(its_value)
            before.append(now() - start)

    nats = benchmark.pedantic(run, (value,), setup=run_ours, rounds=rounds)
    exact = len(workload.exact)
    total = (nats[:exact] - workload.exact).abs().mean().item() / workload.dimensions
    benchmark.extra_info |= {
        "workload": workload.name,
        "method": method.name,
        "setting": setting,
        method.unit: value,
        "error": error.mean,
        "worst_error": error.worst,
        "error_with_probe_noise": total,
        "evaluations": cost.evaluations,
        "forward_units": cost.forward_units,
        **environment(method),
    }
    if benchmark.stats:  # absent with --benchmark-disable
        seconds = benchmark.stats.stats.data
        own = seconds if method is ours else before
        benchmark.extra_info["ratio"] = statistics.median(map(operator.truediv, seconds, own))
    if setting == "equal error" or method is ours:
        assert error.mean <= TARGET, f"{method} at {method.unit} {value:g}: {error.mean:.1e} nats/dim"


def environment(method: Method) -> dict[str, object]:
    """Where and with what a figure was measured; the commit is in pytest-benchmark's own record."""
    packages = dict.fromkeys(("fastlik", "torch", method.package))
    return {
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }
