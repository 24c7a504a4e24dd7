"""One-probe likelihood of 16 images of 8 x 8 digits under a small trained U-Net."""

from __future__ import annotations

import pytest

from benchmarks import workloads
from benchmarks.measure import measure
from benchmarks.methods import (
    BETTER_CLOCK,
    FASTLIK,
    FASTLIK_FROZEN,
    RK4,
    SCORE_SDE,
    TORCHDIFFEQ,
    TORCHODE,
)

# not compiled: minutes of C++ compilation for no gain, convolutions take the time (see README.md)
PEERS = (TORCHDIFFEQ, TORCHODE, SCORE_SDE, RK4)


@pytest.fixture(scope="module")
def workload():
    return workloads.unet()


@pytest.mark.parametrize("method", (FASTLIK, *PEERS), ids=str)
def bench_as_practised(benchmark, workload, method):
    """fastlik with its default, a new probe for every step; every peer keeps one probe."""
    measure(benchmark, method, FASTLIK, workload, "as practised")


@pytest.mark.parametrize("method", (FASTLIK_FROZEN, *PEERS, *BETTER_CLOCK), ids=str)
def bench_equal_error(benchmark, workload, method):
    """All with the same frozen probe: the same number, computed by each."""
    measure(benchmark, method, FASTLIK_FROZEN, workload, "equal error")
