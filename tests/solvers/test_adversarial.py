"""Right-hand sides that break solvers: the answer is right or flagged, and never endless."""

import math

import pytest
import torch

import fastlik
from fastlik.solvers.status import Status

ADAPTIVE = ["rk45", "tsit5"]


@pytest.mark.parametrize("method", ADAPTIVE)
def test_a_jump_in_time(method):
    """y' = 1 before |t| = 0.3 and -2 after; every row jumps at a time and in a direction of its own."""
    goal = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
    jump = torch.tensor([0.3, 0.7654321, 2.0], dtype=torch.float64)

    def f(t, y):
        return torch.where(t.abs() < y[:, 1].abs(), 1.0, -2.0)[:, None] * torch.tensor([1.0, 0.0])

    y0 = torch.stack((torch.zeros(3, dtype=torch.float64), jump), 1)
    solution = fastlik.odeint(f, y0, torch.stack((0 * goal, goal), 1), method=method, rtol=1e-8, atol=1e-8)
    truth = goal * torch.where(jump < 1, jump - 2 * (1 - jump), 1.0)
    # the error estimate of a pair sees as little as a hundredth of the error of a step across a jump
    torch.testing.assert_close(solution.y[-1, :, 0], truth, rtol=0, atol=3e-6)
    assert solution.nfe.max() < 400 and solution.nfe[2] < 50


@pytest.mark.parametrize("method", ADAPTIVE)
def test_a_sliding_mode_ends(method):
    """y' = -sign(y) has no solution past y = 0: bounded evaluations, whatever the flag says."""
    y0 = torch.tensor([[0.5], [5.0]], dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="row 0 failed.*maximum number of steps"):
        solution = fastlik.odeint(
            lambda t, y: -y.sign(), y0, [0.0, 1.0], method=method, rtol=1e-9, atol=1e-9, max_steps=300
        )
    assert solution.status.tolist() == [Status.MAX_STEPS, Status.DONE]
    assert solution.nfe[0] <= 2 + 6 * 300 and solution.nfe[1] < 60
    assert solution.y[-1, 1] == pytest.approx(4.0, abs=1e-9)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_stiff_rows(method):
    """Relaxation to cos t at rates 1 .. 1e7: right where it is affordable, flagged where it is not."""
    rate = torch.tensor([1.0, 1e2, 1e7], dtype=torch.float64)

    def f(t, y):
        slope = -y[:, 1] * (y[:, 0] - t.cos())
        return torch.stack((slope, torch.zeros_like(slope)), 1)

    y0 = torch.stack((torch.zeros_like(rate), rate), 1)
    with pytest.warns(RuntimeWarning, match="row 2 failed"):
        solution = fastlik.odeint(f, y0, [0.0, 3.0], method=method, rtol=1e-6, atol=1e-6, max_steps=400)
    assert solution.status.tolist() == [Status.DONE, Status.DONE, Status.MAX_STEPS]
    t = torch.tensor(3.0, dtype=torch.float64)
    steady = (rate**2 * t.cos() + rate * t.sin()) / (1 + rate**2)
    truth = steady - rate**2 / (1 + rate**2) * torch.exp(-rate * t)
    torch.testing.assert_close(solution.y[-1, :2, 0], truth[:2], rtol=0, atol=2e-5)


@pytest.mark.parametrize(("method", "dtype"), [("rk45", torch.float32), ("tsit5", torch.float64)])
def test_explosion(method, dtype):
    """y' = y^2 from y0 is infinite at t = 1 / y0."""
    y0 = torch.tensor([[1.0], [4.0], [0.5]], dtype=dtype)
    with pytest.warns(RuntimeWarning, match="rows 0, 1 failed"):
        solution = fastlik.odeint(lambda t, y: y * y, y0, [0.0, 1.5], method=method, rtol=1e-6, atol=1e-6)
    assert solution.status[2] == Status.DONE and solution.y[-1, :2].isnan().all()
    assert all(solution.status[i] in (Status.UNDERFLOW, Status.NON_FINITE) for i in (0, 1))
    torch.testing.assert_close(solution.stopped_at[:2], 1 / y0[:2, 0].double(), rtol=1e-4, atol=0)
    assert solution.y[-1, 2].item() == pytest.approx(2.0, rel=1e-4)
    assert solution.nfe.max() < 3000


