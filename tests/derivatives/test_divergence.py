"""Jacobian products and traces against dense Jacobians, float64."""

import copy

import pytest
import torch
from torch import nn

import fastlik
from fastlik.derivatives.divergence import traces
from fastlik.derivatives.products import vjp


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(15, 32), nn.SiLU(), nn.Linear(32, 15), nn.Unflatten(1, (3, 5)))
    return nn.Sequential(nn.Flatten(), *layers).double().requires_grad_(False)


@pytest.fixture(scope="module")
def x():
    return torch.randn(4, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def jacobian(net, x):
    rows = [torch.autograd.functional.jacobian(net, row[None]) for row in x]
    return torch.stack([row.reshape(15, 15) for row in rows])


def stacked(x, count=3):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(count, *x.shape, dtype=x.dtype, generator=generator)


def test_products(net, x, jacobian):
    v = stacked(x)
    value, forward = fastlik.jvp(net, x, v)
    torch.testing.assert_close(value, net(x))
    expected = torch.einsum("bij,kbj->kbi", jacobian, v.flatten(2))
    torch.testing.assert_close(forward.flatten(2), expected)
    torch.testing.assert_close(fastlik.jvp(net, x, v[0])[1], forward[0])
    value, reverse = vjp(net, x, v)
    torch.testing.assert_close(value, net(x))
    expected = torch.einsum("bij,kbi->kbj", jacobian, v.flatten(2))
    torch.testing.assert_close(reverse.flatten(2), expected)


@pytest.mark.parametrize("mode", ["auto", "jvp", "vjp"])
def test_exact_divergence(net, x, jacobian, mode):
    value, trace = fastlik.divergence(net, x, method="exact", mode=mode)
    torch.testing.assert_close(value, net(x))
    torch.testing.assert_close(trace, jacobian.diagonal(dim1=1, dim2=2).sum(1))


def test_exact_divergence_of_more_than_one_group_of_tangents():
    matrix = torch.randn(37, 37, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, trace = fastlik.divergence(lambda x: x @ matrix.T, torch.zeros(2, 37).double(), method="exact")
    torch.testing.assert_close(trace, matrix.trace().expand(2))


def test_the_modes_give_the_same_estimate(net, x):
    forward = fastlik.divergence(net, x, method="hutchinson", mode="jvp", probes=3, seed=4)[1]
    reverse = fastlik.divergence(net, x, method="hutchinson", mode="vjp", probes=3, seed=4)[1]
    torch.testing.assert_close(forward, reverse)


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_hutchinson_mean_and_variance_on_a_linear_field(kind):
    """F.10: mean tr A whatever K; variance 2 sum_{i != j} S_ij^2, or 2 ||S||^2 for Gaussian probes."""
    n, d = 20_000, 6
    matrix = torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    symmetric = 0.5 * (matrix + matrix.T)
    _, estimates = fastlik.divergence(
        lambda x: x @ matrix.T,
        torch.zeros(n, d, dtype=torch.float64),
        method="hutchinson",
        probe_kind=kind,
        seed=1,
    )
    square = symmetric.square()
    variance = 2 * (square.sum() - (square.trace() if kind == "rademacher" else 0))
    assert abs(estimates.mean() - matrix.trace()) < 5 * (variance / n) ** 0.5
    # the kurtosis of such quadratic forms is below 12: their sample variance has rsd < sqrt(12 / n)
    assert abs(estimates.var() / variance - 1) < 5 * (12 / n) ** 0.5


def test_the_mean_does_not_depend_on_the_number_of_probes():
    matrix = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.zeros(4000, 5, dtype=torch.float64)
    _, estimates = fastlik.divergence(lambda x: x @ matrix.T, x, method="hutchinson", probes=7)
    assert abs(estimates.mean() - matrix.trace()) < 5 * estimates.std() / 4000**0.5


def test_a_diagonal_field_has_no_rademacher_variance():
    scale = torch.linspace(-1, 2, 5, dtype=torch.float64)
    _, trace = fastlik.divergence(
        lambda x: x * scale, torch.zeros(8, 5).double(), method="hutchinson", probes=2
    )
    torch.testing.assert_close(trace, scale.sum().expand(8))


def test_every_probe_has_its_own_column(net, x, jacobian):
    v = stacked(x)
    _, columns = traces(net, x, v)
    expected = torch.einsum("kbi,bij,kbj->bk", v.flatten(2), jacobian, v.flatten(2))
    torch.testing.assert_close(columns, expected)


@pytest.mark.parametrize("mode", ["jvp", "vjp"])
def test_a_kernel_draws_the_probes_again(net, x, mode, monkeypatch):
    from fastlik.ops.hutchinson.triton import FUSED

    original, ran = FUSED.run, []
    monkeypatch.setattr(FUSED, "run", lambda *args, **options: ran.append(1) or original(*args, **options))
    options = dict(method="hutchinson", probes=3, seed=7, mode=mode, rows=torch.tensor([5, 1, 0, 9]))
    net, x = copy.deepcopy(net).float(), x.float()
    expected = fastlik.divergence(net, x, **options)
    monkeypatch.setenv("FASTLIK_BACKEND", "triton")
    actual = fastlik.divergence(net, x, chunk=2, **options)
    assert len(ran) == 2
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_gradients_flow_where_they_are_wanted():
    weight = torch.tensor([[0.3, 1.0], [0.2, -0.7]], dtype=torch.float64, requires_grad=True)
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    _, trace = fastlik.divergence(lambda x: torch.tanh(x @ weight.T), x, method="exact")
    by_x, by_weight = torch.autograd.grad(trace.sum(), (x, weight))
    y = torch.tanh(x @ weight.T)
    closed = ((1 - y**2) * weight.diagonal()).sum()
    expected = torch.autograd.grad(closed, (x, weight))
    torch.testing.assert_close(by_x, expected[0])
    torch.testing.assert_close(by_weight, expected[1])
    with torch.no_grad():
        assert not fastlik.divergence(lambda x: torch.tanh(x @ weight.T), x)[1].requires_grad


def test_inference_mode_and_empty_batch(net):
    with torch.inference_mode():
        x = torch.randn(2, 3, 5, dtype=torch.float64)
        assert fastlik.divergence(net, x, method="hutchinson")[1].shape == (2,)
    assert fastlik.divergence(net, torch.zeros(0, 3, 5).double())[1].shape == (0,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(method="hutch"), "'auto', 'exact', 'hutchinson'"),
        (dict(mode="forward"), "'auto', 'jvp', 'vjp'"),
        (dict(probes=0), "at least 1"),
    ],
)
def test_unknown_options(net, x, options, message):
    with pytest.raises(ValueError, match=message):
        fastlik.divergence(net, x, **options)


def test_vectors_that_do_not_fit(net, x):
    with pytest.raises(ValueError, match=r"\(K, 4, 3, 5\)"):
        fastlik.jvp(net, x, x[:2])
