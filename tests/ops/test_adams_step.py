"""The native Adams step against its reference."""

import pytest
import torch

from fastlik.ops.adams_step import Control, History, correct, predict
from fastlik.ops.rk_step import Status

CONTROL = Control(1e-3, 1e-2, 0.05, 0.3, 4.0, 0.3, 0.1)


def history(batch, event, order, dtype, seed=0):
    """Rows in all states: few and many steps, some finished, some that end with this step."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    steps = torch.randint(0, 9, (batch,), generator=draw)
    # times in the ring buffers: place n % order holds node n
    spacing = 0.02 + 0.05 * torch.rand(batch, 10, generator=draw, dtype=torch.float64)
    nodes = spacing.cumsum(1)
    times = torch.zeros(batch, order, dtype=torch.float64)
    for row in range(batch):
        for n in range(max(0, int(steps[row]) - order + 1), int(steps[row]) + 1):
            times[row, n % order] = nodes[row, n]
    t = nodes[torch.arange(batch), steps]
    h = 0.05 * torch.rand(batch, generator=draw, dtype=torch.float64) + 0.01
    status = torch.zeros(batch, dtype=torch.int32)
    status[::5] = int(Status.DONE)
    t_end = t + torch.where(torch.arange(batch) % 3 == 0, h, 1.0)
    size = torch.Size(event).numel()
    return History(
        y=normal(batch, *event).to(dtype),
        t=t,
        t_end=t_end,
        h=h,
        tried=h * torch.where(torch.arange(batch) % 2 == 0, 8.0, 1.0),
        times=times,
        slopes=normal(batch, order, size).to(dtype),
        followed=normal(batch, order),
        defect=normal(batch),
        defect_square=normal(batch).square(),
        status=status,
        nfe=steps + 3,
        steps=steps,
        rejected=torch.ones_like(steps),
    )


def copied(rows):
    return History(**{name: value.clone() for name, value in vars(rows).items()})


def found(rows, attempt, seed=1, columns=3):
    """Slopes that some rows accept: close to those that were predicted."""
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows.y.shape, generator=draw, dtype=torch.float64).to(rows.y.dtype)
    last = rows.slopes[torch.arange(len(rows.t)), rows.steps % rows.order].reshape(rows.y.shape)
    scale = torch.logspace(-2, 1, len(rows.t)).reshape(-1, *[1] * (rows.y.dim() - 1)).to(rows.y.dtype)
    integrand = torch.randn(len(rows.t), columns, generator=draw, dtype=torch.float64)
    sensitivity = torch.randn(rows.y.shape, generator=draw, dtype=torch.float64).to(rows.y.dtype)
    return last + scale * noise, integrand, sensitivity


def assert_equal(native, reference, tolerance):
    for name, value in vars(reference).items():
        ours = getattr(native, name)
        torch.testing.assert_close(ours, value, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("batch", "event"), [(37, (3,)), (6, (2, 5, 7)), (1, (1,)), (40, (1030,))])
def test_steps_are_those_of_the_reference(batch, event, order, dtype):
    ours = history(batch, event, order, dtype)
    theirs, before = copied(ours), ours.steps.clone()
    tolerance = 1e-4 if dtype == torch.float32 else 1e-11
    outcomes = set()
    for n in range(3):
        attempts = predict(ours, "native"), predict(theirs, "torch")
        for a, b in zip(*attempts, strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
        slope, integrand, sensitivity = found(theirs, attempts[1], seed=n)
        for rows, attempt, backend in zip((ours, theirs), attempts, ("native", "torch"), strict=True):
            correct(rows, attempt, slope, 0.05 * integrand, 0.1 * sensitivity, CONTROL, backend)
        assert_equal(ours, theirs, tolerance)
        outcomes |= set(theirs.status.tolist())
    assert int(theirs.rejected.max()) > 1 or batch == 1
    if (batch, order) == (37, 4):
        assert {int(Status.RUNNING), int(Status.DONE)} <= outcomes and (theirs.steps > before).any()


@pytest.mark.parametrize("given", [(False, False), (True, False), (False, True)])
def test_without_integrals_or_sensitivities(given):
    ours = history(20, (4,), 4, torch.float64)
    theirs = copied(ours)
    control = CONTROL if given[0] else CONTROL._replace(q_atol=None)
    for rows, backend in ((ours, "native"), (theirs, "torch")):
        attempt = predict(rows, backend)
        slope, integrand, sensitivity = found(theirs, attempt)
        some = integrand if given[0] else None, sensitivity if given[1] else None
        correct(rows, attempt, 0.1 * slope, *some, control, backend)
    assert_equal(ours, theirs, 1e-11)


@pytest.mark.parametrize("where", ["slope", "integrand"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_fails_alone(where, value):
    ours = history(20, (4,), 4, torch.float64)
    ours.h[3] = 8e-15 * ours.t_end[3]  # a tenth of it is below the resolution of t
    theirs, clean = copied(ours), copied(ours)
    for rows, backend, spoilt in ((ours, "native", True), (theirs, "torch", True), (clean, "native", False)):
        attempt = predict(rows, backend)
        slope, integrand, sensitivity = found(history(20, (4,), 4, torch.float64), attempt)
        if spoilt:
            (slope if where == "slope" else integrand)[3, 1] = value
        correct(rows, attempt, slope, integrand, sensitivity, CONTROL, backend)
    assert_equal(ours, theirs, 1e-11)
    assert ours.status[3] == Status.NON_FINITE and clean.status[3] != Status.NON_FINITE
    others = torch.arange(20) != 3
    for name, values in vars(clean).items():
        assert torch.equal(getattr(ours, name)[others], values[others]), name


def test_jumps_are_seen():
    """Steps that shrank, a slope far off its polynomial, and an error that is just acceptable."""
    ours = history(20, (4,), 4, torch.float64)
    ours.steps.fill_(8)
    ours.status.zero_()
    ours.tried.copy_(8 * ours.h)
    theirs = copied(ours)
    loose = CONTROL._replace(atol=0.05, q_atol=1e3)
    for rows, backend in ((ours, "native"), (theirs, "torch")):
        attempt = predict(rows, backend)
        slope, integrand, sensitivity = found(theirs, attempt, seed=5)
        correct(rows, attempt, 3 * slope, integrand, sensitivity, loose, backend)
    assert_equal(ours, theirs, 1e-11)
    assert (ours.status == Status.DISCONTINUOUS).any()


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_slopes_of_another_precision_are_converted(backend):
    """Networks may return one: its bytes are no numbers of the state's."""
    results = []
    for dtype in (torch.float32, torch.float64):
        rows = history(20, (4,), 4, torch.float32)
        attempt = predict(rows, backend)
        slope, integrand, sensitivity = found(rows, attempt)
        correct(rows, attempt, slope.to(dtype), integrand, sensitivity.to(dtype), CONTROL, backend)
        results.append(rows)
    assert_equal(*results, 0.0)


def test_an_empty_batch():
    rows = history(0, (3,), 4, torch.float32)
    for backend in ("native", "torch"):
        attempt = predict(rows, backend)
        assert attempt.y.shape == (0, 3)
        correct(rows, attempt, attempt.y, None, None, CONTROL, backend)


def test_the_number_of_threads_changes_nothing():
    one = history(40, (1030,), 4, torch.float32)
    two = copied(one)
    before = torch.get_num_threads()
    try:
        for rows, threads in ((one, 1), (two, 2)):
            torch.set_num_threads(threads)
            attempt = predict(rows, "native")
            correct(rows, attempt, *found(history(40, (1030,), 4, torch.float32), attempt), CONTROL, "native")
    finally:
        torch.set_num_threads(before)
    for name, value in vars(one).items():
        assert torch.equal(getattr(two, name), value), name
