"""The kernels of plain MLPs on a GPU against the float64 reference and against the kernels for the CPU."""

import logging
from dataclasses import replace

import pytest
import torch
from torch import nn

import fastlik
from fastlik.likelihood.flow import Trace
from fastlik.likelihood.fused import fuse
from fastlik.likelihood.problem import ADAMS_CLOCK
from fastlik.ops.mlp import Divergence, Ode, recognise, reference
from fastlik.ops.mlp.chain import chain_of
from fastlik.ops.mlp.grid import runge_kutta
from fastlik.ops.mlp.packed_chain import PackedChain
from fastlik.solvers.adaptive import Tolerance
from fastlik.solvers.status import Status
from fastlik.solvers.tableau import RK4, RK45

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

ACCURACY = {"fp16": 5e-3, "fp16x2": 1e-5, "fp32": 1e-5}
EXACT = Trace(True, 1, "rademacher", True, 0, "auto")
TWO = Trace(False, 2, "rademacher", True, 3, "auto")
TOLERANCE = Tolerance(0.0, 4e-3, 3e-3)
STEPS = {"order": 4, "first_step": 0.02, "max_steps": 500}


def ode(u):
    return Ode(0.1 + u, 1 + 0.2 * u.sin(), -0.5 * u, 0.7 + 0.1 * u)


SIZES = [(2, 64, 3), (2, 128, 4), (13, 100, 2), (16, 256, 8), (64, 512, 2)]


@pytest.mark.parametrize("precision", ACCURACY)
@pytest.mark.parametrize("rows", [0, 1, 9, 1000, 20_000])
@pytest.mark.parametrize(("dim", "width", "depth"), SIZES)
def test_states_and_divergences(dim, width, depth, rows, precision):
    check(dim, width, depth, rows, precision, Divergence("exact"))


@pytest.mark.parametrize("precision", ACCURACY)
@pytest.mark.parametrize("rows", [1, 20_000])
@pytest.mark.parametrize(
    ("dim", "width", "depth"), [(2, 48, 1), (3, 100, 2), (17, 512, 1), (64, 256, 2), (64, 512, 2)]
)
def test_closed_forms_of_the_trace(dim, width, depth, rows, precision):
    check(dim, width, depth, rows, precision, Divergence("closed form"))


def check(dim, width, depth, rows, precision, divergence):
    torch.manual_seed(0)
    net = fastlik.nn.MLP(dim, width=width, depth=depth).double()
    nn.init.normal_(net.out.weight, std=0.5 * width**-0.5)
    times = torch.linspace(0, 1, 5, dtype=torch.float64)
    program = recognise(net, dim, {}, times, torch.float64, torch.device("cpu"))
    table = runge_kutta(ode, times, RK4.a, RK4.b, RK4.c)
    z = torch.randn(rows, dim)
    chain = chain_of(recognise(net.cuda(), dim, {}, times, torch.float64, torch.device("cuda")))
    packed = PackedChain(chain, torch.device("cuda"), precision)
    latent, q, first_bad = packed.integrate_grid(
        z.cuda(), {}, table, divergence, torch.arange(rows, device="cuda")
    )
    judged = slice(max(0, rows - 64), rows)  # the last rows of the last block too
    expected = reference.integrate_grid(program, z[judged].double(), {}, table, None, True)
    tolerance = {"rtol": ACCURACY[precision], "atol": ACCURACY[precision]}
    torch.testing.assert_close(latent[judged].cpu().double(), expected[0], **tolerance)
    torch.testing.assert_close(q[judged].cpu(), expected[1], **tolerance)
    assert bool((first_bad == -1).all())


def model_of(dim=2, **options):
    torch.manual_seed(0)
    net = fastlik.nn.MLP(dim, **options)
    nn.init.normal_(net.out.weight, std=0.1)
    return fastlik.wrap(net, fastlik.VP(), "noise", time="log_snr", time_scale=-1 / 8).eval()


def problem(model, rows):
    u = ADAMS_CLOCK.u(model.schedule.angle(torch.tensor([1e-3, 0.999], dtype=torch.float64))).tolist()
    z = torch.randn(rows, model.net.config["dim"], generator=torch.Generator().manual_seed(1))
    return z, u, torch.arange(rows)


def of(device, model, z, u):
    found = fuse(model.to(device), ADAMS_CLOCK, z.to(device), u, {})
    assert not isinstance(found, str), found
    return found


