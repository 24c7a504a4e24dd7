"""What a probability-flow ODE and its divergence need of every network."""

import json

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastlik.nn import MLP, DiT, UNet, build, describe

NETWORKS = {
    "mlp": (lambda: MLP(3, width=16, depth=2), (3,), {}),
    "mlp-condition": (lambda: MLP(3, width=16, condition_dim=2), (3,), {"condition": (2,)}),
    "unet": (lambda: UNet(2, width=8, groups=4), (2, 6, 4), {}),
    "unet-label": (lambda: UNet(1, width=8, multipliers=(1, 1, 2), classes=5), (1, 8, 4), {"label": ()}),
    "unet-flat": (lambda: UNet(1, width=8, multipliers=(1,), attention=False), (1, 5, 3), {}),
    "dit": (lambda: DiT(2, width=16, depth=2, heads=2), (2, 6, 4), {}),
    "dit-label": (lambda: DiT(1, patch=3, width=8, depth=1, heads=1, classes=5), (1, 3, 6), {"label": ()}),
}  # fmt: skip


@pytest.fixture(autouse=True)
def differentiable_attention():
    """The only one of PyTorch's attentions that torch.func.jvp can pass; fastlik's jets pass all."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def _randomise(net):
    """Give the zero-initialised layers weights too."""
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    return net.double()


@pytest.fixture(params=NETWORKS)
def case(request):
    """(network, x, time, condition)."""
    torch.manual_seed(3)
    make, event, shapes = NETWORKS[request.param]
    condition = {
        name: torch.randint(5, (4,)) if name == "label" else torch.randn(4, *shape)
        for name, shape in shapes.items()
    }
    net = _randomise(make())
    x = torch.randn(4, *event, dtype=torch.float64)
    return net, x, torch.randn(4, dtype=torch.float64), condition


def test_shape_and_sensitivity_to_every_input(case):
    net, x, time, condition = case
    out = net(x, time, **condition)
    assert out.shape == x.shape
    assert not torch.allclose(net(x, time + 0.1, **condition), out)
    for name, value in condition.items():
        other = (value + 1) % 5 if name == "label" else value + 1
        assert not torch.allclose(net(x, time, **{name: other}), out)


def test_rows_are_independent(case):
    net, x, time, condition = case
    out = net(x, time, **condition)
    alone = net(x[2:3], time[2:3], **{k: v[2:3] for k, v in condition.items()})
    torch.testing.assert_close(alone[0], out[2])


def test_jvp_and_vjp_agree_with_finite_differences(case):
    net, x, time, condition = case
    v = torch.randn_like(x)

    def f(x):
        return net(x, time, **condition)

    value, tangent = torch.func.jvp(f, (x,), (v,))
    torch.testing.assert_close(value, f(x))
    h = 1e-5  # truncation h^2 f''' / 6: some 1e-8 at these weights
    difference = (f(x + h * v) - f(x - h * v)) / (2 * h)
    torch.testing.assert_close(tangent, difference, rtol=0, atol=1e-6)
    w = torch.randn_like(x)
    (back,) = torch.func.vjp(f, x)[1](w)
    torch.testing.assert_close((back * v).sum(), (w * tangent).sum())


def test_tangents_batch_under_vmap(case):
    net, x, time, condition = case
    v = torch.randn(3, *x.shape, dtype=x.dtype)

    def along(v):
        return torch.func.jvp(lambda x: net(x, time, **condition), (x,), (v,))[1]

    batched = torch.func.vmap(along)(v)
    torch.testing.assert_close(batched, torch.stack([along(row) for row in v]))


def test_smooth_in_time(case):
    net, x, time, condition = case

    def at(time):
        return torch.func.jvp(lambda t: net(x, t, **condition), (time,), (torch.ones_like(time),))[1]

    h = 1e-5
    difference = (net(x, time + h, **condition) - net(x, time - h, **condition)) / (2 * h)
    torch.testing.assert_close(at(time), difference, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_untrained_networks_predict_zero(name):
    make, event, shapes = NETWORKS[name]
    condition = {
        k: torch.zeros(2, dtype=torch.long) if k == "label" else torch.ones(2, *shape)
        for k, shape in shapes.items()
    }
    assert not make()(torch.randn(2, *event), torch.zeros(2), **condition).any()


@pytest.mark.parametrize("name", NETWORKS)
def test_description_rebuilds_the_network(name):
    net = NETWORKS[name][0]()
    again = build(json.loads(json.dumps(describe(net))))
    assert type(again) is type(net)
    assert again.config == net.config
    again.load_state_dict(net.state_dict())


def test_foreign_networks_have_no_description():
    assert describe(nn.Linear(2, 2)) is None

    class Mine(MLP):
        pass

    assert describe(Mine(2)) is None
    with pytest.raises(ValueError, match="'MLP', 'UNet'"):
        build({"name": "Linear"})


def test_bad_inputs_say_what_is_wrong():
    with pytest.raises(ValueError, match=r"shape \(B, 3\), got \(2, 4\)"):
        MLP(3)(torch.zeros(2, 4), torch.zeros(2))
    with pytest.raises(ValueError, match="condition of 2 coordinates, got 0; pass condition="):
        MLP(3, condition_dim=2)(torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(ValueError, match="'relu' is unknown.*'silu'"):
        MLP(3, activation="relu")
    with pytest.raises(ValueError, match=r"multiples of 2, got \(7, 8\)"):
        UNet(1)(torch.zeros(2, 1, 7, 8), torch.zeros(2))
    with pytest.raises(ValueError, match=r"shape \(B, 1, H, W\)"):
        UNet(1)(torch.zeros(2, 3, 8, 8), torch.zeros(2))
    with pytest.raises(ValueError, match="3 classes: pass label="):
        UNet(1, classes=3)(torch.zeros(2, 1, 8, 8), torch.zeros(2))
    with pytest.raises(ValueError, match=r"multiples of 2, got \(7, 8\)"):
        DiT(1)(torch.zeros(2, 1, 7, 8), torch.zeros(2))
    with pytest.raises(ValueError, match=r"shape \(B, 1, H, W\)"):
        DiT(1)(torch.zeros(2, 3, 8, 8), torch.zeros(2))
    with pytest.raises(ValueError, match="it takes no label"):
        DiT(1)(torch.zeros(2, 1, 8, 8), torch.zeros(2), label=torch.zeros(2).long())
    with pytest.raises(ValueError, match="multiple of 4 and of heads"):
        DiT(1, width=24, heads=5)
    with pytest.raises(ValueError, match="it takes no label"):
        UNet(1)(torch.zeros(2, 1, 8, 8), torch.zeros(2), label=torch.zeros(2).long())


def test_dropout_acts_in_training_only():
    net = _randomise(UNet(1, width=8, dropout=0.5)).float()
    x, time = torch.randn(2, 1, 8, 8), torch.zeros(2)
    assert not torch.equal(net(x, time), net(x, time))
    net.eval()
    assert torch.equal(net(x, time), net(x, time))
