"""The jet of softmax attention: the Triton kernels against float64 PyTorch."""

import pytest
import torch

import fastlik
from fastlik.ops.attention import attention

from .fused import DEVICE, ROUNDING, assert_close, check, normal


def make(shape, keys, count, dtype=torch.float32):
    batch, heads, length, size = shape
    sizes = [shape, (batch, heads, keys, size), (batch, heads, keys, size)]
    primals = [normal(*each, dtype=dtype, seed=i) for i, each in enumerate(sizes)]
    return *primals, *(normal(count, *each, dtype=dtype, seed=3 + i) for i, each in enumerate(sizes))


def masked(mask=None, **options):
    def operation(*tensors, backend):
        wanted = mask if mask is None or mask.dtype == torch.bool else mask.to(tensors[0].dtype)
        return attention(*tensors, mask=wanted, backend=backend, **options)

    return operation


@pytest.mark.parametrize("count", [1, 2, 3])
def test_values_and_gradients(count):
    check(masked(), *make((2, 2, 37, 24), 70, count))


@pytest.mark.parametrize("size", [16, 33, 64])
def test_head_sizes_and_a_causal_mask(size):
    check(masked(causal=True, scale=0.3), *make((1, 2, 45, size), 45, 1))


@pytest.mark.parametrize("kind", ["bool", "sum"])
def test_masks(kind):
    tensors = make((2, 3, 21, 32), 40, 1)
    seen = normal(2, 1, 21, 40, seed=8) > 0
    seen[1, 0, 5] = False  # a query that sees nothing
    check(masked(seen if kind == "bool" else normal(3, 21, 1, seed=8).expand(3, 21, 40)), *tensors)


# the interpreter cannot multiply matrices in bfloat16
@pytest.mark.parametrize("dtype", [torch.float16, *[torch.bfloat16] * (DEVICE == "cuda")])
def test_low_precision(dtype):
    check(masked(), *make((1, 2, 30, 64), 50, 2, dtype))
    check(masked(causal=True), *make((1, 1, 20, 100), 20, 3, dtype))


@pytest.mark.parametrize(("batch", "count"), [(0, 1), (1, 0)])
def test_empty(batch, count):
    check(masked(), *make((batch, 1, 3, 16), 5, count))


def test_layouts():
    packed, packed1 = normal(2, 9, 3, 2, 16), normal(1, 2, 9, 3, 2, 16, seed=1)
    primals = [each.transpose(1, 2) for each in packed.unbind(2)]
    tangents = [each.transpose(2, 3) for each in packed1.unbind(3)]
    actual = attention(*primals, *tangents, backend="triton")
    expected = attention(*(each.double() for each in (*primals, *tangents)), backend="torch")
    for a, b in zip(actual, expected, strict=True):
        assert_close(a, b, ROUNDING[torch.float32])


def test_it_is_the_derivative_of_pytorchs():
    x, v = normal(2, 3, 7, 16, dtype=torch.float64), normal(2, 2, 3, 7, 16, dtype=torch.float64, seed=1)
    truth = fastlik.jvp(
        lambda x: torch.nn.functional.scaled_dot_product_attention(x, 2 * x, 3 * x), x, v, backend="torch"
    )
    start = attention(x, 2 * x, 3 * x, v, 2 * v, 3 * v)
    for actual, expected in zip(start, truth, strict=True):
        assert_close(actual, expected, 1e-12)


def test_what_does_not_fit_is_refused():
    tensors = make((1, 2, 3, 16), 5, 1)
    with pytest.raises(ValueError, match="query must be"):
        attention(tensors[0][0], *tensors[1:])
    with pytest.raises(ValueError, match="value1 must be"):
        attention(*tensors[:5], tensors[5][:0])
    with pytest.raises(RuntimeError, match="heads of 16 to 64"):
        attention(*make((1, 1, 3, 8), 3, 1), backend="triton")
    with pytest.raises(RuntimeError, match="no gradient of the mask"):
        attention(*tensors, mask=torch.zeros(3, 5, requires_grad=True), backend="triton")


def test_the_compiler_traces_it():
    from fastlik.ops.attention.triton import FUSED

    tensors = [each.requires_grad_() for each in make((1, 1, 5, 16), 5, 1)]
    torch.library.opcheck(FUSED.operator, (*tensors, None, False, 0.3))
