"""Adams' method in one native call against the general path: same rows, same steps, same numbers."""

import logging
from dataclasses import replace

import pytest
import torch
from torch import nn

import fastlik
from fastlik.likelihood import adams, solve
from fastlik.likelihood.flow import LikelihoodFlow, Trace
from fastlik.likelihood.fused import Fused, fuse
from fastlik.likelihood.problem import ADAMS_CLOCK
from fastlik.likelihood.trace import TraceIntegral
from fastlik.solvers.adams import integrate_adams
from fastlik.solvers.adaptive import Tolerance
from fastlik.solvers.status import Status

EXACT = Trace(True, 1, "rademacher", True, 0, "auto")
ONE = Trace(False, 1, "rademacher", True, 3, "auto", first_draw=2)
TRACES = {
    "exact": EXACT,
    "one": ONE,
    "two": replace(ONE, probes=2),
    "gaussian": replace(ONE, kind="gaussian"),
    "frozen": replace(ONE, probes=3, fresh=False),
    "none": None,
}
COUNTS = ("status", "t", "nfe", "steps", "rejected")
TOLERANCE = Tolerance(0.0, 4e-3, 3e-3)
STEPS = {"first_step": 0.02, "max_steps": 500}


def model_of(dtype=torch.float64, dim=3, **options):
    torch.manual_seed(0)
    net = fastlik.nn.MLP(dim, width=24, depth=3, **options).to(dtype)
    nn.init.normal_(net.out.weight, std=0.1)
    return fastlik.wrap(net, fastlik.VP(), "noise", time="log_snr", time_scale=-1 / 8).eval()


def problem(model, rows=9, dtype=torch.float64, **conditions):
    generator = torch.Generator().manual_seed(1)

    def draw(width):
        return torch.randn(rows, width, generator=generator, dtype=torch.float64).to(dtype)

    u = ADAMS_CLOCK.u(model.schedule.angle(torch.tensor([1e-3, 0.999], dtype=torch.float64))).tolist()
    z = draw(model.net.config["dim"])
    return z, u, {name: draw(width) for name, width in conditions.items()}


def fused(model, z, u, conditions):
    found = fuse(model, ADAMS_CLOCK, z, u, conditions)
    assert isinstance(found, Fused), found
    return found


def general(model, z, u, conditions, trace, rows, order):
    flow = LikelihoodFlow(model, ADAMS_CLOCK, trace, rows, conditions, companion=True)
    ends = (torch.full((len(z),), value, dtype=torch.float64) for value in u)
    with torch.no_grad():
        return integrate_adams(flow, z, *ends, TOLERANCE, order=order, **STEPS)


@pytest.mark.parametrize("order", [4, 5])
@pytest.mark.parametrize("trace", TRACES)
def test_steps_and_integrals_are_the_solvers(trace, order):
    model, trace = model_of(condition_dim=2), TRACES[trace]
    z, u, conditions = problem(model, 40, condition=2)
    rows = torch.arange(40) * 17
    expected, nodes = general(model, z, u, conditions, trace, rows, order)
    found = fused(model, z, u, conditions)
    end, integral = found.integrate_adams(z, *u, TOLERANCE, trace, rows, order=order, **STEPS)
    for name in COUNTS:
        assert torch.equal(getattr(end, name), getattr(expected, name)), name
    torch.testing.assert_close(end.y, expected.y, rtol=0, atol=1e-8)
    torch.testing.assert_close(end.defect, expected.defect, rtol=0, atol=1e-8)
    if trace is None:
        assert torch.equal(integral, torch.zeros(3, 40, dtype=torch.float64))
        return
    answer = TraceIntegral(nodes, exact=trace.exact, fresh=trace.fresh)
    for value, name in zip(integral, ("value", "variance", "discretisation"), strict=True):
        torch.testing.assert_close(value, getattr(answer, name), rtol=1e-5, atol=1e-6)


