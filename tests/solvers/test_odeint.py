"""odeint: order of convergence, tolerance, independence of rows, failures that stay with their row."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import fastlik
from fastlik.solvers.grid import integrate_grid
from fastlik.solvers.odeint import _Function
from fastlik.solvers.status import Status
from fastlik.solvers.tableau import TABLEAUS

ADAPTIVE = [name for name, tableau in TABLEAUS.items() if tableau.adaptive]


def pendulum(t, y):
    return torch.stack((y[:, 1], -torch.sin(y[:, 0]) * (1 + t.cos())), 1)


START = torch.tensor([[1.0, 2.0], [0.3, 0.1], [-2.0, 0.5]], dtype=torch.float64)


@pytest.fixture(scope="module")
def exact():
    def f(t, y):
        return [y[1], -math.sin(y[0]) * (1 + math.cos(t))]

    ends = [solve_ivp(f, (0, 3), y, method="DOP853", rtol=1e-13, atol=1e-14).y[:, -1] for y in START]
    return torch.tensor(np.array(ends))


@pytest.mark.parametrize("name", TABLEAUS)
def test_tableaus_are_consistent(name):
    tableau = TABLEAUS[name]
    assert sum(tableau.b) == pytest.approx(1, abs=1e-14)
    for row, c in zip(tableau.a, tableau.c, strict=True):
        assert sum(row) == pytest.approx(c, abs=1e-14)
    if tableau.adaptive:
        assert sum(tableau.e) == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize("name", TABLEAUS)
def test_order_of_convergence(name, exact):
    tableau = TABLEAUS[name]
    errors = []
    for steps in (16, 32, 64):
        grid = torch.linspace(0, 3, steps + 1, dtype=torch.float64)
        end = integrate_grid(_Function(pendulum), START, grid, tableau)
        errors.append(float((end.y - exact).abs().max()))
    observed = math.log2(errors[1] / errors[2])
    assert tableau.order - 0.4 < observed < tableau.order + 1.9


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("rtol", [1e-4, 1e-7, 1e-10])
def test_tolerance_is_kept(name, rtol, exact):
    solution = fastlik.odeint(pendulum, START, torch.tensor([0.0, 3.0]), method=name, rtol=rtol, atol=rtol)
    assert solution.converged.all()
    assert (solution.y[-1] - exact).abs().max() < 50 * rtol


@pytest.mark.parametrize("name", ADAPTIVE)
def test_backwards_is_the_inverse(name):
    there = fastlik.odeint(pendulum, START, torch.tensor([0.0, 3.0]), method=name, rtol=1e-9, atol=1e-9)
    back = fastlik.odeint(pendulum, there.y[-1], torch.tensor([3.0, 0.0]), method=name, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(back.y[-1], START, rtol=0, atol=1e-7)


def test_each_row_equals_its_solo_solution_bit_for_bit():
    t = torch.tensor([0.0, 1.0, 3.0])
    together = fastlik.odeint(pendulum, START, t)
    for i in range(3):
        alone = fastlik.odeint(pendulum, START[i : i + 1], t)
        assert torch.equal(alone.y[:, 0], together.y[:, i])
        assert alone.nfe[0] == together.nfe[i]


def test_every_row_has_its_own_times():
    t = torch.tensor([[0.0, 1.0], [0.0, 2.0], [1.0, 0.5]])
    solution = fastlik.odeint(lambda t, y: -y, START, t, rtol=1e-10, atol=1e-12)
    decay = torch.exp(-torch.tensor([1.0, 2.0, -0.5], dtype=torch.float64))
    torch.testing.assert_close(solution.y[-1], START * decay[:, None], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 1e-3)])
def test_never_outside_the_span(name, ends):
    """torchdiffeq evaluates up to 1.37 and down to -0.45 on these spans."""
    seen = []

    def f(t, y):
        seen.append(t.clone())
        return y * torch.log(t + 1e-300)[:, None]

    fastlik.odeint(f, START, torch.tensor(ends), method=name, rtol=1e-5, atol=1e-7)
    times = torch.cat(seen)
    assert min(ends) <= times.min() and times.max() <= max(ends)


def test_failing_rows_stop_alone():
    """A NaN row and a finite-time blow-up: peers lose the batch, lie about it, or loop for ever."""

    def f(t, y):
        poisoned = (y < 0) & (t[:, None] > 0.3)
        return torch.where(poisoned, torch.nan, y * y)

    y0 = torch.tensor([[0.1], [2.0], [-1.0], [0.2]], dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="rows 1, 2 failed"):
        solution = fastlik.odeint(f, y0, torch.tensor([0.0, 0.25, 1.0]))
    assert solution.status.tolist() == [Status.DONE, Status.UNDERFLOW, Status.NON_FINITE, Status.DONE]
    assert solution.y[-1, 1:3].isnan().all() and solution.y[1].isfinite().all()
    assert solution.stopped_at[1] == pytest.approx(0.5, abs=1e-3)  # y' = y^2 from 2 explodes at 0.5
    assert solution.stopped_at[2] == pytest.approx(0.3, abs=1e-3)
    healthy = fastlik.odeint(f, y0[[0, 3]], torch.tensor([0.0, 0.25, 1.0]))
    assert torch.equal(healthy.y, solution.y[:, [0, 3]])


def test_a_slope_that_is_nan_from_the_start_costs_a_few_evaluations():
    y0 = torch.ones(1, 2, dtype=torch.float64)
    with pytest.warns(RuntimeWarning):
        solution = fastlik.odeint(lambda t, y: y * torch.nan, y0, torch.tensor([0.0, 1.0]))
    assert solution.status.tolist() == [Status.NON_FINITE] and solution.nfe[0] < 20


def test_bounded_steps():
    with pytest.warns(RuntimeWarning, match="maximum number of steps"):
        solution = fastlik.odeint(
            lambda t, y: -1000 * y, START, torch.tensor([0.0, 10.0]), rtol=1e-8, atol=1e-10, max_steps=50
        )
    assert (solution.status == Status.MAX_STEPS).all() and solution.y[-1].isnan().all()


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_backends_agree(backend, dtype):
    t = torch.tensor([0.0, 3.0])
    solution = fastlik.odeint(pendulum, START.to(dtype), t, rtol=1e-4, atol=1e-5, backend=backend)
    reference = fastlik.odeint(pendulum, START, t, rtol=1e-4, atol=1e-5, backend="torch")
    assert solution.y.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(solution.y.double(), reference.y, rtol=tolerance, atol=tolerance)


def test_an_image_shaped_state_that_is_not_contiguous():
    y0 = torch.randn(3, 5, 4, 2, dtype=torch.float64).permute(0, 3, 1, 2)
    solution = fastlik.odeint(lambda t, y: -y, y0, torch.tensor([0.0, 1.0]), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(solution.y[-1], y0 * math.exp(-1), rtol=1e-7, atol=1e-9)


def test_a_slope_that_is_itself_a_gradient():
    """f differentiates an energy, with parameters that are being trained: no graph grows over the steps."""
    stiffness = torch.tensor([1.0, 4.0], dtype=torch.float64, requires_grad=True)

    def f(t, y):
        y.requires_grad_()
        energy = (stiffness * y**2).sum() / 2
        return -torch.autograd.grad(energy, y, create_graph=True)[0]

    solution = fastlik.odeint(f, START, torch.tensor([0.0, 0.4, 1.0]), rtol=1e-9, atol=1e-12)
    assert not solution.y.requires_grad
    torch.testing.assert_close(solution.y[-1], START * torch.exp(-stiffness.detach()), rtol=1e-7, atol=1e-9)


def test_times_that_f_keeps_stay_what_they_were():
    seen = []

    def f(t, y):
        seen.append((t, t.clone()))
        return -y

    fastlik.odeint(f, START, torch.tensor([0.0, 1.0]))
    assert all(torch.equal(kept, then) for kept, then in seen)


def test_no_rows():
    solution = fastlik.odeint(pendulum, START[:0], torch.tensor([0.0, 1.0, 2.0]))
    assert solution.y.shape == (3, 0, 2) and solution.status.shape == (0,)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(method="dopri5"), ValueError, "'rk45', 'tsit5'"),
        (dict(t=torch.tensor([0.0, 1.0, 0.5])), ValueError, "must not change direction"),
        (dict(t=torch.tensor([1.0])), ValueError, "at least two times"),
        (dict(t=torch.tensor([0.0, math.inf])), ValueError, "NaN or infinity"),
        (dict(rtol=0.0), ValueError, "rtol must be"),
        (dict(y0=torch.zeros(3)), ValueError, r"\(B, \*event\)"),
        (dict(y0=torch.zeros(3, 2).half()), TypeError, "float32 or float64"),
        (dict(f=lambda t, y: y[:, :1]), ValueError, "must return dy/dt"),
        (dict(t=torch.tensor([[0.0, 1.0]] * 3), method="rk4", max_step=0.1), ValueError, "one grid"),
        (dict(max_step=-0.1), ValueError, "max_step must be"),
        (dict(first_step=0.0), ValueError, "first_step must be"),
        (dict(y0=START.float(), rtol=1e-9), ValueError, r"below what torch.float32 resolves.*y0.double\(\)"),
        (dict(rtol=1e-16), ValueError, "below what torch.float64 resolves"),
        (dict(y0=START.clone().requires_grad_()), ValueError, r"pass y0.detach\(\)"),
    ],
)
def test_bad_input(change, error, message):
    arguments = dict(f=pendulum, y0=START, t=torch.tensor([0.0, 1.0])) | change
    with pytest.raises(error, match=message):
        fastlik.odeint(arguments.pop("f"), arguments.pop("y0"), arguments.pop("t"), **arguments)
