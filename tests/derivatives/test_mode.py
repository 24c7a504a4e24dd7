"""Which mode the divergence takes."""

import pytest
import torch
from torch import nn

import fastlik
from fastlik.derivatives import mode


@pytest.fixture(autouse=True)
def forget():
    mode._seconds.clear()


def ticking(monkeypatch, seconds):
    """A clock on which run("jvp") and run("vjp") take what ``seconds`` says; returns run and its calls."""
    now, calls = [0.0], []

    def run(name):
        calls.append(name)
        now[0] += seconds[name]
        return name

    monkeypatch.setattr(mode, "_now", lambda device: now[0])
    return run, calls


@pytest.mark.parametrize("fast", ["jvp", "vjp"])
def test_the_faster_after_two_runs_each(monkeypatch, fast):
    run, calls = ticking(monkeypatch, {"jvp": 2.0, "vjp": 2.0, fast: 1.0})
    net = nn.Linear(2, 2)
    for _ in range(7):
        mode.faster(run, lambda x: net(x), torch.zeros(3, 2), 1)
    assert calls == ["jvp"] * 2 + ["vjp"] * 2 + [fast] * 3


def test_another_module_shape_or_number_of_vectors_is_another_question(monkeypatch):
    run, calls = ticking(monkeypatch, {"jvp": 1.0, "vjp": 2.0})
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)

    def ask(net, rows, count):
        calls.clear()
        mode.faster(run, lambda x: net(x), torch.zeros(rows, 2), count)
        return len(mode._seconds)

    assert [ask(first, 3, 1), ask(first, 3, 1), ask(second, 3, 1), ask(first, 4, 1), ask(first, 3, 2)] == [
        1, 1, 2, 3, 4,
    ]  # fmt: skip


def test_reverse_mode_is_given_up_where_memory_is_short(monkeypatch):
    monkeypatch.setattr(mode, "free_memory", lambda device: 4 * 3 * 8 * 2)  # a quarter: six numbers
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double().requires_grad_(False)
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    traces = [fastlik.divergence(net, x)[1] for _ in range(6)]
    (times,) = mode._seconds.values()
    assert times["vjp"] == [float("inf")] * 2
    for trace in traces[1:]:
        assert torch.equal(trace, traces[0])


@pytest.mark.parametrize("method", ["exact", "hutchinson"])
def test_every_call_has_the_same_numbers(method):
    net = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 4)).double().requires_grad_(False)
    x = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    options = dict(method=method, probes=3, seed=2)
    values, traces = zip(*[fastlik.divergence(net, x, **options) for _ in range(6)], strict=True)
    (times,) = mode._seconds.values()
    assert all(len(runs) == 2 for runs in times.values())  # both modes were among them
    for value, trace in zip(values, traces, strict=True):
        torch.testing.assert_close(value, values[0], rtol=1e-12, atol=0)
        torch.testing.assert_close(trace, traces[0], rtol=1e-12, atol=0)


def test_what_cannot_be_told_apart_is_differentiated_forward(monkeypatch):
    class Callable:
        def __call__(self, x):
            return x

    run, calls = ticking(monkeypatch, {"jvp": 3.0, "vjp": 1.0})
    for _ in range(5):
        mode.faster(run, Callable(), torch.zeros(1, 2), 1)
    assert calls == ["jvp"] * 5
