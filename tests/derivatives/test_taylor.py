"""fastlik.jvp and fastlik.jet: shapes, conventions and what they refuse."""

import pytest
import torch

import fastlik

X = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
U, V = torch.randn(2, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def cubic(x):
    """Known in closed form: component i is x_i^2 x_j."""
    return x**2 * x.flip(1)


@pytest.mark.parametrize("backend", ["jets", "torch"])
def test_derivatives_along_a_direction_are_not_divided_by_factorials(backend):
    value, first, second, third = fastlik.jet(cubic, X, V, 3, backend=backend)
    y, w = X.flip(1), V.flip(1)
    torch.testing.assert_close(value, X**2 * y)
    torch.testing.assert_close(first, 2 * X * V * y + X**2 * w)
    torch.testing.assert_close(second, 2 * V**2 * y + 4 * X * V * w)
    torch.testing.assert_close(third, 6 * V**2 * w)


@pytest.mark.parametrize("backend", ["jets", "torch"])
def test_mixed_derivatives(backend):
    y, u, v = X.flip(1), U.flip(1), V.flip(1)
    value, by_u, by_v, by_uv = fastlik.jet(cubic, X, (U, V), backend=backend)
    torch.testing.assert_close(by_u, fastlik.jvp(cubic, X, U)[1])
    torch.testing.assert_close(by_v, fastlik.jvp(cubic, X, V)[1])
    torch.testing.assert_close(by_uv, 2 * U * V * y + 2 * X * (U * v + V * u))
    results = fastlik.jet(cubic, X, (U, V, U + V), backend=backend)
    assert len(results) == 8
    torch.testing.assert_close(results[4], by_uv)
    w = U + V
    expected = 2 * (U * V * w.flip(1) + U * w * v + V * w * u)
    torch.testing.assert_close(results[7], expected)


@pytest.mark.parametrize("backend", ["jets", "torch"])
def test_stacks_of_directions_and_their_collapsed_sum(backend):
    stack = torch.stack((U, V, U - V))
    _, first, second = fastlik.jet(cubic, X, stack, 2, backend=backend)
    assert first.shape == second.shape == (3, 3, 2)
    for k, v in enumerate(stack):
        torch.testing.assert_close(second[k], fastlik.jet(cubic, X, v, 2, backend=backend)[2])
    _, same, total = fastlik.jet(cubic, X, stack, collapse=True, backend=backend)
    torch.testing.assert_close(same, first)
    torch.testing.assert_close(total, second.sum(0))


def test_one_direction_in_a_list_and_order_one():
    assert len(fastlik.jet(cubic, X, [V])) == 2
    torch.testing.assert_close(fastlik.jet(cubic, X, V, 1)[1], fastlik.jvp(cubic, X, V)[1])


def test_functions_that_change_the_shape_of_the_event():
    value, product = fastlik.jvp(lambda x: x.square().sum(1), X, torch.stack((U, V)))
    assert value.shape == (3,) and product.shape == (2, 3)
    torch.testing.assert_close(product[1], (2 * X * V).sum(1))


@pytest.mark.parametrize("mode", ["jvp", "vjp"])
def test_chunks_of_probes_change_nothing(mode):
    options = dict(method="hutchinson", mode=mode, probes=5)
    whole = fastlik.divergence(cubic, X, **options)
    chunked = fastlik.divergence(cubic, X, chunk=2, **options)
    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(fastlik.divergence(cubic, X, backend="torch", **options), whole)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fastlik.jvp(cubic, X, V, backend="jet"), "'auto', 'jets', 'torch'"),
        (lambda: fastlik.jvp(cubic, X, V[:2]), r"\(K, 3, 2\)"),
        (lambda: fastlik.jet(cubic, X, V, 4), "order must be 1, 2 or 3"),
        (lambda: fastlik.jet(cubic, X, V, 3, collapse=True), "only second"),
        (lambda: fastlik.jet(cubic, X, (U, V), 3), "2 or 3 directions and of that order"),
        (lambda: fastlik.jet(cubic, X, (U, V[None])), "different shapes"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
