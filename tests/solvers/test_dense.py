"""Dense output: accurate, free of evaluations, and without influence on the steps."""

import math

import pytest
import torch

import fastlik
from fastlik.solvers.status import Status
from fastlik.solvers.tableau import TABLEAUS

ADAPTIVE = [name for name, tableau in TABLEAUS.items() if tableau.adaptive]
FIXED = [name for name, tableau in TABLEAUS.items() if not tableau.adaptive]
DENSE_ORDER = {"rk45": 4, "tsit5": 4, "rk4": 3, "heun": 2, "euler": 1}


def spiral(t, y):
    """y' = (i - 1/5) y + cos 2t as pairs of reals."""
    a, b = y.unbind(1)
    return torch.stack((-0.2 * a - b + torch.cos(2 * t).to(a.dtype), a - 0.2 * b), 1)


def exact(t, y0):
    """t (T, B) and y0 (B, 2) give (T, B, 2)."""
    z0 = torch.view_as_complex(y0.double())
    rate = complex(-0.2, 1)
    plus, minus = 0.5 / (2j - rate), 0.5 / (-2j - rate)
    z = plus * torch.exp(2j * t) + minus * torch.exp(-2j * t)
    return torch.view_as_real(z + (z0 - plus - minus) * torch.exp(rate * t))


START = torch.tensor([[1.0, 0.0], [0.2, -3.0], [-1.0, 2.0]], dtype=torch.float64)


@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize("goal", [4.0, -3.0])
def test_times_cost_nothing_and_change_nothing(method, goal):
    few = fastlik.odeint(spiral, START, torch.tensor([0.0, goal]), method=method)
    many = fastlik.odeint(spiral, START, torch.linspace(0, goal, 400), method=method)
    kept = fastlik.odeint(spiral, START, torch.linspace(0, goal, 400), method=method, dense=True)
    for field in ("nfe", "steps", "rejected"):
        assert torch.equal(getattr(few, field), getattr(many, field))
        assert torch.equal(getattr(few, field), getattr(kept, field))
    assert torch.equal(few.y[-1], many.y[-1]) and torch.equal(few.y[-1], kept.y[-1])
    assert torch.equal(few.y[0], START) and torch.equal(many.y[0], START)
    torch.testing.assert_close(many.y, kept.y, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize("tolerance", [1e-4, 1e-7, 1e-10])
def test_tolerance_is_kept_between_the_steps(method, tolerance):
    t = torch.linspace(0, 4, 333, dtype=torch.float64)
    solution = fastlik.odeint(spiral, START, t, method=method, rtol=tolerance, atol=tolerance)
    error = (solution.y - exact(t[:, None].expand(-1, 3), START)).abs().amax((1, 2))
    assert error.max() < 20 * tolerance


@pytest.mark.parametrize("method", TABLEAUS)
def test_order_between_the_steps(method):
    errors = []
    for steps in (8, 16, 32):
        # an adaptive method whose tolerance is always met takes steps of max_step
        loose = dict(rtol=1e3, atol=1e3, first_step=2 / steps)
        solution = fastlik.odeint(
            spiral, START, [0.0, 2.0], method=method, max_step=2 / steps, dense=True, **loose
        )
        assert (solution.steps == steps).all()
        t = torch.linspace(0, 2, 301, dtype=torch.float64)
        errors.append(float((solution.evaluate(t) - exact(t[:, None].expand(-1, 3), START)).abs().max()))
    observed = math.log2(errors[1] / errors[2])
    assert DENSE_ORDER[method] - 0.25 < observed < DENSE_ORDER[method] + 1.4


@pytest.mark.parametrize("method", TABLEAUS)
def test_evaluate(method):
    t = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.5, -0.5], [2.0, 2.0, 2.0]])
    solution = fastlik.odeint(spiral, START, t, method=method, dense=True)
    torch.testing.assert_close(solution.evaluate(t), solution.y, rtol=1e-12, atol=1e-13)
    # any order of times, one of them for every row, and rows that do not reach it
    shuffled = solution.evaluate(torch.tensor([1.5, 0.75, 2.0]))
    assert shuffled.shape == (3, 3, 2)
    covered = shuffled.isfinite().all(-1)
    assert covered.tolist() == [[True, False, False], [True, True, False], [True, False, True]]
    assert torch.equal(solution.evaluate(0.75).nan_to_num(9), shuffled[1].nan_to_num(9))
    assert torch.equal(shuffled[2, 2], START[2])
    with pytest.raises(ValueError, match=r"shape \(T,\) or \(3, T\)"):
        solution.evaluate(torch.zeros(2, 5))


