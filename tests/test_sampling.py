"""Samples by ODE and SDE: distribution, likelihood, reproducibility."""

import pytest
import torch

import fastlik
from fastlik.testing import GaussianMixture

DATA = GaussianMixture.random(3, 2, seed=4)


def model(schedule=None, **options):
    return DATA.model(schedule or fastlik.VP(), "v", moments=True, **options)


@pytest.mark.parametrize("method", ["rk45", "sde"])
@pytest.mark.parametrize(
    "schedule",
    [fastlik.VP(), fastlik.EDM(), fastlik.RectifiedFlow(), fastlik.RectifiedFlow(data_at=1)],
    ids=lambda s: type(s).__name__,
)
def test_samples_follow_the_data(method, schedule):
    """The mean log-density of the samples is minus the entropy, within five standard errors and what 200
    steps of the SDE leave."""
    n = 1500
    samples = fastlik.sample(model(schedule), (n, 2), method=method, steps=200)
    log_density = DATA.log_density(samples)
    expected = DATA.log_density(DATA.sample(200_000, 9)).mean()
    assert abs(log_density.mean() - expected) < 5 * log_density.std() / n**0.5 + 0.02
    assert (samples.mean(0) - DATA.mean).abs().max() < 5 * samples.std() / n**0.5 + 0.02


def test_sample_i_depends_on_seed_and_i_alone():
    for method in ("rk45", "sde"):
        many = fastlik.sample(model(), (9, 2), method=method, steps=20)
        few = fastlik.sample(model(), (3, 2), method=method, steps=20)
        torch.testing.assert_close(many[:3], few, rtol=0, atol=1e-5)
        assert not torch.equal(few, fastlik.sample(model(), (3, 2), method=method, steps=20, seed=1))


def test_the_likelihood_of_the_samples_comes_with_them():
    samples, nll = fastlik.sample(model(), (32, 2), return_nll=True, tolerance=1e-4)
    again = fastlik.ode_nll(model(), samples, tolerance=1e-4)
    torch.testing.assert_close(nll.nats, again.nats, rtol=0, atol=2e-3)
    torch.testing.assert_close(nll.latent, again.latent, rtol=0, atol=2e-3)
    torch.testing.assert_close(nll.nats, -DATA.log_density(samples), rtol=0, atol=5e-3)


def test_shape_from_the_model():
    known = model()
    with pytest.raises(ValueError, match=r"pass \(4, \*event\)"):
        fastlik.sample(known, 4)
    known.event_shape = (2,)
    assert fastlik.sample(known, 4).shape == (4, 2)


def test_a_prior_without_a_closed_form_draw():
    prior = torch.distributions.Independent(
        torch.distributions.StudentT(torch.full((2,), 5.0), torch.zeros(2), torch.ones(2)), 1
    )
    state = torch.random.get_rng_state()
    first, second = (fastlik.sample(model(), (5, 2), prior=prior, seed=3) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(method="ddim"), "'auto', 'adams', 'rk45', 'tsit5', 'sde'"),
        (dict(method="sde", return_nll=True), "return_nll needs an ODE method"),
        (dict(shape_or_n=(4,)), r"\(n, \*event\)"),
        (dict(steps=0), "steps must be"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        fastlik.sample(model(), **{"shape_or_n": (4, 2), **arguments})
