"""The oracles themselves, against autograd and quadrature."""

import math

import pytest
import torch

import fastlik
from fastlik.testing import GaussianMixture, quantised_gaussian_log_mass

ALPHA, SIGMA = (torch.tensor([0.9, 0.6, 0.3], dtype=torch.float64), torch.tensor([0.2, 0.7, 1.1]).double())


def test_derivatives_are_those_of_the_log_density():
    """F.5."""
    data = GaussianMixture.random(3, 4)
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    score = torch.autograd.grad(data.log_density(x, ALPHA, SIGMA).sum(), x, create_graph=True)[0]
    hessian = torch.stack(
        [torch.autograd.grad(score[:, i].sum(), x, create_graph=True)[0] for i in range(4)], 1
    )
    third = torch.autograd.grad(hessian.diagonal(dim1=1, dim2=2).sum(), x)[0]
    torch.testing.assert_close(data.score(x, ALPHA, SIGMA), score)
    torch.testing.assert_close(data.hessian(x, ALPHA, SIGMA), hessian)
    torch.testing.assert_close(data.laplacian_gradient(x, ALPHA, SIGMA), third)


def test_tweedie():
    data = GaussianMixture.random(3, 4)
    x = data.sample(3, 2)
    expected = (x + SIGMA[:, None] ** 2 * data.score(x, ALPHA, SIGMA)) / ALPHA[:, None]
    torch.testing.assert_close(data.denoised(x, ALPHA, SIGMA), expected)


def test_density_integrates_to_one_and_entropy_of_the_literature():
    """F.15: the 1-D mixture of Lu et al. 2022 has entropy -0.128854 nats."""
    data = GaussianMixture([0.3, 0.3, 0.4], [[-2 / 7], [-6 / 7], [4 / 7]], torch.tensor([0.1, 0.1, 1.0]) / 49)
    grid = torch.linspace(-3, 3, 60_001, dtype=torch.float64)
    log_density = data.log_density(grid[:, None])
    assert torch.trapezoid(log_density.exp(), grid) == pytest.approx(1, abs=1e-9)
    entropy = -torch.trapezoid(log_density.exp() * log_density, grid)
    assert entropy == pytest.approx(-0.128854, abs=1e-6)


def test_moments_and_samples():
    data = GaussianMixture.random(3, 2)
    x = data.sample(40_000, 3)
    spread = data.covariance.diagonal().sqrt()
    assert ((x.mean(0) - data.mean).abs() < 5 * spread / 200).all()
    torch.testing.assert_close(torch.cov(x.T), data.covariance, rtol=0.1, atol=0.03)


def test_quantised_gaussian_masses_add_up_to_one():
    levels = torch.arange(64)[:, None]
    mass = quantised_gaussian_log_mass(levels, 0.1, 0.2, 64, -1.0, 1.0).exp()
    tails = 1 - (math.erf(0.9 / 0.2 / 2**0.5) + math.erf(1.1 / 0.2 / 2**0.5)) / 2
    assert mass.sum() == pytest.approx(1 - tails, abs=1e-9)


def test_misfit_scales_the_score():
    data = GaussianMixture.random(3, 2)
    x = data.sample(3)
    exact, wrong = data.model(fastlik.VP()), data.model(fastlik.VP(), misfit=0.1)
    torch.testing.assert_close(wrong.score(x, 0.3), 1.1 * exact.score(x, 0.3))
