"""Exact-trace likelihood of 512 points in 2-D: a trained MLP, and the closed-form score it learned."""

from __future__ import annotations

import pytest

from benchmarks import workloads
from benchmarks.measure import measure
from benchmarks.methods import BETTER_CLOCK, COMPILED, FASTLIK, SCORE_SDE, TORCHDIFFEQ, TORCHODE

PEERS = (TORCHDIFFEQ, TORCHODE, SCORE_SDE, COMPILED)


@pytest.fixture(scope="module", params=[workloads.ring, workloads.mlp], ids=lambda make: make.__name__)
def workload(request):
    return request.param()


@pytest.mark.parametrize("method", (FASTLIK, *PEERS), ids=str)
def bench_as_practised(benchmark, workload, method):
    measure(benchmark, method, FASTLIK, workload, "as practised")


@pytest.mark.parametrize("method", (FASTLIK, *PEERS, *BETTER_CLOCK), ids=str)
def bench_equal_error(benchmark, workload, method):
    measure(benchmark, method, FASTLIK, workload, "equal error")
