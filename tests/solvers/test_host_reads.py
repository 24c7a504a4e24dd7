"""How often the host has to wait for the device, counted on the CPU."""

import pytest
import torch
import torchdiffeq

import fastlik
from fastlik.solvers.adaptive import Tolerance, integrate
from fastlik.solvers.dense import Path, Samples
from fastlik.solvers.grid import integrate_grid
from fastlik.solvers.odeint import _Function
from fastlik.solvers.tableau import RK4, RK45
from fastlik.testing import HostReads


def vanderpol(t, y):
    return torch.stack((y[:, 1], (1 - y[:, 0] ** 2) * y[:, 1] - y[:, 0]), 1)


START = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.1, 0.0], [3.0, -1.0]], dtype=torch.float64)
ENDS = torch.tensor([1.0, 2.0, 4.0, 5.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: bool(x.any()), "_local_scalar_dense"),
        (lambda x: x.tolist(), "tolist"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x[x > 1], "index"),
        (lambda x: torch.equal(x, x), "equal"),
    ],
)
def test_reads_are_counted(read, name):
    with HostReads() as reads:
        read(torch.arange(4))
    assert reads.names == [name]


def test_what_stays_on_the_device_is_not_counted():
    with HostReads() as reads:
        x = torch.arange(4)
        index = x[1:] * 1
        x[index] += torch.where(x > 1, x, 0)[index].masked_fill(index > 2, 7)
    assert reads.count == 0


def recorders():
    times = torch.linspace(0, 1, 50, dtype=torch.float64) * ENDS[:, None]
    return {
        "nothing": lambda: None,
        "samples": lambda: Samples(times, START),
        "path": lambda: Path(torch.zeros_like(ENDS), ENDS, START, RK45.degree),
    }


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("recorded", recorders())
def test_adaptive_steps_read_once_per_attempt(recorded, backend):
    recorder = recorders()[recorded]()
    with HostReads() as reads:
        end = integrate(
            _Function(vanderpol),
            START,
            torch.zeros_like(ENDS),
            ENDS,
            RK45,
            Tolerance(1e-6, 1e-6),
            recorder=recorder,
            backend=backend,
        )
    attempts = (end.steps + end.rejected).max()
    assert attempts > 40 and (end.rejected > 0).any() and len(end.steps.unique()) == 3
    assert reads.count <= attempts + 2  # before the first step: rows of no span, and of no finite slope


def test_grids_read_nothing():
    grid = torch.linspace(0, 1, 20, dtype=torch.float64)
    with HostReads() as reads:
        integrate_grid(_Function(vanderpol), START, grid, RK4)
    assert reads.count == 0


def test_many_times_cost_no_reads_of_their_own():
    """torchdiffeq reads 19 numbers a step."""
    times = torch.linspace(0, 5, 500, dtype=torch.float64)
    with HostReads() as ours:
        solution = fastlik.odeint(vanderpol, START, times, rtol=1e-6, atol=1e-6)
    attempts = (solution.steps + solution.rejected).max()
    assert ours.count <= attempts + 12  # checks of the arguments, the warning
    with HostReads() as theirs:
        torchdiffeq.odeint(vanderpol, START, times, rtol=1e-6, atol=1e-6)
    assert theirs.count > 5 * ours.count
