"""Anchors: expectations and integrals in closed form against sums."""

import itertools
import math

import pytest
import torch

import fastlik
from fastlik.likelihood.anchor import GaussianAnchor, PlainAnchor, choose_anchor
from fastlik.testing import GaussianMixture

GENERATOR = torch.Generator().manual_seed(0)
X0 = torch.randn(4, 3, generator=GENERATOR, dtype=torch.float64)
MEAN = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64)
ROOT = torch.randn(3, 3, generator=GENERATOR, dtype=torch.float64)
ANCHORS = {
    "plain": PlainAnchor(),
    "variances": GaussianAnchor(MEAN, torch.tensor([0.04, 1.0, 0.0], dtype=torch.float64)),
    "covariance": GaussianAnchor(MEAN, ROOT @ ROOT.T),
}
SNR = torch.tensor([1e6, 30.0, 1.0, 1e-4], dtype=torch.float64)


@pytest.fixture(params=ANCHORS)
def anchor(request):
    return ANCHORS[request.param]


@pytest.mark.parametrize("form", ["explicit", "implicit"])
def test_the_expectation_of_either_form(anchor, form):
    """Both are quadratic in the noise: the mean over all signs is their expectation."""
    value = getattr(anchor, form)
    for column, snr in enumerate(SNR):
        mean = sum(
            value(X0, torch.tensor([signs] * 4, dtype=torch.float64), snr.expand(4))
            for signs in itertools.product((-1.0, 1.0), repeat=3)
        )
        torch.testing.assert_close(mean / 8, anchor.expected(X0, SNR)[:, column], rtol=1e-10, atol=1e-12)


def test_the_integral_of_the_expectation(anchor):
    gamma = torch.linspace(-14.0, 6.0, 20001, dtype=torch.float64)
    sums = torch.trapezoid(anchor.expected(X0, (-gamma).exp()), gamma)
    torch.testing.assert_close(
        anchor.integral(X0, math.exp(14.0), math.exp(-6.0)), sums, rtol=1e-6, atol=1e-4
    )


def test_a_covariance_that_is_diagonal_is_its_variances():
    variances = torch.tensor([0.04, 1.0, 0.3], dtype=torch.float64)
    one, other = GaussianAnchor(MEAN, variances), GaussianAnchor(MEAN, variances.diag())
    noise, snr = torch.randn(4, 3, generator=GENERATOR, dtype=torch.float64), SNR
    for form in ("explicit", "implicit"):
        torch.testing.assert_close(getattr(one, form)(X0, noise, snr), getattr(other, form)(X0, noise, snr))
    torch.testing.assert_close(one.integral(X0, 1e5, 1e-3), other.integral(X0, 1e5, 1e-3))


def test_images_are_vectors():
    image = X0[:, :2].reshape(4, 1, 2)
    noise, snr = torch.ones_like(image), torch.ones(4, dtype=torch.float64)
    anchor = GaussianAnchor(MEAN[:2], torch.ones(2, dtype=torch.float64))
    for one in (anchor, PlainAnchor()):
        assert torch.equal(
            one.explicit(image, noise, snr), one.explicit(image.flatten(1), noise.flatten(1), snr)
        )


def test_a_models_anchor_is_made_once():
    """And anew where its moments are others."""
    model = GaussianMixture.random(2, 3).model(fastlik.VP(), moments=True)
    first = choose_anchor(model, 3, X0.device)
    assert choose_anchor(model, 3, X0.device) is first
    model.set_moments((MEAN, ROOT @ ROOT.T))
    second = choose_anchor(model, 3, X0.device)
    assert second is not first and torch.equal(second.mean, MEAN)
    model.set_moments((0.5, 2.0))
    assert (
        len(choose_anchor(model, 3, X0.device).mean) == 3
        and len(choose_anchor(model, 5, X0.device).mean) == 5
    )
    model.set_moments(None)
    assert isinstance(choose_anchor(model, 3, X0.device), PlainAnchor)


def test_a_singular_covariance():
    """Data on a plane: nothing off it is negative by rounding."""
    direction = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    anchor = GaussianAnchor(torch.zeros_like(MEAN), direction.T @ direction)
    assert (anchor.variance >= 0).all()
    assert anchor.integral(X0, 1e9, 0.0).isfinite().all()
