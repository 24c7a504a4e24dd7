"""Likelihoods on an accelerator: the CPU's numbers, few waits, the same numbers from captured graphs."""

import pytest
import torch

import fastlik
from fastlik.training.network import score_model
from tests.simulated.accelerator import module_to_device, to_device, waits

SCHEDULES = {
    "vp": fastlik.VP(),
    "ve": fastlik.VE(),
    "edm": fastlik.EDM(),
    "log snr": fastlik.LogSNR(),
    "table": fastlik.DiscreteVP(torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)),
}
X = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.nn.functional.one_hot(torch.arange(6) % 3).double()


def mlp():
    torch.manual_seed(0)
    net = fastlik.nn.MLP(5, width=16, depth=2, condition_dim=3, time_features=8)
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return net.double()


def both(schedule, make=mlp):
    """The same model for the CPU and for the device."""
    host, device = (score_model(make(), schedule, "noise").eval() for _ in range(2))
    return host, module_to_device(device)


def nll(model, x, **options):
    labels = LABELS if x.device.type == "cpu" else to_device(LABELS)
    waits.clear()
    return fastlik.ode_nll(model, x, condition={"condition": labels}, divergence="hutchinson", **options)


def inside(result):
    names = ("nats", "stderr", "discretisation", "nfe", "status")
    return {name: getattr(result, name).inner for name in names}


@pytest.mark.parametrize("name", SCHEDULES)
def test_adams_has_the_numbers_of_the_cpu_and_waits_once_a_block(name):
    host, device = both(SCHEDULES[name])
    expected = nll(host, X, mode="jvp")
    actual = nll(device, to_device(X), mode="jvp")
    torch.testing.assert_close(actual.nats.inner, expected.nats, rtol=1e-10, atol=1e-8)
    assert torch.equal(actual.nfe.inner, expected.nfe)
    nll(device, to_device(X), mode="jvp")  # the constants are on the device by now
    assert not [wait for wait in waits if "copy" in wait and ("solvers" in wait or "schedule" in wait)]
    in_loop = [wait for wait in waits if "solvers/adams" in wait]
    assert len(in_loop) <= int(expected.nfe.max()) / 8 + 4
    assert len(waits) <= len(in_loop) + 12


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "jvp"},
        {"mode": "jvp", "probes": 2, "probe_mode": "frozen"},
        {"mode": "jvp", "method": "rk4", "tolerance": 0.1, "probe_mode": "frozen"},
        {"mode": "jvp", "method": "rk4", "tolerance": 0.1},
    ],
)
def test_captured_graphs_give_the_same_numbers(graphs, monkeypatch, options):
    _, device = both(SCHEDULES["vp"])
    captured = inside(nll(device, to_device(X), **options))
    assert sum(graphs) > 10
    graphs.clear()
    for method in ("adams", "runge_kutta"):
        monkeypatch.setattr(f"fastlik.likelihood.{method}.has_graphs", lambda device: False)
    eager = inside(nll(device, to_device(X), **options))
    assert not graphs
    for name, value in captured.items():
        torch.testing.assert_close(value, eager[name], rtol=1e-12, atol=1e-12, equal_nan=True)


def test_rows_that_take_longer_get_a_graph_of_their_own(graphs):
    """Far off the data the steps are shorter: once half of the rows have finished the rest goes on alone."""
    _, device = both(SCHEDULES["vp"])
    x = X.clone()
    x[0] *= 1000
    result = nll(device, to_device(x), mode="jvp", tolerance=1e-5)
    nfe = result.nfe.inner
    assert len(graphs) >= 2 and nfe[0] > nfe[1:].max() + 16
    graphs.clear()
    alone = fastlik.ode_nll(
        device, to_device(x[:1]), condition={"condition": to_device(LABELS[:1])}, divergence="hutchinson",
        mode="jvp", tolerance=1e-5,
    )  # fmt: skip
    torch.testing.assert_close(result.nats.inner[:1], alone.nats.inner, rtol=1e-8, atol=0)


class Waiting(torch.nn.Module):
    """A network that looks at its values."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, x, time, condition):
        return self.weight * x if float(x.detach().sum()) < 1e9 else x


def test_a_network_that_waits_is_run_without_a_graph(graphs):
    _, device = both(SCHEDULES["vp"], Waiting)
    with pytest.warns(UserWarning, match="runs without a CUDA graph: _local_scalar_dense .*not permitted"):
        result = nll(device, to_device(X), mode="jvp")
    assert result.nats.inner.isfinite().all() and not graphs


def test_adaptive_runge_kutta_waits_once_an_attempt():
    _, device = both(SCHEDULES["vp"])
    nll(device, to_device(X), mode="jvp", method="rk45")
    result = nll(device, to_device(X), mode="jvp", method="rk45")
    attempts = int(result.nfe.inner.max()) / 7 + 2
    assert len([wait for wait in waits if "solvers/" in wait]) <= attempts + 4
    assert not [wait for wait in waits if "copy" in wait and ("solvers" in wait or "flow" in wait)]