def test_single_precision():
    model = model_of(torch.float32, condition_dim=2)
    z, u, conditions = problem(model, 40, torch.float32, condition=2)
    rows = torch.arange(40)
    expected, nodes = general(model, z, u, conditions, EXACT, rows, 4)
    found = fused(model, z, u, conditions)
    end, integral = found.integrate_adams(z, *u, TOLERANCE, EXACT, rows, order=4, **STEPS)
    assert torch.equal(end.status, expected.status)
    assert (end.nfe != expected.nfe).double().mean() < 0.1  # rounding may turn an acceptance
    torch.testing.assert_close(end.y, expected.y, rtol=0, atol=1e-3)
    answer = TraceIntegral(nodes, exact=True, fresh=True).value
    torch.testing.assert_close(integral[0], answer, rtol=0, atol=3e-3)


def test_rows_do_not_depend_on_each_other():
    """200 rows pass through tiles that are refilled as rows end; rows of other batches get the same."""
    model = model_of(torch.float32)
    z, u, _ = problem(model, 200, torch.float32)
    z *= torch.linspace(0.1, 3, 200)[:, None]
    found = fused(model, z, u, {})
    order = {"order": 4, **STEPS}
    whole, integral = found.integrate_adams(z, *u, TOLERANCE, ONE, torch.arange(200), **order)
    assert len(whole.nfe.unique()) > 3
    torch.set_num_threads(3)
    try:
        threaded, of_threads = found.integrate_adams(z, *u, TOLERANCE, ONE, torch.arange(200), **order)
    finally:
        torch.set_num_threads(1)
    some = torch.tensor([199, 3, 77])
    part, of_part = found.integrate_adams(z[some], *u, TOLERANCE, ONE, some, **order)
    assert torch.equal(of_threads, integral) and torch.equal(of_part, integral[:, some])
    for name in ("y", "defect", *COUNTS):
        assert torch.equal(getattr(threaded, name), getattr(whole, name)), name
        assert torch.equal(getattr(part, name), getattr(whole, name)[some]), name


def test_rows_that_fail_are_flagged_alone():
    model = model_of(condition_dim=1)
    z, u, conditions = problem(model, 100, condition=1)
    rows, order = torch.arange(100), {"order": 4, **STEPS}
    clean, integral = fused(model, z, u, conditions).integrate_adams(z, *u, TOLERANCE, ONE, rows, **order)
    z[7] = torch.nan
    z[40:60] = torch.nan  # a whole tile
    conditions["condition"][20] = torch.nan
    found = fused(model, z, u, conditions)
    damaged, of_damaged = found.integrate_adams(z, *u, TOLERANCE, ONE, rows, **order)
    fine = torch.ones(100, dtype=torch.bool)
    fine[[7, 20, *range(40, 60)]] = False
    assert torch.equal(damaged.y[fine], clean.y[fine])
    assert torch.equal(of_damaged[:, fine], integral[:, fine])
    assert set(damaged.status[~fine].tolist()) == {Status.NON_FINITE}
    assert set(damaged.t[~fine].tolist()) == {u[0]}
    few, _ = found.integrate_adams(z, *u, TOLERANCE, ONE, rows, **(order | {"max_steps": 3}))
    assert set(few.status[fine].tolist()) == {Status.MAX_STEPS}


def test_no_span_and_no_rows():
    model = model_of()
    z, u, _ = problem(model, 3)
    found, order = fused(model, z, u, {}), {"order": 4, **STEPS}
    empty, nothing = found.integrate_adams(z[:0], *u, TOLERANCE, EXACT, torch.arange(0), **order)
    assert empty.y.shape == (0, 3) and nothing.shape == (3, 0)
    still, integral = found.integrate_adams(z, u[0], u[0], TOLERANCE, EXACT, torch.arange(3), **order)
    assert torch.equal(still.y, z) and set(still.status.tolist()) == {Status.DONE}
    assert not integral.any()


