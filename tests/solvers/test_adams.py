"""The Adams predictor-corrector: order, directions, independence of rows, failures, waits for the device."""

import pytest
import torch

from fastlik.ops.quadrature import node_weights
from fastlik.solvers.adams import integrate_adams
from fastlik.solvers.adaptive import Tolerance
from fastlik.solvers.status import Status
from fastlik.testing import HostReads


class Pendulum:
    """y'' = -sin y, with the integral of y'^2 riding along; rows may be given a place where they break."""

    def __init__(self, broken: torch.Tensor) -> None:
        self.broken = broken
        self.times = []

    def __call__(self, t, y, node):
        self.times.append(t.clone())
        slope = torch.stack((y[:, 1], -y[:, 0].sin()), 1)
        slope = torch.where((t > self.broken)[:, None], torch.nan, slope)
        return slope, y[:, 1:].double() ** 2

    def take(self, index):
        return Pendulum(self.broken[index])

    def sensitivity(self, t, y, dy):
        return None


START = torch.tensor([[1.0, 0.0], [0.1, 0.5], [2.0, -1.0]], dtype=torch.float64)
ENDS = torch.tensor([2.0, 3.0, 5.0], dtype=torch.float64)
WHOLE = torch.full((3,), torch.inf, dtype=torch.float64)


def solve(tolerance, order=4, y=START, t0=None, t1=ENDS, broken=WHOLE, **options):
    t0 = torch.zeros(len(y), dtype=torch.float64) if t0 is None else t0
    accuracy = Tolerance(0.0, tolerance, 30 * tolerance)
    return integrate_adams(Pendulum(broken), y, t0, t1, accuracy, order=order, first_step=0.01, **options)


def energy(y):
    return 0.5 * y[:, 1] ** 2 - y[:, 0].cos()


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_the_error_follows_the_tolerance(order):
    fine, _ = solve(1e-11, 5)
    counts = []
    for tolerance in (1e-3, 1e-4, 1e-5):
        end, _ = solve(tolerance, order)
        assert (end.status == Status.DONE).all()
        assert (end.y - fine.y).abs().max() < 100 * tolerance
        counts.append(end.nfe.double().mean().item())
    # the predictor's local error is h^(order + 1)
    growth = (counts[-1] / counts[0]) ** 0.5
    assert 1 < growth < 1.35 * 10 ** (1 / (order + 1))
    torch.testing.assert_close(energy(fine.y), energy(START), rtol=0, atol=1e-9)


def test_one_evaluation_a_step_and_a_backward_run_returns():
    end, nodes = solve(1e-9, 5)
    assert torch.equal(end.nfe, end.steps + end.rejected + 1) and torch.equal(nodes.count, end.steps + 1)
    back, _ = solve(1e-9, 5, y=end.y, t0=ENDS, t1=torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(back.y, START, rtol=0, atol=1e-7)


def test_integrals_over_the_nodes():
    """int y'^2 dt of a pendulum, by quadrature over the nodes and by another run's finer ones."""
    values = []
    for tolerance in (1e-5, 1e-10):
        _, nodes = solve(tolerance, 5)
        integrand = torch.where(node_weights(nodes.t, nodes.count) == 0, 0.0, nodes.integrand[..., 0])
        values.append((node_weights(nodes.t, nodes.count) * integrand).sum(1))
    torch.testing.assert_close(*values, rtol=0, atol=1e-4)


def test_never_outside_the_span_and_zero_spans():
    system = Pendulum(WHOLE)
    t1 = torch.tensor([2.0, 0.0, 5.0], dtype=torch.float64)
    end, _ = integrate_adams(
        system, START, torch.zeros(3).double(), t1, Tolerance(0.0, 1e-6), first_step=10.0
    )
    assert all((t >= 0).all() and (t <= 5.0).all() for t in system.times)
    assert torch.equal(end.t, t1) and torch.equal(end.y[1], START[1]) and end.status[1] == Status.DONE


@pytest.mark.parametrize("block", [1, 3, 8])
def test_rows_are_alone_and_nan_stops_one(block):
    broken = torch.tensor([torch.inf, 1.0, torch.inf], dtype=torch.float64)
    end, nodes = solve(1e-6, broken=broken, block=block)
    assert end.status.tolist() == [Status.DONE, Status.NON_FINITE, Status.DONE]
    assert 0.9 < end.t[1] <= 1.0
    for row in (0, 2):
        alone, theirs = solve(1e-6, y=START[row : row + 1], t1=ENDS[row : row + 1], broken=WHOLE[:1])
        assert torch.equal(alone.y[0], end.y[row]) and alone.nfe[0] == end.nfe[row]
        n = int(nodes.count[row])
        assert torch.equal(theirs.t[0, :n], nodes.t[row, :n])


def test_steps_are_bounded():
    end, _ = solve(1e-12, 1, max_steps=50)
    assert (end.status == Status.MAX_STEPS).all() and (end.nfe <= 51).all()


def test_float32_states_with_float64_times():
    end, _ = solve(1e-5, y=START.float())
    fine, _ = solve(1e-10, 5)
    assert end.y.dtype == torch.float32 and end.t.dtype == torch.float64
    torch.testing.assert_close(end.y.double(), fine.y, rtol=0, atol=1e-3)


@pytest.mark.parametrize("block", [1, 8])
def test_the_host_waits_once_a_block(block):
    class Plain(Pendulum):
        def __call__(self, t, y, node):
            return torch.stack((y[:, 1], -y[:, 0].sin()), 1), y[:, 1:].double() ** 2

        def take(self, index):
            return Plain(self.broken[index])

    with HostReads() as reads:
        end, _ = integrate_adams(
            Plain(WHOLE), START, torch.zeros(3).double(), ENDS, Tolerance(0.0, 1e-6, 1e-5),
            first_step=0.01, block=block,
        )  # fmt: skip
    attempts = int((end.steps + end.rejected).max())
    # one read a block, one for the number of nodes at the end
    assert reads.count <= -(-attempts // block) + 1
