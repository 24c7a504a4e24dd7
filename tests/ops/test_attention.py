"""The jet of softmax attention: the Triton kernels against float64 PyTorch."""

import pytest
import torch

import fastlik
from fastlik.ops.attention import attention

from .fused import DEVICE, ROUNDING, assert_close, check, normal

KINDS = ("none", "along", "sum")


def make(shape, keys, count, dtype=torch.float32, kind="none"):
    """Queries (B, H, T, D), keys and values, and their first and second derivatives."""
    batch, heads, length, size = shape
    sizes = [shape, (batch, heads, keys, size), (batch, heads, keys, size)]
    counts = {"none": [count], "along": [count, count], "sum": [count, 1]}[kind]
    tensors = [normal(*each, dtype=dtype, seed=i) for i, each in enumerate(sizes)]
    for n in counts:
        tensors += [normal(n, *each, dtype=dtype, seed=len(tensors) + i) for i, each in enumerate(sizes)]
    return tensors


def masked(mask=None, **options):
    def operation(*tensors, backend):
        wanted = mask if mask is None or mask.dtype == torch.bool else mask.to(tensors[0].dtype)
        return attention(*tensors, mask=wanted, backend=backend, **options)

    return operation


@pytest.mark.parametrize(
    ("count", "kind"), [(1, "none"), (2, "none"), (3, "none"), (2, "along"), (1, "sum"), (3, "sum")]
)
def test_values_and_gradients(count, kind):
    check(masked(), *make((1, 1, 37, 24), 50, count, kind=kind))


@pytest.mark.parametrize(("size", "kind"), [(16, "none"), (33, "sum"), (64, "along")])
def test_head_sizes_and_a_causal_mask(size, kind):
    check(masked(causal=True, scale=0.3), *make((1, 2, 45, size), 45, 1, kind=kind))


@pytest.mark.parametrize("kind", ["none", "sum"])
@pytest.mark.parametrize("mask", ["bool", "sum"])
def test_masks(mask, kind):
    tensors = make((2, 2, 21, 32), 33, 1, kind=kind)
    seen = normal(2, 1, 21, 33, seed=8) > 0
    seen[1, 0, 5] = False  # a query that sees nothing
    check(masked(seen if mask == "bool" else normal(2, 21, 1, seed=8).expand(2, 21, 33)), *tensors)


# the interpreter cannot multiply matrices in bfloat16
@pytest.mark.parametrize("dtype", [torch.float16, *[torch.bfloat16] * (DEVICE == "cuda")])
def test_low_precision(dtype):
    check(masked(), *make((1, 2, 30, 64), 50, 2, dtype))
    check(masked(causal=True), *make((1, 1, 20, 100), 20, 3, dtype))
    check(masked(), *make((1, 1, 20, 100), 30, 2, dtype, "sum"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("batch", "count"), [(0, 1), (1, 0)])
def test_empty(batch, count, kind):
    if (count, kind) != (0, "sum"):
        check(masked(), *make((batch, 1, 3, 16), 5, count, kind=kind))


def test_layouts():
    packed, packed1 = normal(2, 9, 3, 2, 16), normal(1, 2, 9, 3, 2, 16, seed=1)
    primals = [each.transpose(1, 2) for each in packed.unbind(2)]
    tangents = [each.transpose(2, 3) for each in packed1.unbind(3)]
    for tensors in ((*primals, *tangents), (*primals, *tangents, *tangents)):
        actual = attention(*tensors, backend="triton")
        expected = attention(*(each.double() for each in tensors), backend="torch")
        for a, b in zip(actual, expected, strict=True):
            assert_close(a, b, ROUNDING[torch.float32])


def test_a_derivative_that_all_scores_share_costs_no_digits():
    """Adding a vector to all keys, or to their derivatives, changes no weight."""
    tensors = make((1, 1, 20, 64), 70, 1, torch.float16, "along")
    tensors[3:9] = [0.1 * each for each in tensors[3:9]]
    for moved in (tensors[1], tensors[4], tensors[7]):
        moved += 8 * normal(64, dtype=torch.float16, seed=20)
    check(masked(), *tensors, gradients=False)


@pytest.mark.parametrize("collapse", [False, True])
def test_it_is_the_derivative_of_pytorchs(collapse):
    x, v = normal(2, 3, 7, 16, dtype=torch.float64), normal(2, 2, 3, 7, 16, dtype=torch.float64, seed=1)

    def f(x):
        return torch.nn.functional.scaled_dot_product_attention(x.sin(), 2 * x, x.square())

    truth = fastlik.jet(f, x, v, 2, collapse=collapse, backend="torch")
    jets = [
        (x.sin(), x.cos() * v, -x.sin() * v * v),
        (2 * x, 2 * v, 0 * v),
        (x.square(), 2 * x * v, 2 * v * v),
    ]
    primals, firsts, seconds = zip(*jets, strict=True)
    if collapse:
        seconds = [each.sum(0, keepdim=True) for each in seconds]
    results = attention(*primals, *firsts, *seconds)
    if collapse:
        results[2] = results[2][0]
    for actual, expected in zip(results, truth, strict=True):
        assert_close(actual, expected, 1e-12)
    for actual, expected in zip(attention(*primals, *firsts), truth, strict=False):
        assert_close(actual, expected, 1e-12)


def test_what_does_not_fit_is_refused():
    tensors = make((1, 2, 3, 16), 5, 1)
    with pytest.raises(ValueError, match="query must be"):
        attention(tensors[0][0], *tensors[1:])
    with pytest.raises(ValueError, match="value1 must be"):
        attention(*tensors[:5], tensors[5][:0])
    with pytest.raises(ValueError, match="key2 must be"):
        attention(*tensors, tensors[3], tensors[4][:0], tensors[5])
    with pytest.raises(ValueError, match="given together"):
        attention(*tensors, tensors[3])
    with pytest.raises(RuntimeError, match="heads of 16 to 64"):
        attention(*make((1, 1, 3, 8), 3, 1), backend="triton")
    with pytest.raises(RuntimeError, match="no gradient of the mask"):
        attention(*tensors, mask=torch.zeros(3, 5, requires_grad=True), backend="triton")


@pytest.mark.parametrize("kind", ["none", "sum"])
def test_the_compiler_traces_it(kind):
    from fastlik.ops.attention.triton import FUSED

    tensors = [each.requires_grad_() for each in make((1, 1, 5, 16), 5, 2, kind=kind)]
    seconds = tensors[6:] or [None] * 3
    torch.library.opcheck(FUSED.operator, (*tensors[:6], *seconds, None, False, 0.3))
