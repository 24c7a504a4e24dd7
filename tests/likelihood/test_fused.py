"""The likelihood ODE in one native call against the general path: same rows, same steps, same numbers."""

import pytest
import torch
from torch import nn

import fastlik
from fastlik.likelihood.flow import LikelihoodFlow, Trace
from fastlik.likelihood.fused import Fused, fuse
from fastlik.likelihood.problem import CLOCK
from fastlik.solvers.adaptive import Tolerance, integrate
from fastlik.solvers.grid import integrate_grid
from fastlik.solvers.status import Status
from fastlik.solvers.tableau import EULER, HEUN, RK4, RK45, TSIT5

EXACT = Trace(True, 1, "rademacher", True, 0, "auto")
TRACES = {
    "exact": EXACT,
    "fresh": Trace(False, 2, "rademacher", True, 3, "auto", first_draw=4),
    "frozen": Trace(False, 2, "gaussian", False, 3, "auto"),
    "none": None,
}
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-10}


def model_of(schedule, predicts="v", dtype=torch.float64, dim=2, **options):
    torch.manual_seed(0)
    net = fastlik.nn.MLP(dim, width=24, depth=options.pop("depth", 3), **options).to(dtype)
    nn.init.normal_(net.out.weight, std=0.1)
    return fastlik.wrap(net, schedule, predicts, time="log_snr", time_scale=-1 / 8).eval()


def problem(model, rows=9, dtype=torch.float64, **conditions):
    """z, the clock at both ends, and conditions, away from ends where a prediction is singular."""
    generator = torch.Generator().manual_seed(1)
    schedule = model.schedule
    span = abs(schedule.t_prior - schedule.t_data)
    low = min(schedule.t_data, schedule.t_prior) + 1e-3 * span
    high = max(schedule.t_data, schedule.t_prior) - 1e-3 * span
    ends = (low, high) if schedule.t_data < schedule.t_prior else (high, low)
    u = CLOCK.u(schedule.angle(torch.tensor(ends, dtype=torch.float64))).tolist()
    dim = model.net.config["dim"]
    z = torch.randn(rows, dim, generator=generator, dtype=torch.float64).to(dtype)
    given = {
        name: torch.randn(rows, width, generator=generator, dtype=torch.float64).to(dtype)
        for name, width in conditions.items()
    }
    return z, u, given


def fused(model, z, u, conditions):
    found = fuse(model, CLOCK, z, u, conditions)
    assert isinstance(found, Fused), found
    return found


def same(actual, expected, dtype):
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(actual, expected, rtol=0, atol=ROUNDING[dtype] * scale)


def adaptive(model, z, u, conditions, trace, rows, tolerance, tableau=RK45, **options):
    """The general path."""
    flow = LikelihoodFlow(model, CLOCK, trace, rows, conditions)
    q = None if trace is None else torch.zeros(len(z), trace.columns, dtype=torch.float64)
    ends = (torch.full((len(z),), value, dtype=torch.float64) for value in u)
    reuse = trace is None or trace.exact or not trace.fresh
    with torch.no_grad():
        return integrate(flow, z, *ends, tableau, tolerance, q=q, reuse_last_stage=reuse, **options)


@pytest.mark.parametrize("predicts", ["noise", "score", "x0", "v", "velocity", "edm"])
def test_fixed_grid_of_every_schedule_and_prediction(schedule, predicts):
    model = model_of(schedule, predicts)
    z, u, _ = problem(model)
    found, rows = fused(model, z, u, {}), torch.arange(len(z))
    grid = torch.linspace(*u, 5, dtype=torch.float64)
    end = found.integrate_grid(z, grid, RK4, EXACT, rows)
    with torch.no_grad():
        q = torch.zeros(len(z), 1, dtype=torch.float64)
        expected = integrate_grid(LikelihoodFlow(model, CLOCK, EXACT, rows, {}), z, grid, RK4, q=q)
    same(end.y, expected.y, torch.float64)
    same(end.q, expected.q, torch.float64)
    for name in ("status", "t", "nfe", "steps"):
        assert torch.equal(getattr(end, name), getattr(expected, name)), name