@pytest.mark.parametrize("method", ADAPTIVE)
def test_an_output_that_explodes_at_small_times(method):
    """y' = y / t^2 down to t = 0: finite on the way, singular at the end, never evaluated beyond."""
    seen = []

    def f(t, y):
        seen.append(float(t.min()))
        return -y / t[:, None] ** 2

    y0 = torch.ones(2, 1, dtype=torch.float64)
    t = torch.tensor([[1.0, 0.0], [1.0, 0.1]], dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="row 0 failed"):
        solution = fastlik.odeint(f, y0, t, method=method, max_steps=500)
    assert min(seen) >= 0
    assert solution.status[0] != Status.DONE and solution.y[-1, 0].isnan().all()
    assert solution.y[-1, 1].item() == pytest.approx(math.exp(9), rel=1e-4)


def network(t, y):
    """A random tanh network of fixed weights, in y's precision."""
    generator = torch.Generator().manual_seed(0)
    w = (torch.randn(16, 64, generator=generator) / 4).to(y.dtype)
    v = (torch.randn(64, 16, generator=generator) / 8).to(y.dtype)
    return torch.tanh(y @ w + t.to(y.dtype)[:, None]) @ v


def pendulums(t, y):
    place, speed = y.chunk(2, 1)
    return torch.cat((speed, -torch.sin(place) * (1 + t.cos().to(y.dtype)[:, None])), 1)


@pytest.mark.parametrize("f", [network, pendulums])
@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize(
    ("state", "rounded", "tolerance"),
    # twice the unit roundoff of a bfloat16, 2^-8, and more of that of a float32 in a float64 state
    [(torch.float32, torch.bfloat16, 4e-3), (torch.float64, torch.float32, 1e-6)],
)
def test_rounded_slopes_cost_at_most_twice(f, method, state, rounded, tolerance):
    y0 = torch.randn(16, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(state)
    options = dict(method=method, rtol=tolerance, atol=tolerance)
    smooth = fastlik.odeint(f, y0, [0.0, 5.0], **options)
    rough = fastlik.odeint(lambda t, y: f(t, y).to(rounded), y0, [0.0, 5.0], **options)
    assert rough.converged.all() and rough.y.dtype == state
    assert (rough.nfe <= 2 * smooth.nfe).all()
    torch.testing.assert_close(rough.y[-1], smooth.y[-1], rtol=0, atol=60 * tolerance)


def test_a_float32_state_at_its_least_tolerance():
    """Just above what odeint refuses, the rounding of the state does not multiply the steps."""
    y0 = torch.randn(16, 16, generator=torch.Generator().manual_seed(2))
    single = fastlik.odeint(pendulums, y0, [0.0, 5.0], rtol=1e-6, atol=1e-6)
    double = fastlik.odeint(pendulums, y0.double(), [0.0, 5.0], rtol=1e-6, atol=1e-6)
    assert single.converged.all() and (single.nfe <= 1.25 * double.nfe).all()


@pytest.mark.parametrize("method", ADAPTIVE)
def test_a_time_below_the_resolution_of_time(method):
    """A span of a few roundings of t has no room for steps, and is taken in one."""
    start = torch.tensor(1e6, dtype=torch.float64)
    goal = start + 3 * 1.2e-10
    seen = []

    def f(t, y):
        seen.append(t)
        return -y

    solution = fastlik.odeint(f, torch.ones(1, 1), torch.stack((start, goal)), method=method)
    assert solution.converged.all() and solution.steps[0] == 1
    assert torch.cat(seen).min() >= start and torch.cat(seen).max() <= goal


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
def test_the_unit_of_time_does_not_matter(unit):
    y0 = torch.tensor([[1.0, 0.5], [0.0, 0.0]], dtype=torch.float64)

    def f(t, y):
        return (torch.cos(t / unit)[:, None] - y) / unit

    solution = fastlik.odeint(f, y0, [0.0, 5 * unit], rtol=1e-7, atol=1e-7)
    t = 5.0
    truth = (math.cos(t) + math.sin(t)) / 2 + (y0 - 0.5) * math.exp(-t)
    torch.testing.assert_close(solution.y[-1], truth, rtol=0, atol=1e-6)
    assert solution.nfe.max() < 250


@pytest.mark.parametrize("method", ["rk45", "tsit5", "rk4", "heun", "euler"])
@pytest.mark.parametrize("dense", [False, True])
def test_never_outside_the_span_by_a_rounding(method, dense):
    """a + (b - a) is past b for one random span in six: stages stay inside to the last bit."""
    ends = torch.randn(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    low, high = ends.min(1).values, ends.max(1).values

    def f(t, y):
        rows = y[:, 0].long()
        assert (t >= low[rows]).all() and (t <= high[rows]).all()
        return torch.zeros_like(y)

    y0 = torch.arange(200, dtype=torch.float64)[:, None]
    assert fastlik.odeint(f, y0, ends, method=method, dense=dense).converged.all()
