"""Fused jets on a GPU at the sizes of networks, against float64; whole right-hand sides, graphs, compilers.

Small and odd sizes are in tests/ops, which run on the GPU too where there is one.
"""

from functools import partial

import pytest
import torch

import fastlik
from fastlik.derivatives.probes import rademacher
from fastlik.ops.activation import activation
from fastlik.ops.attention import attention
from fastlik.ops.gate import gate
from fastlik.ops.hutchinson import probes, products
from fastlik.ops.normalisation import normalise
from fastlik.ops.philox import Stream
from fastlik.ops.residual import residual

from ..ops.fused import ROUNDING, assert_close, check, normal

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

dtypes = pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)


@dtypes
@pytest.mark.parametrize("function", ["silu", "gelu", "sin"])
def test_activation(function, dtype):
    shape = (4, 65, 33, 32)
    x, first, second = (
        normal(*s, dtype=dtype, seed=i) for i, s in enumerate([shape, (2, *shape), (2, *shape)])
    )
    check(partial(activation, function=function), x, first, second)


@dtypes
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("channels", [64, 192, 256])
def test_group_norm_and_silu(channels, layout, dtype):
    shape = (3, channels, 32, 32)
    x, first = normal(*shape, dtype=dtype).to(memory_format=layout), normal(2, *shape, dtype=dtype, seed=1)

    def operation(x, first, scale, shift, backend):
        return normalise(x, first, groups=32, scale=scale, shift=shift, function="silu", backend=backend)

    check(operation, x, first, *(normal(3, channels, dtype=dtype, seed=i) for i in (2, 3)))


@dtypes
@pytest.mark.parametrize("centred", [True, False])
def test_norms_of_tokens(centred, dtype):
    x, first = normal(96, 1152, dtype=dtype), normal(2, 96, 1152, dtype=dtype, seed=1)

    def operation(x, first, scale, backend):
        return normalise(x, first, centred=centred, scale=scale, backend=backend)

    check(operation, x, first, normal(3, 1152, dtype=dtype, seed=2))


@dtypes
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_groups_that_are_read_twice(layout, dtype):
    shape = (2, 64, 128, 96)
    x, first = normal(*shape, dtype=dtype).to(memory_format=layout), normal(2, *shape, dtype=dtype, seed=1)
    second = normal(1, *shape, dtype=dtype, seed=2)

    def operation(x, first, second, scale, shift, backend):
        options = dict(groups=16, function="silu", backend=backend)
        return normalise(x, first, second, scale=scale, shift=shift, **options)

    check(operation, x, first, second, *(normal(2, 64, dtype=dtype, seed=i) for i in (3, 4)))


@dtypes
@pytest.mark.parametrize("kind", ["none", "along", "sum"])
def test_gates_of_halves(kind, dtype):
    counts = {"none": 3, "along": 5, "sum": 4}
    a, b = normal(counts[kind], 65, 33, 2 * 600, dtype=dtype).chunk(2, -1)
    seconds = [] if kind == "none" else [a[3:], b[3:]]
    check(partial(gate, function="silu"), a[0], b[0], a[1:3], b[1:3], *seconds)


@dtypes
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("count", "kind"), [(1, "none"), (2, "none"), (3, "none"), (1, "along"), (2, "along"), (3, "sum")]
)
@pytest.mark.parametrize("size", [32, 64, 80, 128])
def test_attention(size, count, kind, causal, dtype):
    shape = (2, 3, 300, size)
    if dtype == torch.float32 and size > 64:
        return  # refused, see tests/ops
    counts = {"none": [count], "along": [count, count], "sum": [count, 1]}[kind]
    shapes = [shape] * 3 + [(n, *shape) for n in counts for _ in range(3)]
    tensors = [normal(*each, dtype=dtype, seed=i) for i, each in enumerate(shapes)]

    def operation(*tensors, backend):
        return attention(*tensors, causal=causal, backend=backend)

    check(operation, *tensors)


@dtypes
def test_residual_sums(dtype):
    a, b = (normal(3, 65, 33, 32, dtype=dtype, seed=seed) for seed in (0, 1))
    check(lambda a, b, backend: [residual(a, b, 0.7, backend=backend)], a, b)


def test_products_are_the_specifications():
    jv, rows = normal(2, 65, 3, 33, 32), torch.arange(65, device="cuda") * 12345678901
    actual, expected = (products(jv, range(3, 5), seed=3, rows=rows, backend=b) for b in ("triton", "torch"))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-9)


def test_probes_are_the_specifications():
    rows, nodes = torch.arange(300, device="cuda") * 12345678901, torch.arange(300, device="cuda")
    drawn = probes(torch.empty(300, 3, 32, 32, device="cuda"), range(2), seed=3, rows=rows, node=nodes)
    for draw in range(2):
        expected = rademacher(3, Stream.PROBE, rows.cpu(), draw, nodes.cpu(), 3072)
        assert torch.equal(drawn[draw].flatten(1).double().cpu(), expected)


def unet(dtype=torch.float32):
    torch.manual_seed(0)
    net = fastlik.nn.UNet(3, width=32, groups=8)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    net = net.to("cuda", dtype, memory_format=torch.channels_last).eval().requires_grad_(False)
    x = normal(4, 3, 16, 16, dtype=dtype).to(memory_format=torch.channels_last)
    t = torch.full((4,), 0.4, device="cuda", dtype=dtype)
    return lambda x: net(x, t), x, normal(4, 3, 16, 16, dtype=dtype, seed=1)


@pytest.mark.parametrize("order", [1, 2])
def test_a_network_in_channels_last(order):
    f, x, v = unet()
    truth_f, *_ = unet(torch.float64)
    results = fastlik.jet(f, x, v, order)
    assert results[0].is_contiguous(memory_format=torch.channels_last)
    expected = fastlik.jet(truth_f, x.double(), v.double(), order, backend="torch")
    for actual, truth in zip(results, expected, strict=True):
        assert_close(actual, truth, 1e-3)  # convolutions may run in TF32


def test_a_right_hand_side_is_one_graph():
    f, x, v = unet()
    with torch.no_grad():
        expected = fastlik.jvp(f, x, v)
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            results = fastlik.jvp(f, x, v)
        graph.replay()
    for actual, truth in zip(results, expected, strict=True):
        torch.testing.assert_close(actual, truth, rtol=1e-4, atol=1e-4)


def test_the_compiler_takes_a_network():
    f, x, v = unet()
    with torch.no_grad():
        compiled = torch.compile(lambda x, v: fastlik.jvp(f, x, v, backend="jets"), fullgraph=True)
        for actual, truth in zip(compiled(x, v), fastlik.jvp(f, x, v), strict=True):
            assert_close(actual, truth, 1e-3)