class Step(nn.Module):
    """A noise prediction that all but jumps where the first coordinate passes 0.5."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1e7, 0.0], [0.0, 0.0]]))
            self.first.bias.copy_(torch.tensor([-5e6, 0.0]))
            self.second.weight.copy_(torch.tensor([[2.0, 0.0], [0.4, 0.0]]))

    def forward(self, x, t):
        return 2.0 * x + self.second(torch.sigmoid(self.first(x)))


def test_jumps_are_seen_as_in_the_general_path():
    model = fastlik.wrap(Step().double(), fastlik.VP(), "noise").eval()
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(60, 2, generator=generator, dtype=torch.float64)
    u, rows = ADAMS_CLOCK.u(torch.tensor([0.01, 1.5], dtype=torch.float64)).tolist(), torch.arange(60)
    expected, _ = general(model, z, u, {}, EXACT, rows, 4)
    end, _ = fused(model, z, u, {}).integrate_adams(z, *u, TOLERANCE, EXACT, rows, order=4, **STEPS)
    assert torch.equal(end.status, expected.status)
    assert 3 < (end.status == Status.DISCONTINUOUS).sum() < 60


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"divergence": "hutchinson"},
        {"divergence": "hutchinson", "probe_mode": "frozen", "probes": 2},
        {"method": "rk45"},
        {"divergence": "hutchinson", "method": "tsit5", "probes": 2},
        {"method": "rk4", "tolerance": 0.1},
        {"divergence": "hutchinson", "method": "heun", "probes": 2, "tolerance": 0.3},
        {"method": "euler", "tolerance": 0.3},
    ],
)
def test_likelihoods_are_the_general_paths(options, monkeypatch):
    model = model_of(condition_dim=2)
    x, _, conditions = problem(model, 30, condition=2)
    with monkeypatch.context() as patch:
        patch.setattr(solve, "fuse", lambda *arguments: "not now")
        slow = fastlik.ode_nll(model, x, condition=conditions, **options)
    kinds = {"rk45": "adaptive", "tsit5": "adaptive", None: "adams"}
    name = f"integrate_{kinds.get(options.get('method'), 'grid')}"
    method, calls = getattr(Fused, name), []
    monkeypatch.setattr(Fused, name, lambda *a, **k: calls.append(1) or method(*a, **k))
    fast = fastlik.ode_nll(model, x, condition=conditions, **options)
    assert calls
    for name in ("nats", "latent"):
        torch.testing.assert_close(getattr(fast, name), getattr(slow, name), rtol=0, atol=1e-6)
    torch.testing.assert_close(fast.stderr, slow.stderr, rtol=1e-4, atol=1e-6, equal_nan=True)
    torch.testing.assert_close(fast.discretisation, slow.discretisation, rtol=1e-4, atol=1e-8)
    assert torch.equal(fast.nfe, slow.nfe) and torch.equal(fast.status, slow.status)


def test_rows_that_are_solved_again_keep_their_conditions(monkeypatch):
    """All rows twice more, with tighter tolerances: kernel and general path the same."""
    model = model_of(condition_dim=2)
    x, _, conditions = problem(model, 12, condition=2)
    monkeypatch.setattr(adams, "_REFINE_ABOVE", 0.02)
    fast = fastlik.ode_nll(model, x, condition=conditions)
    monkeypatch.setattr(solve, "fuse", lambda *arguments: "not now")
    slow = fastlik.ode_nll(model, x, condition=conditions)
    assert torch.equal(fast.nfe, slow.nfe) and len(fast.nfe.unique()) > 3 and fast.nfe.max() > 100
    torch.testing.assert_close(fast.nats, slow.nats, rtol=0, atol=1e-6)


def test_the_closed_form_is_taken_where_there_is_one():
    """An MLP of two hidden layers in 24 dimensions: no probes, and the numbers of 24 tangents."""
    torch.manual_seed(0)
    net = fastlik.nn.MLP(24, width=32, depth=2).double()
    nn.init.normal_(net.out.weight, std=0.1)
    model = fastlik.wrap(net, fastlik.VP(), "noise", time="log_snr", time_scale=-1 / 8)
    x = torch.randn(5, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    result = fastlik.ode_nll(model, x)
    assert result.protocol["divergence"] == "exact" and not result.stderr.any()
    tangents = fastlik.ode_nll(model, x, divergence="exact", mode="jvp")
    torch.testing.assert_close(result.nats, tangents.nats, rtol=0, atol=1e-6)
    sure = fastlik.ode_nll(model, x, target_stderr=0.1)
    assert torch.equal(sure.nats, result.nats) and torch.equal(sure.nfe, result.nfe)
    assert fastlik.ode_nll(model, x, backend="torch").protocol["divergence"] == "hutchinson"
    levels = torch.zeros(2, 24, dtype=torch.int64)
    discrete = fastlik.ode_nll(model, levels, dequantize="uniform", bins=4)
    assert discrete.protocol["divergence"] == "exact"


@pytest.mark.parametrize("predicts", ["x0", "velocity", "edm"])
def test_likelihoods_of_every_schedule(schedule, predicts, monkeypatch):
    """By kernels or, where the schedule's coefficients are too steep for their tables, without."""
    torch.manual_seed(0)
    net = fastlik.nn.MLP(2, width=16, depth=2).double()
    nn.init.normal_(net.out.weight, std=0.1)
    model = fastlik.wrap(net, schedule, predicts, time="log_snr", time_scale=-1 / 8)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    margin = 1e-2 * (schedule.t_max - schedule.t_min)
    options = {"t_min": schedule.t_min + margin, "t_max": schedule.t_max - margin, "tolerance": 1e-2}
    fast = fastlik.ode_nll(model, x, **options)
    monkeypatch.setattr(solve, "fuse", lambda *arguments: "not now")
    slow = fastlik.ode_nll(model, x, **options)
    assert torch.equal(fast.status, slow.status) and torch.equal(fast.nfe, slow.nfe)
    torch.testing.assert_close(fast.nats, slow.nats, rtol=0, atol=1e-6, equal_nan=True)


