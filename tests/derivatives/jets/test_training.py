"""Losses of derivatives: gradients by parameters against plain autograd, float64."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import fastlik

from .networks import DiT, FusedAttention, randomised
from .oracle import assert_close

DOUBLE = torch.float64


def data(*shape, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, *shape, dtype=DOUBLE, generator=generator)


def third_order_loss(f, x, u, v, backend):
    """Of s, J v, v' J v, u' grad(v' J v) = v' D^2 s[u, v], as in high-order denoising score matching."""
    s, ju, jv, uv = fastlik.jet(f, x, (u, v), backend=backend)
    second = (v * jv).flatten(1).sum(1)
    third = (v * uv).flatten(1).sum(1)
    return (
        s.square().mean() + ju.sin().sum() + jv.square().mean() + second.tanh().sum() + third.square().mean()
    )


def written_layer_norm(x, shape, weight=None, bias=None, eps=1e-5):
    centred = x - x.mean(-1, keepdim=True)
    y = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    return y if weight is None else y * weight + bias


NETWORKS = {
    "mlp": lambda: (fastlik.nn.MLP(4, width=16, depth=2), (3, 4)),
    "unet": lambda: (fastlik.nn.UNet(2, width=8), (2, 2, 4, 4)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_parameter_gradients_of_a_third_order_loss(name):
    net, shape = NETWORKS[name]()
    net = randomised(net).train().requires_grad_()
    x, u, v = data(*shape)
    time = torch.linspace(0.2, 0.9, shape[0], dtype=DOUBLE)
    parameters = [p for p in net.parameters()]
    gradients = []
    for backend in ("jets", "torch"):
        loss = third_order_loss(lambda x: net(x, time), x, u, v, backend)
        found = torch.autograd.grad(loss, parameters, materialize_grads=True)
        gradients.append(torch.cat([each.flatten() for each in found]))
    assert_close(*gradients)


def test_first_order_loss_through_attention_and_layer_norm(monkeypatch):
    net = randomised(DiT(FusedAttention)).requires_grad_()
    x, v, _ = data(2, 2, 4, 4)
    time = torch.tensor([0.3, 0.8], dtype=DOUBLE)
    gradients = []
    for backend in ("jets", "torch"):
        if backend == "torch":  # whose own layer_norm has a wrong third derivative (torch 2.13)
            monkeypatch.setattr(nn.functional, "layer_norm", written_layer_norm)
        s, jv = fastlik.jvp(lambda x: net(x, time), x, v, backend=backend)
        loss = s.square().sum() + jv.square().sum() + (v * jv).sum()
        found = torch.autograd.grad(loss, list(net.parameters()), materialize_grads=True)
        gradients.append(torch.cat([each.flatten() for each in found]))
    assert_close(*gradients, tolerance=1e-9)


def test_the_mixed_term_is_the_gradient_of_the_quadratic_form():
    net = randomised(fastlik.nn.MLP(4, width=16, depth=2))
    x, u, v = data(3, 4)
    time = torch.linspace(0.2, 0.9, 3, dtype=DOUBLE)
    x.requires_grad_()
    _, jv = fastlik.jvp(lambda x: net(x, time), x, v)
    (gradient,) = torch.autograd.grad((v * jv).sum(), x)
    uv = fastlik.jet(lambda x: net(x, time), x, (u, v))[3]
    assert_close((v * uv).sum(1), (gradient * u).sum(1))


def test_activation_checkpointing():
    torch.manual_seed(0)
    layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3)).double()
    x, v, _ = data(3, 4)

    def gradients(run):
        def f(x):
            for layer in layers:
                x = run(layer, x)
            return x

        s, jv = fastlik.jvp(f, x, v, backend="jets")
        return torch.autograd.grad((s * jv).sum(), list(layers.parameters()))

    plain = gradients(lambda layer, x: layer(x))
    again = gradients(lambda layer, x: checkpoint(layer, x, use_reentrant=False))
    for ours, truth in zip(again, plain, strict=True):
        assert_close(ours, truth)


def test_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        net = randomised(fastlik.nn.MLP(4, width=8, depth=2)).requires_grad_()
        wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(net))
        x, v, _ = data(3, 4)
        time = torch.linspace(0.2, 0.9, 3, dtype=DOUBLE)
        for module in (net, wrapped):
            s, jv = fastlik.jvp(lambda x, module=module: module(x, time), x, v, backend="jets")
            (s * jv).sum().backward()
        for ours, truth in zip(wrapped.module.parameters(), net.parameters(), strict=True):
            assert_close(ours.grad, truth.grad)
    finally:
        torch.distributed.destroy_process_group()


def test_autocast_is_the_callers():
    """Outside it nothing is rounded; within it value and tangents are, like the network's own output."""
    net = randomised(fastlik.nn.UNet(2, width=8)).float()
    x, v, _ = data(2, 2, 4, 4).float()
    time = torch.tensor([0.3, 0.8])
    plain = fastlik.jvp(lambda x: net(x, time), x, v, backend="jets")
    exact = fastlik.jvp(lambda x: net.double()(x, time.double()), x.double(), v.double(), backend="torch")
    net.float()
    for recording in (False, True):
        with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(recording):
            value = net(x, time)
            rounded = fastlik.jvp(lambda x: net(x, time), x, v, backend="jets")
        assert rounded[0].dtype == value.dtype
        for precise, coarse, truth in zip(plain, rounded, exact, strict=True):
            assert_close(precise.double(), truth, 1e-5)
            assert_close(coarse.double(), truth, 0.1)
            assert (coarse.double() - truth).abs().max() > 1e-4 * truth.abs().max()


def test_dropout_has_one_mask_for_value_and_tangents():
    x, v, _ = data(50, 4)
    torch.manual_seed(0)
    value, product = fastlik.jvp(nn.Dropout(0.5), x, v)
    kept = value != 0
    assert 0 < kept.sum() < kept.numel()
    assert_close(value, torch.where(kept, 2 * x, 0.0))
    assert_close(product, torch.where(kept, 2 * v, 0.0))


def test_nothing_is_recorded_without_grad_mode():
    net = randomised(fastlik.nn.UNet(2, width=8)).requires_grad_()
    x, v, _ = data(2, 2, 4, 4)
    time = torch.tensor([0.3, 0.8], dtype=DOUBLE)
    with torch.no_grad():
        results = fastlik.jet(lambda x: net(x, time), x, v, 3, backend="jets")
    assert not any(result.requires_grad for result in results)
    with torch.inference_mode():
        inference = fastlik.jet(lambda x: net(x, time), x, v, 3, backend="jets")
    for ours, truth in zip(inference, results, strict=True):
        assert torch.equal(ours, truth)
