"""Everything that may change a recognised network's result is noticed, whether or not the network is run."""

from types import MethodType

import pytest
import torch
from torch import nn

import fastlik
from fastlik.ops.mlp.snapshot import Snapshot


class Net(nn.Module):
    """All kinds of state that PyTorch's modules have."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(2, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 2))

    def forward(self, x, t):
        return self.layers(x)


def plain():
    """A network of PyTorch's modules alone."""
    return Net().layers


def hooked(net):
    net[2].register_forward_hook(lambda module, given, result: 2 * result)


def pre_hooked(net):
    net[2].register_forward_pre_hook(lambda module, given: (2 * given[0],))


def edit_in_place(net):
    net[0].weight.data[1, 1] = torch.nextafter(net[0].weight.data[1, 1], torch.tensor(10.0))


def step(net):
    net(torch.ones(1, 2)).sum().backward()
    torch.optim.SGD(net.parameters(), 0.1).step()


def other_storage(net):
    net[0].bias.data = net[0].bias.data + 1


def smaller(net):
    net[3].bias.data = torch.zeros(1)


CHANGES = {
    "an edit of .data": edit_in_place,
    "an optimiser's step": step,
    "another storage": other_storage,
    "another shape": smaller,
    "another precision": lambda net: net.double(),
    "another parameter": lambda net: setattr(net[0], "bias", nn.Parameter(net[0].bias.clone())),
    "another module": lambda net: net.__setitem__(2, nn.Tanh()),
    "one module more": lambda net: net.append(nn.Tanh()),
    "an attribute": lambda net: setattr(net[2], "approximate", "tanh"),
    "an attribute that cannot be compared": lambda net: setattr(net[1], "eps", torch.ones(3)),
    "a method": lambda net: setattr(net[2], "forward", MethodType(lambda self, x: x, net[2])),
    "a hook": hooked,
    "a hook before": pre_hooked,
    "training": lambda net: net.train(not net.training),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_seen_without_a_run(change):
    net = plain()
    snapshot = Snapshot(net)
    assert snapshot.complete and snapshot.holds(net)
    CHANGES[change](net)
    assert not snapshot.holds(net)


def test_a_class_that_is_patched(monkeypatch):
    net = plain()
    snapshot = Snapshot(net)
    monkeypatch.setattr(nn.GELU, "forward", lambda self, x: x)
    assert not snapshot.holds(net)


def test_code_that_may_read_anything_is_not_trusted():
    assert not Snapshot(Net()).complete
    net = plain()
    hooked(net)
    assert not Snapshot(net).complete
    net = plain()
    nn.utils.parametrizations.weight_norm(net[0])
    assert not Snapshot(net).complete
    net = plain()
    snapshot = Snapshot(net)
    handle = nn.modules.module.register_module_forward_hook(lambda *arguments: None)
    try:
        assert not snapshot.complete
    finally:
        handle.remove()
    assert snapshot.complete


def test_strided_weights_and_numbers_that_are_not():
    net = plain()
    net[0].weight.data = net[0].weight.data.T.contiguous().T
    net[1].weight.data[0] = torch.nan
    snapshot = Snapshot(net)
    assert snapshot.holds(net)
    net[0].weight.data[7, 1] += 1
    assert not snapshot.holds(net)
    net[0].weight.data = torch.ones(8, 4)[:, ::2]
    assert not Snapshot(net).holds(net)  # gaps between its numbers: never taken for known


WAYS = {
    "weights": lambda model: model.net.out.weight.data.mul_(2),
    "activation": lambda model: setattr(model.net, "activation", nn.Tanh()),
    "hook": lambda model: model.net.out.register_forward_hook(lambda module, given, result: 2 * result),
    "output": lambda model: setattr(model, "output", lambda out: 2 * out),
    "call": lambda model: setattr(model, "call", lambda net, x, t: net(x, t + 0.5)),
    "network": lambda model: setattr(model, "net", fastlik.nn.MLP(2, width=16, depth=3)),
}


@pytest.mark.parametrize("way", WAYS)
def test_likelihoods_follow_the_network(way):
    """There and back: a changed network, and the one that it was before."""

    def make():
        torch.manual_seed(0)
        net = fastlik.nn.MLP(2, width=24, depth=3)
        nn.init.normal_(net.out.weight, std=0.2)
        return fastlik.wrap(net, fastlik.VP(), "noise", time="log_snr", time_scale=-1 / 8)

    x = torch.tensor([[0.3, -0.2], [1.0, 0.5]])
    model, fresh = make(), make()
    before = fastlik.ode_nll(model, x).nats
    assert torch.equal(fastlik.ode_nll(model, x).nats, before)
    torch.manual_seed(1)
    WAYS[way](model)
    torch.manual_seed(1)
    WAYS[way](fresh)
    after = fastlik.ode_nll(model, x).nats
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, fastlik.ode_nll(fresh, x, mode="jvp").nats, rtol=0, atol=1e-3)
    if way in ("output", "call"):
        setattr(model, way, None)
        assert torch.equal(fastlik.ode_nll(model, x).nats, before)
