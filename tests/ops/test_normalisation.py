"""Jets of normalisation, scale, shift and activation: the Triton kernels against float64 PyTorch."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F

import fastlik
from fastlik.ops.normalisation import normalise

from .fused import ROUNDING, assert_close, check, normal


def channels_last(x):
    return x.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", ["none", "along", "sum"])
@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, channels_last])
@pytest.mark.parametrize(("channels", "groups"), [(6, 2), (20, 5), (7, 7)])
def test_group_norm_and_silu(channels, groups, layout, kind):
    shape = (3, channels, 5, 7)
    x, first = layout(normal(*shape)) + 0.5, normal(2, *shape, seed=1)
    second = {"none": None, "along": normal(2, *shape, seed=2), "sum": normal(1, *shape, seed=2)}[kind]
    scale, shift = normal(3, channels, seed=3), normal(3, channels, seed=4)

    def operation(x, first, second, scale, shift, backend):
        return normalise(
            x, first, second, groups=groups, scale=scale, shift=shift, function="silu", backend=backend
        )

    check(operation, x, first, second, scale, shift)


@pytest.mark.parametrize(("kind", "centred"), [("none", False), ("along", True), ("sum", True)])
@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, channels_last])
def test_groups_that_are_read_twice(layout, kind, centred):
    shape = (2, 6, 90, 33)
    x, first = layout(normal(*shape)) + 3, normal(2, *shape, seed=1)
    second = {"none": None, "along": normal(2, *shape, seed=2), "sum": normal(1, *shape, seed=2)}[kind]

    def operation(x, first, second, scale, shift, backend):
        options = dict(groups=2, centred=centred, function="silu", backend=backend)
        return normalise(x, first, second, scale=scale, shift=shift, **options)

    check(operation, x, first, second, normal(2, 6, seed=3), normal(2, 6, seed=4))


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("rows", [None, 1, 2])
def test_layer_and_rms_norm_of_tokens(rows, centred):
    x, first = normal(6, 37), normal(3, 6, 37, seed=1)
    scale = None if rows is None else normal(rows, 37, seed=2)
    shift = None if rows is None or not centred else normal(rows, 37, seed=3)

    def operation(x, first, scale, shift, backend):
        return normalise(x, first, centred=centred, scale=scale, shift=shift, backend=backend)

    check(operation, x, first, scale, shift)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision(dtype):
    x, first = normal(2, 8, 4, 4, dtype=dtype), normal(1, 2, 8, 4, 4, dtype=dtype, seed=1)
    check(partial(normalise, groups=4, function="gelu"), x, first, None)


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 4, 1), (2, 4, 0)])
def test_small_and_empty(shape):
    check(partial(normalise, groups=2, eps=0.1), normal(*shape), normal(2, *shape, seed=1), None)


def test_a_large_mean_costs_no_digits():
    x, first = normal(2, 4, 50) + 100, normal(1, 2, 4, 50, seed=1) + 100
    check(partial(normalise, groups=2), x, first, None, tolerance=2e-4)


def test_it_is_the_derivative_of_pytorchs():
    x, v = normal(2, 6, 5, dtype=torch.float64), normal(2, 2, 6, 5, dtype=torch.float64, seed=1)
    scale, shift = (normal(2, 6, dtype=torch.float64, seed=i) for i in (2, 3))

    def f(x):
        return F.silu(F.group_norm(x, 3, eps=1e-3) * scale[..., None] + shift[..., None])

    truth = fastlik.jet(f, x, v, 2, backend="torch")
    options = dict(groups=3, eps=1e-3, scale=scale, shift=shift, function="silu", backend="torch")
    start = normalise(x, v, torch.zeros_like(v), **options)
    for actual, expected in zip(start, truth, strict=True):
        assert_close(actual, expected, 1e-12)


def test_wide_groups_and_misfits_are_refused():
    x = normal(1, 10000)
    with pytest.raises(RuntimeError, match="groups of up to 8192 channels"):
        normalise(x, x[None], backend="triton")
    x = normal(1, 2, 3, 4)
    with pytest.raises(ValueError, match="C divisible by 3"):
        normalise(x, x[None], groups=3)
    with pytest.raises(ValueError, match="scale must be"):
        normalise(x, x[None], scale=x[0, :, 0, :1])


def test_the_compiler_traces_it():
    from fastlik.ops.normalisation.triton import FUSED

    x, first = normal(2, 4, 3).requires_grad_(), normal(1, 2, 4, 3, seed=1).requires_grad_()
    scale = normal(1, 4).requires_grad_()
    args = (x, first, None, scale, None, 2, 1e-5, True, "silu")
    torch.library.opcheck(FUSED.operator, args)
    outputs = FUSED.operator(*args)
    expected = normalise(
        x.double(), first.double(), groups=2, scale=scale.double(), function="silu", backend="torch"
    )
    for actual, truth in zip(outputs, expected, strict=True):
        assert_close(actual, truth, ROUNDING[torch.float32])
