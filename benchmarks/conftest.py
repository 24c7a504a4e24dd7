"""One thread, and a clock of its CPU time, unless ``--threads`` asks for more: ``benchmarks.measure.now``."""

from __future__ import annotations

import pytest
import torch

from benchmarks.measure import now


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--threads", type=int, default=1, help="of PyTorch and fastlik; default 1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=now))


@pytest.fixture(autouse=True, scope="session")
def threads(request: pytest.FixtureRequest) -> None:
    torch.set_num_threads(request.config.getoption("--threads"))
