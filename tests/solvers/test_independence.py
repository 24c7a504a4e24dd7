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
    """(b, 2, 3): Lorenz in the first three, in the others a row's kind (constant) and a scalar problem."""
    a, b, c = y[:, 0].unbind(1)
    kind, level, spare = y[:, 1].unbind(1)
    lorenz = torch.stack((10 * (b - a), a * (28 - c) - b, a * b - 2.6666 * c), 1)
    rate = torch.where(kind == 1, level * level, -level)
    rate = torch.where((kind == 2) & (t > 0.7), torch.nan, rate)
    rate = torch.where(kind == 3, -3e5 * (level - t.to(level.dtype)), rate)
    return torch.stack((lorenz, torch.stack((torch.zeros_like(kind), rate, 0.5 * spare), 1)), 1)


def starts(dtype):
    y0 = torch.randn(ROWS, 2, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))
    y0[:, 1, 0] = 0
    for row, kind in ((EXPLODING, 1), (POISONED, 2), (STIFF, 3)):
        y0[row, 1] = torch.tensor([kind, 1.0, 1.0])
    return y0


def solve(y0, t=TIMES, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return fastlik.odeint(hostile, y0, t, **dict(rtol=1e-4, atol=1e-5, max_steps=150) | options)


def assert_row(alone, together, row):
    assert torch.equal(alone.y[:, 0].nan_to_num(7e7), together.y[:, row].nan_to_num(7e7)), row
    for field in ("status", "stopped_at", "nfe", "steps", "rejected"):
        assert getattr(alone, field)[0] == getattr(together, field)[row], (row, field)


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["rk45", "tsit5"])
def test_adaptive_rows_equal_their_solo_solutions(method, dtype, backend):
    y0 = starts(dtype)
    together = solve(y0, method=method, backend=backend)
    failed = {EXPLODING: Status.UNDERFLOW, POISONED: Status.NON_FINITE, STIFF: Status.MAX_STEPS}
    expected = [failed.get(row, Status.DONE) for row in range(ROWS)]
    if together.status[EXPLODING] == Status.NON_FINITE:  # the state overflows before the step underflows
        expected[EXPLODING] = Status.NON_FINITE
    assert together.status.tolist() == expected
    for row in (0, 1, 18, 36, *failed):
        assert_row(solve(y0[row : row + 1], method=method, backend=backend), together, row)


@pytest.mark.parametrize("method", [name for name, tableau in TABLEAUS.items() if not tableau.adaptive])
def test_fixed_rows_equal_their_solo_solutions(method):
    y0 = starts(torch.float64)[:STIFF]
    together = solve(y0, method=method, max_step=0.002)
    assert together.status[POISONED] == Status.NON_FINITE
    assert together.stopped_at[POISONED] == pytest.approx(0.7, abs=0.01)
    assert (together.y[TIMES < 0.7].isfinite()).all() and together.y[TIMES > 0.71, POISONED].isnan().all()
    for row in (0, 7, EXPLODING, POISONED):
        assert_row(solve(y0[row : row + 1], method=method, max_step=0.002), together, row)


def test_rows_with_their_own_times_equal_their_solo_solutions():
    y0 = starts(torch.float64)[:4]
    scale = torch.tensor([1.0, -0.2, 0.0, 0.3], dtype=torch.float64)  # both directions, and no span at all
    t = 0.5 + scale[:, None] * TIMES
    together = solve(y0, t, dense=True)
    assert together.converged.all() and together.nfe[2] == 0
    assert torch.equal(together.y[:, 2], y0[2].expand(9, 2, 3))
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
    straight, shuffled = solve(y0, backend="torch"), solve(y0[order], backend="torch")
    assert torch.equal(straight.y[:, order].nan_to_num(7e7), shuffled.y.nan_to_num(7e7))
