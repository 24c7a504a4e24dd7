"""Captured graphs: live parameters, modes, dtypes, shapes, and torch.compile."""

import pytest
import torch
from torch import nn

import fastlik
from fastlik.derivatives.jets import capture

from .networks import DiT, FusedAttention, randomised
from .oracle import assert_close

DOUBLE = torch.float64


@pytest.fixture(scope="module")
def net():
    return randomised(fastlik.nn.MLP(4, width=8, depth=2))


def inputs(batch=3):
    generator = torch.Generator().manual_seed(1)
    x, v = torch.randn(2, batch, 4, dtype=DOUBLE, generator=generator)
    return x, v, torch.linspace(0.2, 0.9, batch, dtype=DOUBLE)


def agree(graph, x, v, time):
    truth = fastlik.jvp(lambda x: graph.module(x, time), x, v, backend="torch")
    with torch.no_grad():
        result = fastlik.jvp(lambda x: graph(x, time), x, v, backend="jets")
    for ours, expected in zip(result, truth, strict=True):
        assert_close(ours, expected.detach(), tolerance=1e-10 if x.dtype == DOUBLE else 1e-5)
    assert torch.equal(graph(x, time), graph.module(x, time))


@pytest.mark.parametrize("batch", [0, 1, 2, 7])
def test_other_batch_sizes(net, batch):
    graph = capture(net, *inputs()[::2])
    agree(graph, *inputs(batch))
    assert len(graph.programs) == 1


def test_weights_are_those_of_the_module_at_the_time_of_the_call():
    net = randomised(fastlik.nn.MLP(4, width=8, depth=2))
    graph = capture(net, *inputs()[::2])
    program = next(iter(graph.programs.values()))
    with torch.no_grad():
        net.out.weight.mul_(2)
    agree(graph, *inputs())
    net.out.bias = nn.Parameter(torch.ones(4, dtype=DOUBLE))
    agree(graph, *inputs())
    net.load_state_dict(randomised(fastlik.nn.MLP(4, width=8, depth=2), seed=9).state_dict())
    agree(graph, *inputs())
    assert list(graph.programs.values()) == [program]
    net.float()
    agree(graph, *(each.float() for each in inputs()))


def test_modes_and_constants_of_the_module():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.dropout, self.scale = nn.Linear(4, 4), nn.Dropout(0.5), 2.0

        def forward(self, x, time):
            return self.dropout(self.layer(x)) * self.scale

    net = randomised(Scaled())
    graph = capture(net, *inputs()[::2])
    agree(graph, *inputs())
    net.scale = 3.0
    agree(graph, *inputs())
    net.train()
    x, v, time = inputs(64)
    value, product = fastlik.jvp(lambda x: graph(x, time), x, v, backend="jets")
    assert ((value == 0) == (product == 0)).all() and (value == 0).any()
    net.eval()
    agree(graph, *inputs())


def test_constants_carry_no_tangents(net):
    """The embedding of the time is computed once, not once a tangent."""
    from torch.utils.flop_counter import FlopCounterMode

    x, v, time = inputs()
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        net(x, time)
    for f in (net, capture(net, x, time)):
        with torch.no_grad(), FlopCounterMode(display=False) as count:
            fastlik.jvp(lambda x, f=f: f(x, time), x, torch.stack([v] * 4), backend="jets")
        shift = 2 * x.shape[0] * net.shift.weight.numel()
        assert count.get_total_flops() == 5 * (forward.get_total_flops() - shift) + shift


def test_a_buffer_that_the_module_writes_in_place_is_refused_or_followed():
    class Writing(nn.Module):
        def forward(self, x, time):
            h = x.sin()
            h[:, 0] = h[:, 1] * time
            h.add_(x)
            return h

    agree(capture(Writing(), *inputs()[::2]), *inputs())


def compiled(f, backend):
    torch._dynamo.reset()
    return torch.compile(f, fullgraph=True, backend=backend)


def test_jets_of_a_closure_compile_and_train(net):
    """Linear layers and activations need no capture."""
    net = randomised(fastlik.nn.MLP(4, width=8, depth=2)).requires_grad_()
    x, v, time = inputs()

    def loss(x, v):
        s, jv = fastlik.jvp(lambda x: net(x, time), x, v)
        return s.square().sum() + (v * jv).sum()

    truth = torch.autograd.grad(loss(x, v), list(net.parameters()), materialize_grads=True)
    found = torch.autograd.grad(
        compiled(loss, "aot_eager")(x, v), list(net.parameters()), materialize_grads=True
    )
    for ours, expected in zip(found, truth, strict=True):
        assert_close(ours, expected)


@pytest.mark.parametrize("recording", [False, True])
@pytest.mark.parametrize("name", ["unet", "dit"])
def test_captured_networks_compile_in_one_graph(name, recording):
    net, shape = (fastlik.nn.UNet(2, width=4) if name == "unet" else DiT(FusedAttention)), (2, 2, 4, 4)
    net = randomised(net).requires_grad_(recording)
    generator = torch.Generator().manual_seed(1)
    x, v = torch.randn(2, *shape, dtype=DOUBLE, generator=generator)
    time = torch.tensor([0.3, 0.8], dtype=DOUBLE)
    graph = capture(net, x, time)
    with torch.set_grad_enabled(recording):
        truth = fastlik.jvp(lambda x: net(x, time), x, v)
        result = compiled(lambda x, v: fastlik.jvp(lambda x: graph(x, time), x, v), "eager")(x, v)
    for ours, expected in zip(result, truth, strict=True):
        assert_close(ours, expected)
    assert result[1].requires_grad == recording


def test_compiling_what_was_not_captured_says_so(net):
    graph = capture(net, *inputs()[::2])
    x = torch.zeros(2, 4)
    with pytest.raises(Exception, match="capture the module for these inputs"):
        compiled(lambda x: fastlik.jvp(lambda x: graph(x, x[:, 0]), x, x), "eager")(x)


def test_a_captured_schedule_keeps_no_traced_table():
    """DDPM tables are kept by device; what export traces in their place holds no numbers."""
    table = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 50, dtype=torch.float64), 0)
    net = fastlik.nn.MLP(3, width=8, depth=2)
    model = fastlik.wrap(net, fastlik.DiscreteVP(table), "noise", time="log_snr")
    x, t = torch.randn(3, 3), torch.full((3,), 5.0, dtype=torch.float64)
    graph = capture(model, x, t)
    expected = model(x, t)
    assert type(expected) is torch.Tensor and expected.isfinite().all()
    value, _ = fastlik.jvp(lambda x: graph(x, t), x, x)
    torch.testing.assert_close(value, expected)
