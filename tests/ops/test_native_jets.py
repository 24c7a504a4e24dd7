"""Native jets of activations and group normalisation against the reference, and that against autograd."""

import pytest
import torch
from torch.nn import functional as F

from fastlik.derivatives import products
from fastlik.ops.activation import activation
from fastlik.ops.activation.native import FUNCTIONS as NATIVE
from fastlik.ops.dispatch import native_module
from fastlik.ops.normalisation import normalise

ROUNDING = {torch.float32: 3e-6, torch.float64: 1e-13}
FUNCTIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": lambda x: F.softplus(x, 1.5),
}

native = native_module()
needs_native = pytest.mark.skipif(native is None, reason="the native module is not built")


@pytest.fixture(params=native.isas() if native else [])
def isa(request):
    """Runs the test with each instruction set that this CPU has."""
    before = native.isa()
    native.select_isa(request.param)
    yield request.param
    native.select_isa(before)


def stacked_activation(x, tangents, function, parameter=1.0, backend="auto"):
    value, products = activation(x, tangents, function=function, parameter=parameter, backend=backend)
    return torch.cat((value[None], products))


def stacked_group_norm(x, tangents, groups, weight=None, bias=None, eps=1e-5, backend="auto"):
    scale, shift = (None if each is None else each[None] for each in (weight, bias))
    value, products = normalise(
        x, tangents, groups=groups, scale=scale, shift=shift, eps=eps, backend=backend
    )
    return torch.cat((value[None], products))


def inputs(*shape, count=2, dtype=torch.float64, last=False):
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(shape, dtype=dtype, generator=generator) + 1
    tangents = torch.randn(count, *shape, dtype=dtype, generator=generator)
    if last:
        order = dict(memory_format=torch.channels_last)
        x = x.contiguous(**order)
        tangents = tangents.flatten(0, 1).contiguous(**order).unflatten(0, (count, shape[0]))
    return x, tangents


def assert_close(actual, expected, dtype):
    expected = expected.to(actual.dtype)
    assert (actual - expected).abs().max() <= ROUNDING[dtype] * expected.abs().max()


def truth(f, x, tangents):
    value, derivatives = products.jvp(f, x.double(), tangents.double())
    return torch.cat((value[None], derivatives)).detach()


@pytest.mark.parametrize("function", NATIVE)
def test_the_reference_of_activations(function):
    x, tangents = inputs(3, 5)
    result = stacked_activation(x, tangents, function, 1.5, backend="torch")
    assert_close(result, truth(FUNCTIONS[function], x, tangents), torch.float64)


@pytest.mark.parametrize("affine", [False, True])
def test_the_reference_of_group_norm(affine):
    x, tangents = inputs(2, 6, 3, 5)
    weight, bias = torch.randn(2, 6, dtype=torch.float64) if affine else (None, None)
    result = stacked_group_norm(x, tangents, 3, weight, bias, 1e-3, backend="torch")
    assert_close(result, truth(lambda x: F.group_norm(x, 3, weight, bias, 1e-3), x, tangents), torch.float64)


@needs_native
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("function", NATIVE)
def test_native_activations(isa, function, dtype):
    for shape, count in (((1,), 1), ((3, 67), 3), ((1111,), 2)):
        x, tangents = inputs(*shape, count=count, dtype=dtype)
        result = stacked_activation(x, tangents, function, 1.5, backend="native")
        assert result.dtype == dtype
        assert_close(result, truth(FUNCTIONS[function], x, tangents), dtype)


@needs_native
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize(
    ("shape", "groups"),
    [((1, 4), 2), ((3, 6, 3), 3), ((2, 6, 5, 7), 2), ((2, 32, 3, 3), 8), ((1, 40, 18, 17), 8)],
)
@pytest.mark.parametrize("last", [False, True])
def test_native_group_norm(isa, dtype, shape, groups, last):
    if last and len(shape) != 4:
        shape = (*shape, 1, 1, 2)[:4]
    x, tangents = inputs(*shape, dtype=dtype, last=last)
    weight, bias = torch.randn(2, shape[1], dtype=dtype, generator=torch.Generator().manual_seed(1))
    for w, b in ((weight, bias), (None, None)):
        result = stacked_group_norm(x, tangents, groups, w, b, backend="native")
        expected = stacked_group_norm(
            *(each if each is None else each.double() for each in (x, tangents)),
            groups,
            *(each if each is None else each.double() for each in (w, b)),
            backend="torch",
        )
        assert_close(result, expected, dtype)
        options = dict(groups=groups, scale=None if w is None else w[None], backend="native")
        value, _ = normalise(x, tangents, **options)
        assert value.stride() == x.stride() or x.is_contiguous()


@needs_native
def test_other_orders_of_memory_and_nothing():
    x, tangents = inputs(4, 6, 5, 3)
    crossed, moved = x.transpose(0, 2).contiguous().transpose(0, 2), tangents.mT.contiguous().mT
    for a, t in (
        (crossed, tangents),
        (x, moved),
        (crossed, moved),
        (x, tangents[:1].expand(2, -1, -1, -1, -1)),
    ):
        ours, reference = (stacked_group_norm(a, t, 3, backend=b) for b in ("native", "torch"))
        torch.testing.assert_close(ours, reference)
        ours, reference = (stacked_activation(a, t, "silu", backend=b) for b in ("native", "torch"))
        torch.testing.assert_close(ours, reference)
    assert stacked_activation(x[:0], tangents[:, :0], "silu", backend="native").shape == (3, 0, 6, 5, 3)
    assert stacked_group_norm(x[:0], tangents[:, :0], 3, backend="native").shape == (3, 0, 6, 5, 3)


@needs_native
def test_means_far_from_zero_cost_no_accuracy():
    """Centred moments: E x^2 - (E x)^2 would lose all digits."""
    x, tangents = inputs(2, 4, 40, 40, dtype=torch.float32)
    x = x + 3000
    result = stacked_group_norm(x, tangents, 2, backend="native")
    expected = stacked_group_norm(x.double(), tangents.double(), 2, backend="torch")
    assert (result - expected).abs().max() < 2e-3


@needs_native
def test_not_a_number_stays_and_large_numbers_are_finite():
    x = torch.tensor([float("nan"), 1e4, -1e4, 0.0])
    result = stacked_activation(x, torch.ones(1, 4), "silu", backend="native")
    assert result[:, 0].isnan().all()
    torch.testing.assert_close(result[:, 1:], torch.tensor([[1e4, 0, 0], [1, 0, 0.5]]), atol=1e-6, rtol=0)


@needs_native
def test_what_is_not_native_is_refused_by_name():
    x, tangents = inputs(2, 4, 3)
    with pytest.raises(RuntimeError, match="first-order jets without a bias"):
        activation(x, tangents, tangents, function="silu", backend="native")
    with pytest.raises(RuntimeError, match="not sin"):
        activation(x, tangents, function="sin", backend="native")
    with pytest.raises(RuntimeError, match="without an activation"):
        normalise(x, tangents, function="silu", backend="native")
    with pytest.raises(RuntimeError, match="one scale and shift"):
        normalise(x, tangents, scale=torch.ones(2, 4), backend="native")


def test_auto_is_differentiable():
    x, tangents = inputs(2, 4, 3)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: stacked_group_norm(x, tangents, 2), x)
    assert torch.autograd.gradcheck(lambda x: stacked_activation(x, tangents, "silu"), x)