def test_tables_that_do_not_fit_are_no_error(caplog):
    """A velocity of VP's own clock is steep at both ends."""
    torch.manual_seed(0)
    net = fastlik.nn.MLP(2, width=16, depth=2)
    model = fastlik.wrap(net, fastlik.VP(), "velocity")
    with caplog.at_level("DEBUG", logger="fastlik"):
        for method in ("adams", "rk45"):
            assert fastlik.ode_nll(model, torch.randn(3, 2), method=method).converged.all()
    assert "not smooth functions of the solver's clock" in caplog.text


def test_gradients_and_targets_take_the_general_path(monkeypatch):
    model = model_of()
    x, _, _ = problem(model, 3)
    monkeypatch.setattr(Fused, "integrate_adams", None)
    fastlik.ode_nll(model, x.requires_grad_(), tolerance=1e-2).nats.sum().backward()
    assert x.grad.isfinite().all()
    fastlik.ode_nll(model, x.detach(), divergence="hutchinson", target_stderr=1.0)


def test_errors_of_the_network_are_those_of_the_callers_rows():
    model = model_of()
    with pytest.raises(ValueError, match=r"got \(2, 5\)"):
        fastlik.ode_nll(model, torch.zeros(2, 5, dtype=torch.float64))

    class OnlyFour(nn.Module):
        def forward(self, x, t):
            return 0.5 * x * torch.ones(4, 1, dtype=x.dtype)

    narrow = fastlik.wrap(OnlyFour(), fastlik.VP(), "noise")
    x = torch.ones(4, 3, dtype=torch.float64)
    assert fastlik.ode_nll(narrow, x).converged.all()


def test_the_log_says_why_there_is_no_kernel(caplog):
    ring = fastlik.testing.GaussianMixture.ring()
    with caplog.at_level(logging.DEBUG, logger="fastlik"):
        fastlik.ode_nll(ring.model(fastlik.VP(), moments=True), ring.sample(2))
    assert "no kernel integrates this model's ODE: " in caplog.text
