"""Networks drawn at random from the registry, against nested reverse mode: values and derivatives."""

import math

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import fastlik
from fastlik.derivatives.jets import fallback

from .oracle import assert_close, check, directions

DOUBLE = torch.float64
CHANNELS, SIDE = 4, 4


def weights(*shape):
    return torch.randn(shape, dtype=DOUBLE) / math.sqrt(math.prod(shape[1:]))


def attention(x):
    """Over the pixels, one head a channel."""
    tokens = x.flatten(2)[..., None]
    scores = tokens @ tokens.mT * 0.2
    return (scores.softmax(-1) @ tokens).reshape(x.shape)


# each keeps the shape (B, 4, 4, 4); parameters are drawn when a layer is made
LAYERS = {
    "conv": lambda: (lambda w, b: lambda x: F.conv2d(x, w, b, padding=1))(weights(4, 4, 3, 3), weights(4)),
    "grouped conv": lambda: (lambda w: lambda x: F.conv2d(x, w, padding="same", groups=2))(
        weights(4, 2, 3, 3)
    ),
    "down and up": lambda: (
        lambda w, u: lambda x: F.conv_transpose2d(F.conv2d(x, w, stride=2, padding=1), u, stride=2, padding=1)
    )(weights(4, 4, 4, 4), weights(4, 4, 4, 4)),
    "pool and interpolate": lambda: lambda x: F.interpolate(F.avg_pool2d(x, 2), scale_factor=2.0),
    "bilinear": lambda: (
        lambda x: F.interpolate(F.interpolate(x, size=3, mode="bilinear"), size=4, mode="bicubic")
    ),
    "group norm": lambda: (lambda w, b: lambda x: F.group_norm(x, 2, w, b))(weights(4), weights(4)),
    "rms norm": lambda: (lambda w: lambda x: F.rms_norm(x, (4,), w))(weights(4)),
    "written norm": lambda: lambda x: (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 0.1).sqrt(),
    "silu": lambda: F.silu,
    "silu in place": lambda: lambda x: F.silu(x * 1.0).mul_(0.7),
    "gelu": lambda: F.gelu,
    "tanh": lambda: torch.tanh,
    "softplus": lambda: F.softplus,
    "sin": lambda: torch.sin,
    "square": lambda: lambda x: x.square() / (1 + x * x),
    "film": lambda: (lambda s, b: lambda x: torch.addcmul(b, x, 1 + s))(weights(4, 1, 1), weights(4, 1, 1)),
    "gate": lambda: lambda x: (lambda a, b: torch.cat((a * torch.sigmoid(b), b), 1))(*x.chunk(2, 1)),
    "linear": lambda: (lambda w, b: lambda x: F.linear(x.movedim(1, -1), w, b).movedim(-1, 1))(
        weights(4, 4), weights(4)
    ),
    "einsum": lambda: (lambda w: lambda x: torch.einsum("bchw,cd->bdhw", x, w))(weights(4, 4)),
    "einsum of two": lambda: lambda x: torch.einsum("bchw,bdhw->bcd", x, x)[..., None].tanh() * x,
    "attention": lambda: attention,
    "softmax": lambda: lambda x: F.softmax(x, 1) - x,
    "pad and crop": lambda: lambda x: F.pad(x, (1, 1, 1, 1), mode="circular")[..., 1:-1, :-2],
    "roll": lambda: lambda x: x.roll(1, 2) + x.flip(3),
    "channels last": lambda: lambda x: x.contiguous(memory_format=torch.channels_last) * 0.9,
    "transposed": lambda: lambda x: x.mT.contiguous(),
    "permuted": lambda: lambda x: x.permute(0, 1, 3, 2) * 0.8,
    "shuffle": lambda: lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2).exp().log1p(),
    "mask": lambda: lambda x: torch.where(x > 0.1, x, 0.3 * x),
    "shift by a constant": lambda: (lambda c: lambda x: c - x)(weights(4, 4, 4)),
    "complex": lambda: lambda x: torch.view_as_real(torch.polar(torch.ones_like(x), x) * (1 + 0.5j)).sum(-1),
}


class Drawn(nn.Module):
    """Layers one after another, some with a skip over them."""

    def __init__(self, names, skips, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = [LAYERS[name]() for name in names]
        self.skips = skips

    def forward(self, x):
        for layer, skip in zip(self.layers, self.skips, strict=True):
            x = x + 0.5 * layer(x) if skip else layer(x)
        return x


@st.composite
def networks(draw, most=6):
    names = draw(st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=most))
    skips = draw(st.lists(st.booleans(), min_size=len(names), max_size=len(names)))
    return names, skips, draw(st.integers(0, 99))


OPTIONS = dict(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def image(batch, seed):
    return torch.randn(
        batch, CHANNELS, SIDE, SIDE, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)
    )


@given(networks(), st.integers(1, 3))
@settings(max_examples=40, **OPTIONS)
def test_first_derivatives(drawn, batch):
    """With the fused kernels and without."""
    net, x = Drawn(*drawn), image(batch, drawn[2])
    v = directions(x)
    value, products = fastlik.jvp(net, x, v, backend="torch")
    for recording in (False, True):
        with torch.set_grad_enabled(recording):
            ours = fastlik.jvp(net, x, v, backend="jets")
        assert_close(ours[0].detach(), value.detach())
        assert_close(ours[1].detach(), products.detach())


@given(networks(most=4))
@settings(max_examples=12, **OPTIONS)
def test_derivatives_of_all_orders(drawn):
    net, x = Drawn(*drawn), image(2, drawn[2])
    # native norms have wrong third derivatives in autograd (torch 2.13)
    check(net, x, order=2 if any("norm" in name for name in drawn[0]) else 3)


def test_every_layer_has_rules():
    fallback._WARNED.clear()
    for name in LAYERS:
        fastlik.jvp(Drawn([name], [False], 0), image(2, 0), image(2, 1), backend="jets")
    assert not fallback._WARNED
