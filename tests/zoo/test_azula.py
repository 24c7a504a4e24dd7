"""Denoisers of azula."""

import azula.denoise
import azula.noise
import pytest
import torch

import fastlik
from fastlik import zoo
from fastlik.testing import GaussianMixture
from fastlik.zoo.azula import AzulaSchedule

SCHEDULES = [
    azula.noise.VESchedule(1e-3, 50.0),
    azula.noise.VPSchedule(),
    azula.noise.CosineSchedule(),
    azula.noise.RectifiedSchedule(),
    azula.noise.DecaySchedule(),
]
by_name = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)


class Exact(azula.denoise.Denoiser):
    """The exact posterior mean of a mixture."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule, self.data = schedule, GaussianMixture.ring()

    def forward(self, x_t, t):
        alpha, sigma = self.schedule(t)
        return azula.denoise.DiracPosterior(mean=self.data.denoised(x_t, alpha, sigma))


@by_name
def test_the_inverse_and_the_rates_of_schedules(schedule):
    wrapped, t = AzulaSchedule(schedule), torch.linspace(0, 1, 41, dtype=torch.float64)
    found = wrapped.t(wrapped.log_snr(t))
    torch.testing.assert_close(found[1:], t[1:], rtol=0, atol=1e-11)
    # the SNR may be flat at the data
    torch.testing.assert_close(wrapped.log_snr(found), wrapped.log_snr(t), rtol=0, atol=1e-6)
    inside, step = t[1:-1], 1e-6
    for scale, rate in zip((wrapped.alpha, wrapped.sigma), wrapped.rates(inside), strict=True):
        difference = (scale(inside + step) - scale(inside - step)) / (2 * step)
        torch.testing.assert_close(rate, difference, rtol=1e-6, atol=1e-6)


@by_name
def test_exact_denoisers_have_the_data_s_likelihood(schedule):
    data = GaussianMixture.ring()
    model = zoo.from_azula(Exact(schedule), moments=(data.mean, data.covariance))
    x = data.sample(8, seed=3)
    alpha, sigma = (float(value) for value in schedule(torch.zeros((), dtype=torch.float64)))
    result = fastlik.ode_nll(model, x, tolerance=1e-5)
    assert bool(result.converged.all())
    torch.testing.assert_close(-result.nats, data.log_density(x, alpha, sigma), rtol=0, atol=1e-3)
    assert result.protocol["schedule"]["name"] == f"azula.{type(schedule).__name__}"


def test_the_posterior_s_mean_is_taken():
    torch.manual_seed(0)
    backbone = fastlik.nn.MLP(3, width=16, depth=2)
    denoiser = azula.denoise.KarrasDenoiser(backbone, azula.noise.VPSchedule())
    x, t = torch.randn(5, 3), torch.linspace(0.1, 0.9, 5)
    expected = denoiser(x, t).mean
    torch.testing.assert_close(zoo.from_azula(denoiser).denoised(x, t), expected, rtol=1e-5, atol=1e-6)
