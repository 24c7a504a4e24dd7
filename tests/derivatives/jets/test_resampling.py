"""Resampling of images is linear: one call on the stack of value and derivatives, in its order of memory."""

from collections import Counter

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from fastlik.derivatives.jets.eager import evaluate
from fastlik.derivatives.jets.jet import Jet
from fastlik.derivatives.jets.layout import COLLAPSED

CHANNELS = 8
FILTER = torch.tensor([1.0, 3.0, 3.0, 1.0]).outer(torch.tensor([1.0, 3.0, 3.0, 1.0])) / 64
DEPTHWISE = FILTER.expand(CHANNELS, 1, 4, 4)


def upfirdn2d(x):
    """Zeros between the pixels, then a filter, as in StyleGAN2 and NCSN++."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch * channels, height, 1, width, 1)
    x = F.pad(x, (0, 1, 0, 0, 0, 1)).reshape(batch * channels, 1, 2 * height, 2 * width)
    return F.conv2d(F.pad(x, (2, 1, 2, 1)), FILTER[None, None]).reshape(batch, channels, 2 * height, -1)


# the operations of PyTorch that each is
NETWORKS = {
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 2), {"avg_pool2d": 1}),
    "nearest": (lambda x: F.interpolate(x, scale_factor=2, mode="nearest"), {"upsample_nearest2d": 1}),
    "bilinear": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), {"upsample_bilinear2d": 1}),
    "filtered down": (
        lambda x: F.conv2d(F.pad(x, (1, 1, 1, 1)), DEPTHWISE, stride=2, groups=CHANNELS),
        {"constant_pad_nd": 1, "convolution": 1},
    ),
    "filtered up": (
        lambda x: F.conv_transpose2d(x, 4 * DEPTHWISE, stride=2, padding=1, groups=CHANNELS),
        {"mul": 1, "convolution": 1},
    ),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), {"pixel_shuffle": 1}),
    "upfirdn2d": (upfirdn2d, {"constant_pad_nd": 2, "convolution": 1}),
}
COPIES = ("clone", "copy_", "_to_copy", "cat")


class Calls(TorchDispatchMode):
    """Counts the operations that run, by name."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count[function.__name__.split(".")[0]] += 1
        return function(*args, **(kwargs or {}))


def stacked(memory_format):
    """A second-order jet (the first has kernels of its own on CPUs) in one allocation."""
    generator = torch.Generator().manual_seed(0)
    stack = torch.randn(4 * 2, CHANNELS, 8, 6, generator=generator).contiguous(memory_format=memory_format)
    stack = stack.unflatten(0, (4, 2))
    return Jet(COLLAPSED, stack[0], (stack[1:3], stack[3:]), stack)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_one_call_without_copies(name, memory_format):
    f, expected = NETWORKS[name]
    jet = stacked(memory_format)
    with torch.no_grad(), Calls() as calls:
        result = evaluate(f, jet)
    assert {each: calls.count[each] for each in expected} == expected
    assert result.stacked is not None
    torch.testing.assert_close(result.stacked, torch.stack([f(part) for part in jet.stacked]))
    # zeros between the pixels of channels last: so many dimensions have no such order
    if (name, memory_format) != ("upfirdn2d", torch.channels_last):
        assert result.primal.is_contiguous(memory_format=memory_format)
        if name != "pixel_shuffle":  # itself a copy
            assert not any(calls.count[copy] for copy in COPIES), calls.count
