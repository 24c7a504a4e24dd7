"""The latent's density: conventions, matched moments, mismatch."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal

import fastlik
from fastlik.likelihood.prior import prior_mismatch
from fastlik.testing import GaussianMixture

DATA = GaussianMixture.random(3, 4)


def test_standard_priors_of_the_literature():
    for schedule, variance in ((fastlik.VP(), 1.0), (fastlik.VE(), 2500.0), (fastlik.EDM(), 6400.0)):
        result = fastlik.ode_nll(DATA.model(schedule), DATA.sample(3))
        normal = Normal(0.0, math.sqrt(variance))
        custom = Independent(Normal(torch.zeros(4), torch.full((4,), math.sqrt(variance))), 1)
        other = fastlik.ode_nll(DATA.model(schedule), DATA.sample(3), prior=custom)
        torch.testing.assert_close(result.nats, other.nats, rtol=0, atol=1e-5)
        assert f"{variance:.6g}" in result.protocol["prior"]
        assert normal.log_prob(result.latent).sum(1).isfinite().all()


def test_the_matched_prior_is_closer_to_the_truth():
    """A small sigma_max makes the standard prior visibly wrong."""
    schedule = fastlik.EDM(sigma_max=10.0)
    x = DATA.sample(64)
    exact = DATA.log_density(x, sigma=schedule.sigma_min)
    model = DATA.model(schedule, moments=True)
    matched = fastlik.ode_nll(model, x, tolerance=1e-5)
    standard = fastlik.ode_nll(model, x, tolerance=1e-5, prior="standard")
    assert matched.protocol["prior"].startswith("matched")
    assert (standard.nats + exact).abs().mean() > 10 * (matched.nats + exact).abs().mean()


def test_mismatch_is_reported_in_nats_per_dimension():
    schedule = fastlik.EDM(sigma_max=10.0)
    model = DATA.model(schedule, moments=True)
    covariance = DATA.covariance + 100 * torch.eye(4)
    exact = torch.distributions.kl_divergence(
        torch.distributions.MultivariateNormal(DATA.mean, covariance),
        torch.distributions.MultivariateNormal(torch.zeros(4).double(), 100 * torch.eye(4).double()),
    )
    assert prior_mismatch(model, 10.0, 4) == pytest.approx(float(exact) / 4, rel=1e-6)
    result = fastlik.ode_nll(model, DATA.sample(2))
    assert result.protocol["standard_prior_mismatch_nats_per_dim"] == pytest.approx(float(exact) / 4)
    assert prior_mismatch(DATA.model(schedule), 10.0, 4) is None


@pytest.mark.parametrize("spread", [0.7, torch.full((2, 2), 0.7), torch.eye(4) * 0.7])
def test_moments_may_be_scalars_event_shaped_or_a_covariance(spread):
    model = DATA.model(fastlik.EDM(sigma_max=5.0))
    model.set_moments((0.1, spread))
    x = DATA.sample(3).reshape(3, 2, 2)
    mean, variance = torch.full((4,), 0.1), torch.full((4,), 25.7)
    custom = Independent(Normal(mean.double(), variance.double().sqrt()), 1)
    torch.testing.assert_close(
        fastlik.ode_nll(model, x).nats, fastlik.ode_nll(model, x, prior=custom).nats, rtol=0, atol=1e-5
    )


def test_moments_that_do_not_fit():
    model = DATA.model(fastlik.VP())
    model.set_moments((torch.zeros(3), 1.0))
    with pytest.raises(ValueError, match="mean in moments has 3 numbers"):
        fastlik.ode_nll(model, DATA.sample(2))
