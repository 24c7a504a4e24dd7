"""Tests on a simulated accelerator, in a process of their own: ../test_simulated.py runs them."""

import os

import pytest

INSTALLED = bool(os.environ.get("FASTLIK_SIMULATED"))
collect_ignore_glob = [] if INSTALLED else ["test_*.py"]

if INSTALLED:
    from tests.simulated import accelerator

    accelerator.install()

    @pytest.fixture
    def graphs(monkeypatch):
        """Counts the replays of every captured step."""
        from fastlik.solvers import graph

        replays = []

        def capture(step):
            replay = accelerator.capture(step)
            replays.append(0)
            number = len(replays) - 1

            def counted():
                replays[number] += 1
                return replay()

            return counted

        monkeypatch.setitem(graph.CAPTURES, accelerator.NAME, capture)
        return replays
