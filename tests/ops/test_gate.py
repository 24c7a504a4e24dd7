"""Jets of products f(a) b: the Triton kernels against float64 PyTorch."""

from functools import partial

import pytest
import torch

import fastlik
from fastlik.ops.gate import gate
from fastlik.ops.memory import in_rows

from .fused import ROUNDING, assert_close, check, normal

COUNTS = {"none": [], "along": [3], "sum": [1]}


def make(*shape, kind="none", dtype=torch.float32):
    """a, b and their first derivatives (3, *shape), and second ones."""
    shapes = [shape, shape, (3, *shape), (3, *shape), *((n, *shape) for n in COUNTS[kind] for _ in range(2))]
    return [normal(*each, dtype=dtype, seed=i) for i, each in enumerate(shapes)]


@pytest.mark.parametrize("function", ["identity", "silu", "gelu"])
@pytest.mark.parametrize("kind", COUNTS)
def test_values_and_gradients(function, kind):
    check(partial(gate, function=function), *make(3, 7, 1, 33, kind=kind))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision(dtype):
    check(partial(gate, function="silu"), *make(5, 300, kind="along", dtype=dtype))


def halves(stack, dim):
    """Parts of a, b and their derivatives, as of one layer's output (1 + K, *shape)."""
    a, b = stack.chunk(2, dim)
    return [a[0], b[0], a[1:], b[1:]]


LAYOUTS = {
    "halves of the last dimension": lambda: halves(normal(3, 2, 5, 12), -1),
    "halves of channels": lambda: halves(normal(3, 2, 6, 4, 5), 2),
    "halves of channels last": lambda: halves(normal(3, 2, 4, 5, 6).permute(0, 1, 4, 2, 3), 2),
    "channels last": lambda: [x.transpose(-1, -3) for x in make(2, 3, 4, 5)],
    "different orders": lambda: [x.transpose(-1, -2) if i == 1 else x for i, x in enumerate(make(2, 4, 4))],
    "gaps": lambda: [x[..., ::2] for x in make(3, 4, 6)],
    "repeated": lambda: [x[..., :1].expand(*x.shape[:-1], 3) for x in make(2, 4, 5)],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    tensors = LAYOUTS[layout]()
    tensors += [tensors[2], tensors[3]]
    check(partial(gate, function="silu"), *tensors)
    y, y1, _ = gate(*tensors, backend="triton")
    assert y.stride() == y1[0].stride()
    if "channels last" in layout:
        assert y.stride(1) == 1


def test_halves_are_not_copied():
    for name in LAYOUTS:
        a, b, a1, b1 = LAYOUTS[name]()
        direct = in_rows(a, b, a1[0], b1[0]) is not None
        assert direct == (name not in ("different orders", "repeated")), name


@pytest.mark.parametrize("shape", [(), (0, 3), (1,)])
def test_small_and_empty(shape):
    tensors = make(*shape, kind="sum")
    check(partial(gate, function="tanh"), *tensors)
    check(partial(gate, function="tanh"), *tensors[:2], tensors[2][:0], tensors[3][:0])


def test_it_is_the_derivative_of_pytorchs():
    x, v = normal(4, 6, dtype=torch.float64), normal(2, 4, 6, dtype=torch.float64, seed=1)
    truth = fastlik.jet(lambda x: torch.nn.functional.silu(x) * x.sin(), x, v, 2, backend="torch")
    results = gate(x, x.sin(), v, x.cos() * v, 0 * v, -x.sin() * v * v, function="silu")
    for actual, expected in zip(results, truth, strict=True):
        assert_close(actual, expected, 1e-12)


def test_what_does_not_fit_is_refused():
    a, b, a1, b1 = make(3, 4)
    with pytest.raises(ValueError, match="'relu7' is unknown"):
        gate(a, b, a1, b1, function="relu7")
    with pytest.raises(ValueError, match="as many derivatives"):
        gate(a, b, a1, b1[:2])
    with pytest.raises(ValueError, match="as many derivatives"):
        gate(a, b, a1, b1, a1)
    with pytest.raises(RuntimeError, match="not torch.float64"):
        gate(*(x.double() for x in (a, b, a1, b1)), backend="triton")


def test_the_compiler_traces_it():
    from fastlik.ops.gate.triton import FUSED

    a, b, a1, b1 = halves(normal(3, 2, 5, 12).requires_grad_(), -1)
    torch.library.opcheck(FUSED.operator, (a, b, a1, b1, None, None, "silu"))
    compiled = torch.compile(
        lambda *x: gate(*x, function="silu", backend="triton")[1], backend="aot_eager", fullgraph=True
    )
    assert_close(compiled(a, b, a1, b1), gate(a, b, a1, b1, function="silu")[1], ROUNDING[torch.float32])
