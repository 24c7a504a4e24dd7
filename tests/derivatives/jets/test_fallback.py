"""Operations without a rule, and those that jets cannot go through: never a silent zero."""

import warnings

import pytest
import torch

import fastlik
from fastlik.derivatives.jets import NoDerivative, fallback
from fastlik.derivatives.jets.registry import RULES

from .oracle import assert_close, check, directions

X = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@torch.library.custom_op("fastlik_test::cube", mutates_args=())
def cube(x: torch.Tensor) -> torch.Tensor:
    return x**3


cube.register_autograd(
    lambda ctx, grad: 3 * grad * ctx.saved_tensors[0] ** 2,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
)


@torch.library.custom_op("fastlik_test::opaque", mutates_args=())
def opaque(x: torch.Tensor) -> torch.Tensor:
    return x.sin()


@pytest.fixture(autouse=True)
def forget_warnings():
    fallback._WARNED.clear()


def test_an_operation_without_a_rule_is_exact_and_named_once():
    assert "lgamma" not in RULES

    def f(x):
        return torch.lgamma(x**2 + 1) * x.sin()

    with pytest.warns(UserWarning, match="no rule for lgamma"):
        fastlik.jet(f, X, directions(X), 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(f, X)


def test_an_operation_with_several_results():
    def f(x):
        sign, value = torch.linalg.slogdet(x[:, None] * x[..., None] + torch.eye(4, dtype=x.dtype))
        return sign[:, None] * value[:, None] * x

    with pytest.warns(UserWarning, match="slogdet"):
        check(f, X, order=2)


def test_a_custom_operator_with_a_backward_formula():
    """torch.func.jvp returns zeros here, without a word."""
    with pytest.warns(UserWarning, match="cube"):
        check(lambda x: cube(x.sin()), X, reference=lambda x: x.sin() ** 3)


def test_a_custom_operator_without_one_is_refused():
    with pytest.raises(NoDerivative, match="opaque"), pytest.warns(UserWarning):
        fastlik.jvp(lambda x: opaque(x) + x, X, X, backend="jets")
    with pytest.raises(RuntimeError), pytest.warns(UserWarning):
        fastlik.jvp(lambda x: opaque(x) + x, X, X)


def test_parameters_of_an_operation_without_a_rule_have_gradients():
    weight = torch.rand(4, dtype=torch.float64, requires_grad=True)

    def loss(backend):
        value, product = fastlik.jvp(lambda x: torch.lgamma(x**2 + weight), X, X, backend=backend)
        return (value * product).sum()

    with pytest.warns(UserWarning, match="lgamma"):
        (jets,) = torch.autograd.grad(loss("jets"), weight)
    (truth,) = torch.autograd.grad(loss("torch"), weight)
    assert_close(jets, truth)


def test_inference_mode():
    with torch.inference_mode(), pytest.warns(UserWarning, match="lgamma"):
        x = X.clone()
        value, product = fastlik.jvp(lambda x: torch.lgamma(x**2 + 1), x, x)
    assert_close(product.clone(), 2 * X * torch.digamma(X**2 + 1) * X)


class StraightThrough(torch.autograd.Function):
    """Rounds; its derivative is said to be 1 + x."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return grad * (1 + ctx.saved_tensors[0])


def test_an_autograd_function_is_differentiated_by_its_own_formula():
    with pytest.warns(UserWarning, match="StraightThrough"):
        value, product = fastlik.jvp(lambda x: StraightThrough.apply(2 * x), X, X, backend="jets")
    assert_close(value, (2 * X).round())
    assert_close(product, (1 + 2 * X) * 2 * X)
    assert torch.equal(StraightThrough.apply(X), X.round())


def test_values_written_into_a_constant_are_refused_by_jets_and_served_by_autograd():
    def f(x):
        buffer = torch.zeros(3, 8, dtype=x.dtype)
        buffer[:, :4] = x**2
        return buffer

    with pytest.raises(NoDerivative, match="does not depend on x"):
        fastlik.jvp(f, X, X, backend="jets")
    with pytest.warns(UserWarning, match="plain autograd instead of jets"):
        _, product = fastlik.jvp(f, X, X)
    assert_close(product[:, :4], 2 * X * X)


def test_writing_through_a_view():
    def f(x):
        h = x.sin()
        view = h[:, 1:]
        view *= x[:, 1:]
        h[0].add_(x[0] ** 2)
        return h

    check(f, X, reference=lambda x: torch.cat((x[:, :1].sin(), x[:, 1:].sin() * x[:, 1:]), 1)
          + torch.tensor([[1.0], [0], [0]], dtype=x.dtype) * x[:1] ** 2)  # fmt: skip


def test_functions_that_do_not_depend_on_x():
    value, product = fastlik.jvp(lambda x: torch.ones_like(x), X, X)
    assert torch.equal(value, torch.ones_like(X)) and not product.any()


def test_a_result_that_is_no_tensor():
    with pytest.raises(TypeError, match="one tensor, got tuple"):
        fastlik.jvp(lambda x: (x, x), X, X)