def test_pieces_join():
    """Neighbouring pieces have the same value, and for fsal pairs nearly the same slope, at their joint."""
    solution = fastlik.odeint(spiral, START, [0.0, 4.0], dense=True, rtol=1e-5, atol=1e-5)
    joint = solution.interpolant.starts[0, 2 : int(solution.steps[0])]
    step = 1e-7
    before, at, after = (solution.evaluate(joint + shift)[:, 0] for shift in (-step, 0.0, step))
    torch.testing.assert_close(before, at, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close((at - before) / step, (after - at) / step, rtol=1e-3, atol=1e-3)


def test_no_steps_were_kept():
    with pytest.raises(RuntimeError, match="dense=True"):
        fastlik.odeint(spiral, START, [0.0, 1.0]).evaluate(0.5)


def test_a_failed_row_is_known_until_it_stopped():
    def explosion(t, y):
        return y * y

    y0 = torch.tensor([[1.0], [0.25]], dtype=torch.float64)
    t = torch.linspace(0, 2, 41, dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="row 0 failed"):
        plain = fastlik.odeint(explosion, y0, t, rtol=1e-7)
    with pytest.warns(RuntimeWarning, match="row 0 failed"):
        kept = fastlik.odeint(explosion, y0, t, rtol=1e-7, dense=True)
    truth = y0.T / (1 - y0.T * t[:, None])
    for y in (plain.y, kept.y, kept.evaluate(t)):
        torch.testing.assert_close(y[:20, 0, 0], truth[:20, 0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(y[:, 1, 0], truth[:, 1], rtol=1e-6, atol=1e-6)
        assert y[21:, 0].isnan().all()


def test_repeated_times():
    t = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 2.0, 2.0])
    for method in ("rk45", "rk4"):
        y = fastlik.odeint(spiral, START, t, method=method).y
        assert torch.equal(y[0], y[1]) and torch.equal(y[2], y[3]) and torch.equal(y[2], y[4])
        assert torch.equal(y[5], y[6]) and y.isfinite().all()


@pytest.mark.parametrize("method", TABLEAUS)
@pytest.mark.parametrize("dense", [False, True])
def test_spans_of_no_length_and_no_rows(method, dense):
    def f(t, y):
        raise AssertionError("there is nothing to evaluate")

    if TABLEAUS[method].adaptive:
        still = fastlik.odeint(f, START, [1.0, 1.0], method=method, dense=dense)
        assert still.converged.all() and torch.equal(still.y, START.expand(2, 3, 2))
        assert still.nfe.tolist() == [0, 0, 0]
    still = fastlik.odeint(spiral, START, [1.0, 1.0, 1.0], method=method, dense=dense)
    assert still.converged.all() and torch.equal(still.y, START.expand(3, 3, 2))
    none = fastlik.odeint(spiral, START[:0], [0.0, 1.0, 2.0], method=method, dense=dense)
    assert none.y.shape == (3, 0, 2)
    if dense:
        assert none.evaluate([0.5, 1.5]).shape == (2, 0, 2) and none.evaluate(0.5).shape == (0, 2)


@pytest.mark.parametrize("method", FIXED)
def test_fixed_methods_divide_the_intervals(method):
    calls = []

    def f(t, y):
        calls.append(float(t[0]))
        return spiral(t, y)

    solution = fastlik.odeint(f, START, [0.0, 0.3, 1.0], method=method, max_step=0.1)
    assert solution.steps.tolist() == [10] * 3 and solution.nfe.tolist() == [len(calls)] * 3
    fine = fastlik.odeint(spiral, START, torch.linspace(0, 1, 11), method=method)
    torch.testing.assert_close(solution.y[[1, 2]], fine.y[[3, 10]], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", FIXED)
def test_fixed_methods_take_a_grid_for_each_row(method):
    t = torch.linspace(0, 1, 6, dtype=torch.float64) * torch.tensor([[1.0], [-0.5], [2.0]])
    together = fastlik.odeint(spiral, START, t, method=method)
    for row in range(3):
        alone = fastlik.odeint(spiral, START[row : row + 1], t[row], method=method)
        torch.testing.assert_close(alone.y[:, 0], together.y[:, row], rtol=1e-14, atol=1e-14)


def test_largest_step():
    """A pulse between two long steps is not seen; a largest step sees it."""

    def pulse(t, y):
        return torch.exp(-(((t - 100) / 0.5) ** 2)).to(y.dtype)[:, None].expand_as(y)

    y0 = torch.zeros(2, 1, dtype=torch.float64)
    assert (fastlik.odeint(pulse, y0, [0.0, 200.0]).y[-1] < 1e-3).all()
    seen = fastlik.odeint(pulse, y0, [0.0, 200.0], max_step=1.0)
    assert seen.y[-1].flatten().tolist() == pytest.approx([0.5 * math.pi**0.5] * 2, rel=1e-5)
    assert (seen.steps >= 200).all()


def test_float32_state_and_float64_time():
    """Steps of 1e-9 around t = 1000 are below what float32 resolves of the time, not of the state."""
    seen = []

    def f(t, y):
        seen.append(t)
        assert t.dtype == torch.float64 and y.dtype == torch.float32
        return (t - 1000)[:, None] * 1e9 * y  # float64: the solver takes the slope in any precision

    y0 = torch.ones(2, 1)
    t = 1000 + torch.linspace(0, 1e-4, 5, dtype=torch.float64)
    solution = fastlik.odeint(f, y0, t, rtol=1e-6, atol=1e-6)
    assert solution.y.dtype == torch.float32 and solution.t.dtype == torch.float64
    truth = torch.exp(0.5e9 * (t - 1000) ** 2).float()
    torch.testing.assert_close(solution.y[..., 0], truth[:, None].expand(-1, 2), rtol=1e-4, atol=1e-4)
    assert len(torch.cat(seen).unique()) > 20


def test_a_failure_in_the_last_interval_does_not_touch_earlier_times():
    def f(t, y):
        return torch.where(t[:, None] > 1.5, torch.nan, -y)

    for method in TABLEAUS:
        t = torch.linspace(0, 2, 9, dtype=torch.float64)
        with pytest.warns(RuntimeWarning, match="rows 0, 1, 2 failed"):
            solution = fastlik.odeint(f, START, t, method=method, dense=True)
        assert (solution.status == Status.NON_FINITE).all()
        for y in (solution.y, solution.evaluate(t)):
            assert y[:6].isfinite().all() and y[8].isnan().all()
