"""Jets of pointwise functions: the Triton kernels against float64 PyTorch."""

from functools import partial

import pytest
import torch

from fastlik.ops.activation import FUNCTIONS, activation

from .fused import DEVICE, ROUNDING, assert_close, check, normal


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("kind", ["none", "along", "sum"])
def test_values_and_gradients(function, kind):
    x, first = normal(3, 7, 5, 11, scale=3), normal(3, 3, 7, 5, 11, seed=1)
    second = {"none": None, "along": normal(3, 3, 7, 5, 11, seed=2), "sum": normal(1, 3, 7, 5, 11, seed=2)}

    def operation(x, first, second, bias, backend):
        return activation(
            x, first, second, function=function, bias=bias, parameter=1.5, channel=1, backend=backend
        )

    check(operation, x, first, second[kind], normal(7, seed=3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision(dtype):
    x, first = normal(5, 300, dtype=dtype), normal(1, 5, 300, dtype=dtype, seed=1)
    check(partial(activation, function="gelu_tanh"), x, first, first.clone())


@pytest.mark.parametrize(
    "layout",
    {
        "channels_last": lambda x: x.to(memory_format=torch.channels_last),
        "transposed": lambda x: x.transpose(0, 2),
        "gaps": lambda x: x[:, ::2],
        "overlapping": lambda x: x[:1].expand(4, -1, -1, -1),
    }.items(),
    ids=lambda item: item[0],
)
def test_layouts(layout):
    x = layout[1](normal(2, 6, 3, 5))
    first = normal(4, *x.shape, seed=1)[::2]
    actual = activation(x, first, first, function="silu", backend="triton")
    expected = activation(x.double(), first.double(), first.double(), function="silu", backend="torch")
    for a, b in zip(actual, expected, strict=True):
        assert_close(a, b, ROUNDING[x.dtype])
    if layout[0] == "channels_last":
        assert actual[0].is_contiguous(memory_format=torch.channels_last)
        assert actual[1][0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(), (0, 3), (1,)])
@pytest.mark.parametrize("count", [0, 1])
def test_small_and_empty(shape, count):
    check(partial(activation, function="tanh"), normal(*shape), normal(count, *shape, seed=1), None)


def test_extremes_are_finite():
    x = torch.tensor([-1e4, -90.0, -20.0, -1e-5, 0.0, 1e-5, 20.0, 90.0, 1e4], device=DEVICE)
    for function in set(FUNCTIONS) - {"sin"}:
        results = activation(x, torch.ones_like(x)[None], function=function, backend="triton")
        x64 = x.double()
        expected = activation(x64, torch.ones_like(x64)[None], function=function, backend="torch")
        for result, truth in zip(results, expected, strict=True):
            torch.testing.assert_close(result.double(), truth, rtol=2e-6, atol=1e-6, msg=function)


def test_a_gradient_of_a_gradient():
    x, first = normal(4, 6).requires_grad_(), normal(2, 4, 6, seed=1)
    seconds = []
    for backend in ("triton", "torch"):
        loss = activation(x, first, function="silu", backend=backend)[1].square().sum()
        gradient = torch.autograd.grad(loss, x, create_graph=True)[0]
        seconds.append(torch.autograd.grad(gradient.square().sum(), x)[0])
    assert_close(*seconds, 1e-5)


def test_the_compiler_traces_it():
    from fastlik.ops.activation.triton import FUSED

    x, first = normal(3, 5).requires_grad_(), normal(2, 3, 5, seed=1).requires_grad_()
    torch.library.opcheck(FUSED.operator, (x, first, None, normal(5).requires_grad_(), "silu", 1.0, 1))
    compiled = torch.compile(
        lambda x, first: activation(x, first, function="silu", backend="triton")[1].square().sum(),
        backend="aot_eager",
        fullgraph=True,
    )
    compiled(x, first).backward()
    expected = x.double().detach().requires_grad_()
    activation(expected, first.double(), function="silu")[1].square().sum().backward()
    assert_close(x.grad, expected.grad, 1e-5)


def test_what_does_not_fit_is_refused():
    x = normal(3, 4)
    with pytest.raises(ValueError, match="'relu7' is unknown.*'silu'"):
        activation(x, x[None], function="relu7")
    with pytest.raises(ValueError, match=r"first must be \(K, \*\(3, 4\)\)"):
        activation(x, x, function="silu")
    with pytest.raises(ValueError, match="second must be like first"):
        activation(x, x.expand(3, 3, 4), x.expand(2, 3, 4), function="silu")
    with pytest.raises(ValueError, match=r"bias must have shape \(4,\)"):
        activation(x, x[None], function="silu", bias=x[0, :3])
    with pytest.raises(RuntimeError, match="not torch.float64"):
        activation(x.double(), x.double()[None], function="silu", backend="triton")
