"""Likelihoods by the CUDA kernels, their own source executed on the CPU, against the kernels for the CPU."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import fastlik
from fastlik.likelihood import fused
from fastlik.likelihood.flow import Trace
from fastlik.likelihood.fused import fuse
from fastlik.likelihood.problem import ADAMS_CLOCK
from fastlik.ops.mlp.packed_chain import PackedChain
from fastlik.solvers.adaptive import Tolerance
from fastlik.solvers.status import Status
from fastlik.solvers.tableau import RK45, TSIT5

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
TOLERANCE = Tolerance(0.0, 4e-3, 3e-3)
STEPS = {"first_step": 0.02, "max_steps": 500}


def model_of(dim=3, **options):
    torch.manual_seed(0)
    net = fastlik.nn.MLP(dim, **{"width": 24, "depth": 3, **options})
    nn.init.normal_(net.out.weight, std=0.1)
    nn.init.normal_(net.out.bias, std=0.1)
    return fastlik.wrap(net, fastlik.VP(), "noise", time="log_snr", time_scale=-1 / 8).eval()


def rows_of(model, count, width=0):
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(count, model.net.config["dim"], generator=generator)
    return z, {"condition": torch.randn(count, width, generator=generator)} if width else {}


def ends(model):
    return ADAMS_CLOCK.u(model.schedule.angle(torch.tensor([1e-3, 0.999], dtype=torch.float64))).tolist()


@pytest.fixture
def on_gpu(emulator, monkeypatch):
    """on_gpu(True): likelihoods of CPU tensors go to the CUDA kernels from now on."""
    return lambda value=True: monkeypatch.setattr(fused, "_by_cuda", lambda z: value)


def both(on_gpu, model, z, u, condition):
    """The fused ODE by the kernels for the CPU and for CUDA."""
    found = []
    for gpu in (False, True):
        on_gpu(gpu)
        fused._CACHE.clear()
        found.append(fuse(model, ADAMS_CLOCK, z, u, condition))
    assert type(found[0].packed) is not PackedChain is type(found[1].packed)
    return found


def same_steps(end, expected):
    """The rows that took as many steps.  Rounding may turn an acceptance here and there."""
    for name in ("status", "t"):
        assert torch.equal(getattr(end, name), getattr(expected, name)), name
    alike = (end.nfe == expected.nfe) & (end.rejected == expected.rejected)
    assert float(alike.double().mean()) > 0.8
    return alike


@pytest.mark.parametrize(
    ("trace", "order", "depth"),
    [*((name, 4, 3) for name in TRACES), ("exact", 5, 3), ("exact", 4, 2), ("exact", 4, 1)],
)
def test_adams(on_gpu, trace, order, depth):
    model, trace = model_of(depth=depth, condition_dim=2), TRACES[trace]
    z, condition = rows_of(model, 17, 2)
    u, rows = ends(model), torch.arange(17) * 2**33 + 17
    cpu, gpu = (
        found.integrate_adams(z, *u, TOLERANCE, trace, rows, order=order, **STEPS)
        for found in both(on_gpu, model, z, u, condition)
    )
    alike = same_steps(gpu[0], cpu[0])
    torch.testing.assert_close(gpu[0].y, cpu[0].y, rtol=0, atol=1e-3)
    torch.testing.assert_close(gpu[0].y[alike], cpu[0].y[alike], rtol=0, atol=5e-5)
    torch.testing.assert_close(gpu[0].defect[alike], cpu[0].defect[alike], rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(gpu[1][0, alike], cpu[1][0, alike], rtol=3e-3, atol=3e-5)
    torch.testing.assert_close(gpu[1][1:, alike], cpu[1][1:, alike], rtol=3e-2, atol=1e-4)


@pytest.mark.parametrize(
    ("trace", "tableau", "depth"),
    [
        *(("exact", RK45, 3), ("two", TSIT5, 3), ("frozen", RK45, 3), ("none", TSIT5, 3)),
        *(("exact", TSIT5, 2), ("exact", RK45, 1)),
    ],
)
def test_runge_kutta(on_gpu, trace, tableau, depth):
    model, trace = model_of(depth=depth, condition_dim=2), TRACES[trace]
    z, condition = rows_of(model, 17, 2)
    u, rows = ends(model), torch.arange(17) * 17
    tolerance = Tolerance(3e-4, 3e-4, 1e-3)
    cpu, gpu = (
        found.integrate_adaptive(z, *u, tableau, tolerance, trace, rows)
        for found in both(on_gpu, model, z, u, condition)
    )
    alike = same_steps(gpu, cpu)
    torch.testing.assert_close(gpu.y[alike], cpu.y[alike], rtol=0, atol=5e-5)
    torch.testing.assert_close(gpu.defect[alike], cpu.defect[alike], rtol=1e-2, atol=1e-4)
    if trace is not None:
        torch.testing.assert_close(gpu.q[alike], cpu.q[alike], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("dim", "depth"), [(3, 3), (64, 2)])
def test_likelihoods_to_single_precision(on_gpu, dim, depth):
    """1e-5 nats/dim from float64, discretisation included; in closed form the exact trace is the default."""
    model = model_of(dim, depth=depth)
    x = rows_of(model, 11)[0]
    on_gpu()
    actual = fastlik.ode_nll(model, x, tolerance=3e-6)
    on_gpu(False)
    exact = {"backend": "torch", "divergence": "exact", "prior": "standard"}
    expected = fastlik.ode_nll(model.double(), x.double(), tolerance=1e-8, **exact)
    assert actual.protocol["divergence"] == "exact" and bool(actual.converged.all())
    assert float((actual.nats - expected.nats).abs().max()) < 1e-5 * dim


@pytest.mark.parametrize("method", ["adams", "rk45"])
@pytest.mark.parametrize(("trace", "depth"), [("two", 3), ("exact", 2)])
def test_rows_do_not_depend_on_their_neighbours(on_gpu, method, trace, depth):
    """Rows pass through blocks that are refilled as rows end; some never had a number."""
    model, trace = model_of(depth=depth), TRACES[trace]
    x = rows_of(model, 25)[0] * torch.linspace(0.1, 3, 25)[:, None]
    x[5], x[20, 1], x[24] = torch.nan, torch.inf, -torch.inf
    bad = ~x.isfinite().all(1)
    on_gpu()
    u, rows = ends(model), torch.arange(25)
    found = fuse(model, ADAMS_CLOCK, x, u, {})
    assert isinstance(found.packed, PackedChain)

    def solve(index):
        z = x[index]
        if method == "adams":
            end, integral = found.integrate_adams(z, *u, TOLERANCE, trace, rows[index], order=4, **STEPS)
            return end, integral.T
        end = found.integrate_adaptive(z, *u, RK45, Tolerance(1e-3, 1e-3, 1e-2), trace, rows[index])
        return end, end.q

    end, values = solve(rows)
    assert end.status[bad].tolist() == [Status.NON_FINITE] * 3
    assert end.status[~bad].tolist() == [Status.DONE] * 22
    assert len(end.nfe.unique()) > 2
    for index in (torch.tensor([24, 7, 3]), rows[~bad].flip(0)):
        part, some = solve(index)
        fine = ~bad[index]
        assert torch.equal(some[fine], values[index][fine])
        for name in ("y", "nfe", "steps", "rejected", "defect", "status"):
            assert torch.equal(getattr(part, name)[fine], getattr(end, name)[index][fine]), name


class FiLM(nn.Module):
    """A residual block that the time and a condition modulate, normalised; the output scaled by the time."""

    def __init__(self, dim, width):
        super().__init__()
        self.first, self.last = nn.Linear(dim, width), nn.Linear(width, dim)
        self.film = nn.Linear(3, 2 * width)
        self.norm, self.inner = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x, time, condition):
        x = self.first(x)
        embedding = torch.cat((time[:, None].sin(), condition), 1)
        scale, shift = self.film(embedding).chunk(2, 1)
        x = x + torch.nn.functional.silu(self.inner(self.norm(x) * (1 + scale) + shift))
        return self.last(x) / (1 + time[:, None] ** 2).sqrt()


def test_modulated_residual_networks(on_gpu):
    torch.manual_seed(0)
    model = fastlik.wrap(FiLM(3, 20), fastlik.VP(), "noise", time="log_snr", time_scale=-1 / 8).eval()
    x, condition = torch.randn(9, 3), torch.randn(9, 2)
    on_gpu()
    actual = fastlik.ode_nll(model, x, condition={"condition": condition}, tolerance=1e-5)
    assert isinstance(next(iter(fused._CACHE[model].packed.values())), PackedChain)
    on_gpu(False)
    expected = fastlik.ode_nll(model, x, condition={"condition": condition}, tolerance=1e-5)
    torch.testing.assert_close(actual.nats, expected.nats, rtol=0, atol=5e-5)


@pytest.mark.parametrize("depth", [2, 3])
def test_half_precision_is_asked_for_and_named(on_gpu, depth):
    model = model_of(depth=depth)
    x = rows_of(model, 9)[0]
    with pytest.raises(RuntimeError, match="the kernels for cpu have full precision"):
        fastlik.ode_nll(model, x, precision="fp16")
    with pytest.raises(ValueError, match="goes with method"):
        fastlik.ode_nll(model, x, precision="fp16", method="rk45")
    on_gpu()
    with pytest.raises(RuntimeError, match="target_stderr and gradients"):
        fastlik.ode_nll(model, x, precision="fp16", target_stderr=0.1, divergence="hutchinson")
    half = fastlik.ode_nll(model, x, precision="fp16")
    full = fastlik.ode_nll(model, x, tolerance=2e-3)  # fp16's own: what is left is its rounding
    assert half.protocol["precision"] == "float32, products in float16"
    assert full.protocol["precision"] == "float32"
    assert bool(half.converged.all())
    error = (half.nats - full.nats).abs().mean() / 3
    assert 1e-5 < float(error) < 2e-3


def test_ode_nll_and_sample_take_the_kernels(on_gpu):
    model = model_of(condition_dim=2)
    x, condition = rows_of(model, 9, 2)
    on_gpu()
    actual = fastlik.ode_nll(model, x, condition=condition, tolerance=1e-4)
    drawn = fastlik.sample(model, (5, 3), condition={"condition": condition["condition"][:5]}, tolerance=1e-4)
    assert all(isinstance(packed, PackedChain) for packed in fused._CACHE[model].packed.values())
    on_gpu(False)
    fused._CACHE.clear()
    expected = fastlik.ode_nll(model, x, condition=condition, tolerance=1e-4)
    torch.testing.assert_close(actual.nats, expected.nats, rtol=0, atol=3e-4)
    samples = fastlik.sample(
        model, (5, 3), condition={"condition": condition["condition"][:5]}, tolerance=1e-4
    )
    torch.testing.assert_close(drawn, samples, rtol=0, atol=1e-3)