@pytest.mark.parametrize(
    ("trace", "depth"),
    [(EXACT, 4), (EXACT, 2), (TWO, 4), (None, 4)],
    ids=["exact", "closed form", "two probes", "none"],
)
@pytest.mark.parametrize("method", ["adams", "rk45"])
def test_steps_are_those_of_the_kernels_for_the_cpu(method, trace, depth):
    model = model_of(condition_dim=0, width=128, depth=depth)
    z, u, rows = problem(model, 3000)
    found = []
    for device in ("cpu", "cuda"):
        kernel, here = of(device, model, z, u), (z.to(device), *u)
        if method == "adams":
            end, values = kernel.integrate_adams(*here, TOLERANCE, trace, rows.to(device), **STEPS)
        else:
            tolerance = Tolerance(3e-4, 3e-4, 1e-3)
            end = kernel.integrate_adaptive(*here, RK45, tolerance, trace, rows.to(device))
            values = end.y.T if end.q is None else end.q.T
        found.append((end.nfe.cpu(), end.status.cpu(), end.y.cpu(), values[:1].cpu()))
    (steps, status, y, q), (steps2, status2, y2, q2) = found
    assert torch.equal(status, status2) and bool((status == Status.DONE).all())
    alike = steps == steps2  # rounding may turn an acceptance here and there
    assert float(alike.double().mean()) > 0.8
    torch.testing.assert_close(y2[alike], y[alike], rtol=0, atol=2e-4)
    torch.testing.assert_close(q2[:, alike], q[:, alike], rtol=1e-2, atol=2e-3)


def test_rows_do_not_depend_on_their_neighbours():
    model = model_of().cuda()
    z, u, rows = (
        value.cuda() if isinstance(value, torch.Tensor) else value for value in problem(model, 50_000)
    )
    z[::7] *= 3
    z[100], z[49_999, 1] = torch.nan, torch.inf
    kernel = of("cuda", model, z, u)
    end, integral = kernel.integrate_adams(z, *u, TOLERANCE, TWO, rows, **STEPS)
    bad = [100, 49_999]
    assert end.status[bad].tolist() == [Status.NON_FINITE] * 2
    assert int((end.status == Status.DONE).sum()) == 49_998
    for index in (
        torch.arange(0, 50_000, 13, device="cuda").flip(0),
        torch.tensor([7, 99, 101, 49_998]).cuda(),
    ):
        part, some = kernel.integrate_adams(z[index], *u, TOLERANCE, TWO, index, **STEPS)
        assert torch.equal(some, integral[:, index]) and torch.equal(part.y, end.y[index])
        assert torch.equal(part.nfe, end.nfe[index])


@pytest.mark.parametrize("method", ["adams", "rk45", "tsit5"])
def test_ode_nll_takes_the_kernels(method, caplog):
    model = model_of(condition_dim=3)
    x, condition = torch.randn(500, 2), torch.randn(500, 3)
    here = fastlik.ode_nll(model, x, condition={"condition": condition}, method=method, tolerance=1e-5)
    with caplog.at_level(logging.DEBUG, "fastlik"):
        there = fastlik.ode_nll(
            model.cuda(), x.cuda(), condition={"condition": condition.cuda()}, method=method, tolerance=1e-5
        )
    assert "no kernel" not in caplog.text
    torch.testing.assert_close(there.nats.cpu(), here.nats, rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    ("method", "precision"),
    [*(("grid", name) for name in ACCURACY), ("adams", "fp16"), ("adams", "fp16x2"), ("rk45", "fp16x2")],
)
@pytest.mark.parametrize("trace", [EXACT, TWO], ids=["closed form", "two probes"])
def test_sanitized(method, precision, trace):
    """Few rows by every kernel: scripts/gpu_check.sh runs these under compute-sanitizer."""
    model = model_of(width=64, depth=2).cuda()
    z, u, rows = (value.cuda() if isinstance(value, torch.Tensor) else value for value in problem(model, 37))
    kernel = of("cuda", model, z, u)
    packed = PackedChain(kernel.packed.chain, z.device, precision)
    kernel = replace(kernel, packed=packed)
    if method == "grid":
        end = kernel.integrate_grid(z, torch.linspace(*u, 9, dtype=torch.float64), RK4, trace, rows)
    elif method == "adams":
        end, _ = kernel.integrate_adams(z, *u, TOLERANCE, trace, rows, **STEPS)
    else:
        end = kernel.integrate_adaptive(z, *u, RK45, Tolerance(1e-2, 1e-2, 1e-1), trace, rows)
    assert bool((end.status == Status.DONE).all())


def test_samples():
    model = model_of()
    here = fastlik.sample(model, (300, 2), tolerance=1e-5)
    torch.testing.assert_close(
        fastlik.sample(model.cuda(), (300, 2), tolerance=1e-5).cpu(), here, rtol=0, atol=1e-3
    )


@pytest.mark.parametrize("captured", [False, True])
def test_runs_on_the_callers_stream_and_in_graphs(captured):
    model = model_of().cuda()
    z, u, rows = (value.cuda() if isinstance(value, torch.Tensor) else value for value in problem(model, 300))
    kernel = of("cuda", model, z, u)

    def solve():
        return kernel.integrate_adams(z, *u, TOLERANCE, TWO, rows, **STEPS)

    end, integral = solve()
    torch.cuda.synchronize()
    if captured:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            again, values = solve()
        for _ in range(2):
            values.zero_()
            graph.replay()
    else:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(10_000_000)  # the default stream would be done before
            again, values = solve()
        stream.synchronize()
    assert torch.equal(again.y, end.y) and torch.equal(values, integral)