@pytest.mark.parametrize("trace", TRACES)
@pytest.mark.parametrize("tableau", [EULER, HEUN, RK4], ids=lambda tableau: tableau.name)
def test_grids_of_every_method_and_trace(tableau, trace):
    """With rows that fail, and probes that several steps share."""
    model, trace = model_of(fastlik.VP(), "noise", condition_dim=1), TRACES[trace]
    z, u, conditions = problem(model, 12, condition=1)
    z[3], conditions["condition"][5] = torch.nan, torch.inf
    rows, grid = torch.arange(12) * 31, torch.linspace(*u, 9, dtype=torch.float64)
    found = fused(model, z, u, conditions)
    end = found.integrate_grid(z, grid, tableau, trace, rows, steps_per_node=4)
    q = None if trace is None else torch.zeros(12, trace.columns, dtype=torch.float64)
    with torch.no_grad():
        flow = LikelihoodFlow(model, CLOCK, trace, rows, conditions)
        expected = integrate_grid(flow, z, grid, tableau, q=q, steps_per_node=4)
    for name in ("status", "t", "nfe", "steps"):
        assert torch.equal(getattr(end, name), getattr(expected, name)), name
    assert (end.status == Status.NON_FINITE).nonzero().flatten().tolist() == [3, 5]
    good = end.status == Status.DONE
    same(end.y[good], expected.y[good], torch.float64)
    assert (end.q is None) == (trace is None)
    if trace is not None:
        same(end.q[good], expected.q[good], torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("trace", TRACES)
@pytest.mark.parametrize("tableau", [RK45, TSIT5], ids=lambda tableau: tableau.name)
def test_adaptive_steps_are_the_solvers(trace, tableau, dtype):
    model = model_of(fastlik.VP(), "noise", dtype, dim=3, condition_dim=2)
    z, u, conditions = problem(model, 40, dtype, condition=2)
    rows = torch.arange(40) * 17
    tolerance = Tolerance(1e-4, 1e-4, 1e-3)
    options = (TRACES[trace], rows, tolerance, tableau)
    expected = adaptive(model, z, u, conditions, *options)
    found = fused(model, z, u, conditions)
    end = found.integrate_adaptive(z, *u, tableau, tolerance, TRACES[trace], rows)
    if dtype == torch.float64:
        for name in ("status", "t", "nfe", "steps", "rejected"):
            assert torch.equal(getattr(end, name), getattr(expected, name)), name
    else:  # rounding may turn an acceptance
        assert bool((end.status == expected.status).all())
        assert (end.nfe != expected.nfe).double().mean() < 0.1
    loose = torch.float64 if dtype == torch.float64 else None
    for name in ("y", "q", "defect"):
        value = getattr(expected, name)
        if value is None:
            assert getattr(end, name) is None
        elif loose:
            same(getattr(end, name), value, dtype)
        else:
            torch.testing.assert_close(getattr(end, name), value, rtol=0, atol=2e-3)


@pytest.mark.parametrize("schedule", ["EDM", "RectifiedFlow", "DiscreteVP", "SubVP"])
def test_adaptive_steps_on_other_clocks(schedule):
    if schedule == "DiscreteVP":
        table = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 100, dtype=torch.float64), 0)
        schedule = fastlik.DiscreteVP(table)
    else:
        schedule = getattr(fastlik, schedule)()
    model = model_of(schedule, depth=2)
    z, u, _ = problem(model, 12)
    rows, tolerance = torch.arange(12), Tolerance(1e-4, 1e-4, 1e-3)
    expected = adaptive(model, z, u, {}, EXACT, rows, tolerance, first_step=0.05)
    end = fused(model, z, u, {}).integrate_adaptive(z, *u, RK45, tolerance, EXACT, rows, first_step=0.05)
    assert torch.equal(end.nfe, expected.nfe)
    same(end.y, expected.y, torch.float64)
    same(end.q, expected.q, torch.float64)


