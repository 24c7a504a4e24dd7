"""Whole networks, unmodified, against reverse-over-reverse differentiation in float64."""

import functools

import pytest
import torch
from torch import nn

import fastlik
from fastlik.derivatives.jets import capture

from .networks import (
    DOUBLE,
    Branching,
    DiT,
    FusedAttention,
    GuidedDiffusion,
    ModuleAttention,
    NCSNpp,
    Transformer,
    WeightedAttention,
    WrittenAttention,
    randomised,
)
from .oracle import assert_close, check, directions


def image(*shape, seed=3):
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def times(batch, scale=1.0):
    return scale * torch.linspace(0.2, 0.9, batch, dtype=DOUBLE)


def unet():
    return randomised(fastlik.nn.UNet(2, width=8, blocks=1)), image(2, 2, 8, 8), {"time": times(2)}


def labelled_unet():
    net = randomised(fastlik.nn.UNet(2, width=8, classes=3, dropout=0.2))
    return net, image(2, 2, 8, 8), {"time": times(2), "label": torch.tensor([2, 0])}


def own_dit():
    net = randomised(fastlik.nn.DiT(2, width=8, depth=2, heads=2, classes=3, dropout=0.2))
    return net, image(2, 2, 4, 6), {"time": times(2), "label": torch.tensor([2, 0])}


def mlp(activation):
    net = randomised(fastlik.nn.MLP(5, width=16, depth=2, activation=activation, condition_dim=3))
    return net, image(3, 5), {"time": times(3), "condition": image(3, 3, seed=4)}


def ncsnpp():
    return randomised(NCSNpp()), image(2, 2, 8, 8), {"time": times(2)}


def guided_diffusion():
    return (
        randomised(GuidedDiffusion()),
        image(2, 2, 8, 8),
        {"timesteps": times(2, 100), "y": torch.tensor([1, 2])},
    )


def dit(attention):
    return randomised(DiT(attention)), image(2, 2, 4, 4), {"time": times(2)}


def transformer(norm_first):
    return randomised(Transformer(norm_first=norm_first)), image(3, 5), {"time": times(3)}


def unet2d():
    from diffusers import UNet2DModel

    net = UNet2DModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=8,
    )
    return randomised(net, 0.2), image(2, 2, 8, 8), {"timestep": times(2, 100)}


def unet2d_condition():
    from diffusers import UNet2DConditionModel

    net = UNet2DConditionModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4,
        cross_attention_dim=6,
        attention_head_dim=4,
    )
    condition = {"timestep": times(2, 100), "encoder_hidden_states": image(2, 5, 6)}
    return randomised(net, 0.2), image(2, 2, 8, 8), condition


def dit2d():
    from diffusers import DiTTransformer2DModel

    net = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=2,
        out_channels=2,
        num_layers=2,
        sample_size=8,
        norm_num_groups=2,
        num_embeds_ada_norm=10,
    )
    condition = {"timestep": torch.tensor([3, 7]), "class_labels": torch.tensor([1, 4])}
    return randomised(net, 0.2), image(2, 2, 8, 8), condition


NETWORKS = {
    "unet": unet,
    "unet with labels": labelled_unet,
    **{f"mlp {name}": functools.partial(mlp, name) for name in ("silu", "gelu", "tanh", "softplus")},
    "NCSN++": ncsnpp,
    "guided diffusion": guided_diffusion,
    "DiT with labels": own_dit,
    "dit, fused attention": functools.partial(dit, FusedAttention),
    "dit, written attention": functools.partial(dit, WrittenAttention),
    "dit, nn.MultiheadAttention": functools.partial(dit, ModuleAttention),
    "dit, attention with weights": functools.partial(dit, WeightedAttention),
    "transformer, norm first": functools.partial(transformer, True),
    "transformer, norm last": functools.partial(transformer, False),
    "diffusers UNet2DModel": unet2d,
    "diffusers UNet2DConditionModel": unet2d_condition,
    "diffusers DiTTransformer2DModel": dit2d,
}


def prediction(output):
    return output if isinstance(output, torch.Tensor) else output.sample


SECOND_ORDER = ("unet", "guided diffusion", "mlp silu", "mlp gelu", "mlp tanh", "mlp softplus")


@pytest.mark.parametrize("name", NETWORKS)
def test_module(name):
    net, x, condition = NETWORKS[name]()
    # where there is a layer_norm, higher derivatives by autograd are no reference: see test_rules
    check(lambda x: prediction(net(x, **condition)), x, order=2 if name in SECOND_ORDER else 1)


@pytest.mark.parametrize(
    "name",
    [
        "mlp silu",
        "unet with labels",
        "DiT with labels",
        "dit, nn.MultiheadAttention",
        *[n for n in NETWORKS if "diffusers" in n],
    ],
)
def test_captured_graph_at_another_batch_size(name):
    net, x, condition = NETWORKS[name]()
    graph = capture(net, torch.cat((x, x)), **{key: torch.cat((c, c)) for key, c in condition.items()})
    v = directions(x)
    with torch.no_grad():
        truth = fastlik.jvp(lambda x: prediction(net(x, **condition)), x, v, backend="jets")
        result = fastlik.jvp(lambda x: prediction(graph(x, **condition)), x, v, backend="jets")
    assert_close(result[0], truth[0])
    assert_close(result[1], truth[1])
    assert_close(prediction(graph(x, **condition)), truth[0])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_row_alone_has_the_derivatives_it_has_in_a_batch(name):
    """Where nothing is recorded the fused operations of norms run; a batch of one has strides of its own."""
    net, x, condition = NETWORKS[name]()
    v = directions(x)

    def products(rows):
        taken = {key: c[rows] for key, c in condition.items()}
        return fastlik.jvp(lambda x: prediction(net(x, **taken)), x[rows], v[:, rows], backend="jets")[1]

    with torch.no_grad():
        assert_close(products(slice(0, 1)), products(slice(None))[:, :1])


@pytest.mark.parametrize(
    "activation",
    [
        nn.ReLU(), nn.LeakyReLU(), nn.ELU(), nn.SELU(), nn.CELU(), nn.GELU("tanh"), nn.Mish(), nn.Hardswish(),
        nn.Softplus(2.0), nn.Softsign(), nn.LogSigmoid(), nn.PReLU(), nn.SiLU(inplace=True),
        nn.ReLU(inplace=True),
        nn.Sigmoid(), nn.Tanhshrink(), nn.GLU(), nn.BatchNorm1d(8), nn.LayerNorm(8), nn.Identity(),
    ],
    ids=lambda module: type(module).__name__,
)  # fmt: skip
def test_layers_of_a_plain_network(activation):
    width = 4 if isinstance(activation, nn.GLU) else 8
    net = randomised(nn.Sequential(nn.Linear(3, 8), activation, nn.Linear(width, 3)))
    if isinstance(activation, nn.BatchNorm1d):
        activation.running_mean.normal_()
    reference = net
    if isinstance(activation, nn.SiLU):  # in place, it has no second derivative in autograd
        reference = nn.Sequential(net[0], nn.SiLU(), net[2])
    check(net, image(4, 3), reference=reference, order=1)


def test_control_flow_that_depends_on_the_data_and_writes_in_place():
    net, x, time = randomised(Branching()), image(3, 5), times(3)
    before = x.clone()
    check(lambda x: net(x, time), x)
    assert torch.equal(x, before)
    with pytest.raises(fastlik.derivatives.jets.NoDerivative, match="cannot capture Branching"):
        capture(net, x, time)
