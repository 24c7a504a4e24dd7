"""A row's solution is bit for bit what it would be alone, whatever its neighbours do.

The right-hand sides use additions and products only: PyTorch's vectorised sin, exp or matrix products do
not give a row the same bits in every batch, and no solver can repair that.
"""

import warnings

import pytest
import torch

import fastlik
from fastlik.solvers.status import Status
from fastlik.solvers.tableau import TABLEAUS

ROWS = 37
TIMES = torch.linspace(0, 2, 9, dtype=torch.float64)
# a row of each kind: y' = y^2 explodes, the poisoned turns NaN, the stiff needs more steps than there are
EXPLODING, POISONED, STIFF = 5, 11, 20


def hostile(t, y):
    """u' = a u + c u^2 (1 - u) for y = (u, a, c) of shape (b, 3, 2); NaN after t = 0.7 where c = -1."""
    u, a, c = y.unbind(1)
    slope = a * u + c * u * u * torch.where(a < 0, 1 - u, 1)
    slope = torch.where((c < 0) & (t > 0.7)[:, None], torch.nan, slope)
    return torch.stack((slope, torch.zeros_like(a), torch.zeros_like(c)), 1)


def starts(dtype):
    y0 = torch.rand(ROWS, 3, 2, dtype=dtype, generator=torch.Generator().manual_seed(0))
    y0[:, 1:] *= torch.tensor([[-5.0], [20.0]])
    y0[EXPLODING, 1:] = torch.tensor([[0.0], [2.0]])
    y0[POISONED, 2] = -1
    y0[STIFF, 1] = -3e4
    return y0


def solve(y0, t=TIMES, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return fastlik.odeint(hostile, y0, t, **dict(rtol=1e-4, atol=1e-5, max_steps=250) | options)


def assert_row(alone, together, row):
    assert torch.equal(alone.y[:, 0].nan_to_num(7e7), together.y[:, row].nan_to_num(7e7)), row
    for field in ("status", "stopped_at", "nfe", "steps", "rejected"):
        assert getattr(alone, field)[0] == getattr(together, field)[row], (row, field)


@pytest.mark.parametrize(
    ("method", "dtype", "backend"),
    [("rk45", torch.float32, "native"), ("tsit5", torch.float64, "torch")],
)
def test_adaptive_rows_equal_their_solo_solutions(method, dtype, backend):
    y0 = starts(dtype)
    together = solve(y0, method=method, backend=backend)
    failed = {EXPLODING: Status.UNDERFLOW, POISONED: Status.NON_FINITE, STIFF: Status.MAX_STEPS}
    assert together.status.tolist() == [failed.get(row, Status.DONE) for row in range(ROWS)]
    for row in (0, 18, 36, *failed):
        assert_row(solve(y0[row : row + 1], method=method, backend=backend), together, row)


@pytest.mark.parametrize("method", [name for name, tableau in TABLEAUS.items() if not tableau.adaptive])
def test_fixed_rows_equal_their_solo_solutions(method):
    y0 = starts(torch.float64)[:STIFF]
    together = solve(y0, method=method, max_step=0.01)
    assert together.status[POISONED] == Status.NON_FINITE
    assert together.stopped_at[POISONED] == pytest.approx(0.7, abs=0.02)
    assert (together.y[TIMES < 0.7].isfinite()).all() and together.y[TIMES > 0.72, POISONED].isnan().all()
    for row in (0, POISONED):
        assert_row(solve(y0[row : row + 1], method=method, max_step=0.01), together, row)


def test_rows_with_their_own_times_equal_their_solo_solutions():
    y0 = starts(torch.float64)[:4]
    scale = torch.tensor([1.0, -0.2, 0.0, 0.3], dtype=torch.float64)  # both directions, and no span at all
    t = 0.5 + scale[:, None] * TIMES
    together = solve(y0, t, dense=True)
    assert together.converged.all() and together.nfe[2] == 0
    assert torch.equal(together.y[:, 2], y0[2].expand(9, 3, 2))
    for row in range(4):
        alone = solve(y0[row : row + 1], t[row : row + 1], dense=True)
        assert_row(alone, together, row)
        inner = t[row].mean()
        assert torch.equal(alone.evaluate(inner)[0], together.evaluate(inner)[row])


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_long_rows_and_several_threads(backend):
    """PyTorch splits the sum over a single long row among its threads, and rounds it otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        y0 = torch.randn(3, 50_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

        def solve(y0):
            return fastlik.odeint(
                lambda t, y: y * (1 - y * y), y0, torch.tensor([0.0, 1.0]), rtol=1e-4, backend=backend
            )

        together = solve(y0)
        for row in range(3):
            assert_row(solve(y0[row : row + 1]), together, row)
    finally:
        torch.set_num_threads(threads)


def test_the_same_bits_in_any_order():
    y0 = starts(torch.float64)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    straight, shuffled = (solve(y, backend="torch", max_steps=40) for y in (y0, y0[order]))
    assert torch.equal(straight.y[:, order].nan_to_num(7e7), shuffled.y.nan_to_num(7e7))
