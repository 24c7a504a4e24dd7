"""Solvers' steps as CUDA graphs: the eager steps' numbers."""

import pytest
import torch

import fastlik
from fastlik.training.network import score_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.mark.parametrize("mode", ["jvp", "vjp"])
@pytest.mark.parametrize(
    "options", [{}, {"probes": 2, "probe_mode": "frozen"}, {"method": "rk4", "tolerance": 0.1}]
)
@pytest.mark.parametrize("event", [(20,), (1, 8, 8)])
def test_captured_steps_give_the_numbers_of_eager_ones(monkeypatch, event, options, mode):
    torch.manual_seed(0)
    net = fastlik.nn.MLP(20) if event == (20,) else fastlik.nn.UNet(1, width=16)
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    model = score_model(net, fastlik.VP(), "noise").eval().double().cuda()
    x = torch.randn(8, *event, dtype=torch.float64, device="cuda")
    captures = []
    capture = fastlik.solvers.graph.CAPTURES["cuda"]

    def counted(step):
        captures.append(capture(step))
        return captures[-1]

    monkeypatch.setitem(fastlik.solvers.graph.CAPTURES, "cuda", counted)
    options = {"divergence": "hutchinson", "mode": mode, **options}
    captured = fastlik.ode_nll(model, x, **options)
    assert captures
    for method in ("adams", "runge_kutta"):
        monkeypatch.setattr(f"fastlik.likelihood.{method}.has_graphs", lambda device: False)
    eager = fastlik.ode_nll(model, x, **options)
    torch.testing.assert_close(captured.nats, eager.nats, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(captured.stderr, eager.stderr, rtol=1e-6, atol=1e-9, equal_nan=True)
    assert torch.equal(captured.nfe, eager.nfe)
