"""One thread, and a clock of its CPU time: figures that a busy machine disturbs least."""

from __future__ import annotations

import time

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=time.process_time))


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)