def test_adaptive_rows_do_not_depend_on_each_other():
    """200 rows pass through tiles that are refilled as rows end; rows of other batches get the same."""
    model = model_of(fastlik.VP(), "noise", torch.float32)
    z, u, _ = problem(model, 200, torch.float32)
    z *= torch.linspace(0.1, 3, 200)[:, None]
    found, tolerance = fused(model, z, u, {}), Tolerance(1e-3, 1e-3, 1e-2)
    trace = TRACES["fresh"]
    whole = found.integrate_adaptive(z, *u, RK45, tolerance, trace, torch.arange(200))
    assert len(whole.nfe.unique()) > 3
    torch.set_num_threads(3)
    try:
        threaded = found.integrate_adaptive(z, *u, RK45, tolerance, trace, torch.arange(200))
    finally:
        torch.set_num_threads(1)
    some = torch.tensor([199, 3, 77])
    part = found.integrate_adaptive(z[some], *u, RK45, tolerance, trace, some)
    for name in ("y", "q", "t", "nfe", "steps", "rejected", "defect", "status"):
        assert torch.equal(getattr(threaded, name), getattr(whole, name)), name
        assert torch.equal(getattr(part, name), getattr(whole, name)[some]), name


def test_rows_that_fail_are_flagged_alone():
    model = model_of(fastlik.VP(), "noise", condition_dim=1)
    z, u, conditions = problem(model, 30, condition=1)
    found, tolerance, rows = fused(model, z, u, conditions), Tolerance(1e-3, 1e-3, 1e-2), torch.arange(30)
    clean = found.integrate_adaptive(z, *u, RK45, tolerance, EXACT, rows)
    z[7] = torch.nan
    conditions["condition"][20] = torch.nan
    damaged = fused(model, z, u, conditions).integrate_adaptive(z, *u, RK45, tolerance, EXACT, rows)
    fine = torch.ones(30, dtype=torch.bool)
    fine[[7, 20]] = False
    assert torch.equal(damaged.y[fine], clean.y[fine]) and torch.equal(damaged.q[fine], clean.q[fine])
    assert damaged.status[~fine].tolist() == [Status.NON_FINITE] * 2
    assert damaged.t[~fine].tolist() == [u[0]] * 2
    few = found.integrate_adaptive(z, *u, RK45, tolerance, EXACT, rows, max_steps=3)
    assert set(few.status[fine].tolist()) == {Status.MAX_STEPS}


def test_no_span_and_no_rows():
    model = model_of(fastlik.VP())
    z, u, _ = problem(model, 3)
    found, tolerance = fused(model, z, u, {}), Tolerance(1e-3, 1e-3)
    empty = found.integrate_adaptive(z[:0], *u, RK45, tolerance, EXACT, torch.arange(0))
    assert empty.y.shape == (0, 2)
    still = found.integrate_adaptive(z, u[0], u[0], RK45, tolerance, EXACT, torch.arange(3))
    assert torch.equal(still.y, z) and set(still.status.tolist()) == {Status.DONE}
    assert still.q.tolist() == [[0.0]] * 3


def test_changes_of_the_network_are_seen():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.sign = nn.Linear(2, 2), 1.0

        def forward(self, x, t):
            return self.sign * self.inner(x).tanh()

    model = fastlik.wrap(Net(), fastlik.VP(), "noise").eval()
    z, u = torch.randn(4, 2), (0.5, 2.0)

    def end():
        grid = torch.linspace(*u, 3, dtype=torch.float64)
        return fused(model, z, u, {}).integrate_grid(z, grid, RK4, None, torch.arange(4)).y

    first = end()
    assert torch.equal(end(), first)
    model.net.inner.weight.data += 1  # leaves no trace in the version counter
    second = end()
    assert not torch.allclose(second, first)
    model.net.sign = -1.0
    third = end()
    assert not torch.allclose(third, second)
    model.net.inner = nn.Linear(2, 2)
    assert not torch.allclose(end(), third)


def test_refusals_say_why():
    model = model_of(fastlik.VP())
    z, u, _ = problem(model)
    assert "samples of shape (2, 2)" in fuse(model, CLOCK, z.reshape(-1, 1, 2).expand(-1, 2, 2), u, {})
    assert "torch.float16" in fuse(model, CLOCK, z.half(), u, {})
    assert "'condition' is not a floating-point" in fuse(
        model, CLOCK, z, u, {"condition": torch.ones(9).int()}
    )
    ring = fastlik.testing.GaussianMixture.ring().model(fastlik.VP())
    assert isinstance(fuse(ring, CLOCK, z, u, {}), str)
    unet = fastlik.wrap(
        nn.Sequential(nn.Linear(2, 2), nn.Softmax(1)), fastlik.VP(), "v", call=lambda n, x, t: n(x)
    )
    assert "softmax" in fuse(unet, CLOCK, z.float(), u, {})
