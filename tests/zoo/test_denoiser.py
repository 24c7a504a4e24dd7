"""Denoisers D(x, sigma) as of EDM and k-diffusion, and networks as score_sde calls them."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import fastlik
from fastlik import zoo
from fastlik.testing import GaussianMixture

DATA = GaussianMixture.ring()
MOMENTS = (DATA.mean, DATA.covariance)


class Denoiser(nn.Module):
    """The exact denoiser of a mixture."""

    sigma_min, sigma_max = 0.0, float("inf")  # as EDM's networks have them

    def forward(self, x, sigma, class_labels=None):
        return DATA.denoised(x, torch.ones_like(sigma), sigma)


def test_exact_denoisers_have_the_data_s_likelihood():
    x = DATA.sample(8, seed=6)
    model = zoo.from_denoiser(Denoiser(), moments=MOMENTS)
    assert (model.schedule.sigma_min, model.schedule.sigma_max) == (0.002, 80.0)
    result = fastlik.ode_nll(model, x, tolerance=1e-5)
    torch.testing.assert_close(-result.nats, DATA.log_density(x, 1.0, 0.002), rtol=0, atol=1e-3)


def test_bounds_are_the_network_s_own_or_as_given():
    net = Denoiser()
    net.sigma_min, net.sigma_max = torch.tensor(0.03), torch.tensor(14.6)
    model = zoo.from_denoiser(net, sigma_max=20.0)
    assert model.schedule.sigma_min == pytest.approx(0.03) and model.schedule.sigma_max == 20.0
    with pytest.raises(ValueError, match="sigma_min must be a finite number above 0, got 0"):
        zoo.from_denoiser(net, sigma_min=0)


class _Sde(SimpleNamespace):
    pass


def sde(kind, **attributes):
    """With the attributes that sde_lib's class of that name has."""
    return type(kind, (_Sde,), {})(**attributes)


class ScoreSde(nn.Module):
    """The exact prediction, called with labels as score_sde's networks are."""

    def __init__(self, schedule, predicts, time):
        super().__init__()
        self.exact, self.time = DATA.model(schedule, predicts=predicts).net, time

    def forward(self, x, labels):
        return self.exact(x, self.time(labels))


@pytest.mark.parametrize(
    "of, schedule, predicts, time",
    [
        (sde("VPSDE", beta_0=0.1, beta_1=20.0), fastlik.VP(), "noise", lambda labels: labels / 999),
        (sde("subVPSDE", beta_0=0.1, beta_1=20.0), fastlik.SubVP(), "noise", lambda labels: labels / 999),
        (
            sde("VESDE", sigma_min=0.01, sigma_max=50.0),
            fastlik.VE(),
            "score",
            lambda sigma: fastlik.VE().t(-2 * sigma.log()),
        ),
    ],
    ids=["VP", "subVP", "VE"],
)
def test_networks_of_score_sde(of, schedule, predicts, time):
    model = zoo.from_score_sde(ScoreSde(schedule, predicts, time), of, moments=MOMENTS)
    x = DATA.sample(8, seed=7)
    start = torch.tensor(schedule.t_data, dtype=torch.float64)
    expected = DATA.log_density(x, float(schedule.alpha(start)), float(schedule.sigma(start)))
    result = fastlik.ode_nll(model, x, tolerance=1e-5)
    torch.testing.assert_close(-result.nats, expected, rtol=0, atol=1e-3)


def test_another_sde_is_refused():
    with pytest.raises(TypeError, match="VPSDE, subVPSDE or VESDE"):
        zoo.from_score_sde(nn.Identity(), sde("Langevin"))
