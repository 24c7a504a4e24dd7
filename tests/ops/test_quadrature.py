"""Weights of polynomials through uneven nodes."""

import pytest
import torch

from fastlik.ops.dispatch import native_module
from fastlik.ops.quadrature import node_weights, reference, residuals
from fastlik.ops.quadrature.lagrange import lagrange_basis, lagrange_weights

needs_native = pytest.mark.skipif(native_module() is None, reason="the native module is not built")


def uneven(rows, n):
    gaps = 0.2 + torch.rand(rows, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return gaps.cumsum(1)


@pytest.mark.parametrize("points", [2, 4, 6])
@pytest.mark.parametrize("backward", [False, True])
def test_polynomials_of_lower_degree_are_integrated_exactly(points, backward):
    t = uneven(3, 9)
    t = 3 - t if backward else t
    count = torch.tensor([9, 7, points])
    weights = node_weights(t, count, points)
    for degree in range(points):
        for row, n in enumerate(count.tolist()):
            start, end = t[row, 0] ** (degree + 1), t[row, n - 1] ** (degree + 1)
            found = (weights[row] * t[row] ** degree).sum()
            assert found.item() == pytest.approx(((end - start) / (degree + 1)).item(), rel=1e-11, abs=1e-11)
            assert (weights[row, n:] == 0).all()


def test_rows_with_fewer_nodes_than_points_take_what_they_have():
    t, count = uneven(3, 6), torch.tensor([1, 2, 3])
    weights = node_weights(t, count)
    assert (weights[0] == 0).all()
    torch.testing.assert_close(weights[1, :2], (t[1, 1] - t[1, 0]) / 2 * torch.ones(2).double())
    square = (weights[2] * t[2] ** 2).sum()
    torch.testing.assert_close(square, (t[2, 2] ** 3 - t[2, 0] ** 3) / 3)


def test_a_row_does_not_depend_on_the_others():
    t, count = uneven(5000, 12), torch.arange(5000) % 12 + 1
    together = node_weights(t, count)
    assert torch.equal(together[4321:4322], node_weights(t[4321:4322], count[4321:4322]))
    assert node_weights(t[:0], count[:0]).shape == (0, 12)


def test_extrapolation_and_interpolation_reproduce_a_cubic():
    nodes, valid = uneven(4, 5), torch.tensor([True, True, False, True, True]).expand(4, 5)
    start, end = nodes[:, -1], nodes[:, -1] + 1

    def cubic(x):
        return 1 - x + 2 * x**2 - 0.5 * x**3

    def integral(x):
        return x - x**2 / 2 + 2 * x**3 / 3 - x**4 / 8

    found = (lagrange_weights(nodes, valid, start, end) * cubic(nodes)).sum(1)
    torch.testing.assert_close(found, integral(end) - integral(start))
    basis = lagrange_basis(nodes, valid, end)
    torch.testing.assert_close((basis * cubic(nodes)).sum(1), cubic(end))
    assert (basis[:, 2] == 0).all()


@pytest.mark.parametrize("points", [4, 6])
def test_residuals_vanish_for_polynomials_and_are_the_size_of_noise(points):
    t, count = uneven(400, 20), torch.full((400,), 20)
    count[:3] = torch.tensor([1, 3, points + 1])
    used = torch.arange(20) < count[:, None]
    smooth = residuals(t, count, torch.where(used, t**3 - 2 * t, 0.0), points)
    assert smooth[2:].abs().max() < 1e-10 and (smooth[~used] == 0).all()
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(400, 20, dtype=torch.float64, generator=generator)
    some = torch.tensor([7, 300])
    apart = residuals(t[some], count[some], noise[some], points)
    together = residuals(t.repeat(20, 1), count.repeat(20), noise.repeat(20, 1), points)
    assert torch.equal(together[some + 400 * 19], apart)  # more rows than are formed together
    mean_square = residuals(t, count, torch.where(used, noise, 0.0), points)[3:].square().mean().item()
    # 397 independent rows, whose mean squares over correlated nodes differ by about 0.4: four standard errors
    assert mean_square == pytest.approx(1, abs=0.08)


@needs_native
@pytest.mark.parametrize("backward", [False, True])
def test_native_is_the_reference(backward):
    rows, n = 60, 41
    t = uneven(rows, n)
    t = (3 - t if backward else t).repeat_interleave(2, 1)[:, ::2]  # not contiguous
    count = torch.arange(rows) % (n + 1)
    values = torch.randn(rows, n, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    values = torch.where(torch.arange(n) < count[:, None], values, 0.0)
    for points in (2, 4, 5, 6):
        expected = reference.node_weights(t, count, points)
        torch.testing.assert_close(node_weights(t, count, points, "native"), expected, rtol=1e-12, atol=1e-12)
        expected = reference.residuals(t, count, values, points)
        torch.testing.assert_close(
            residuals(t, count, values, points, "native"), expected, rtol=1e-12, atol=1e-12
        )
    assert node_weights(t[:0], count[:0], backend="native").shape == (0, n)
    with pytest.raises(ValueError, match="1 to 6 nodes"):
        node_weights(t, count, 7, "native")
