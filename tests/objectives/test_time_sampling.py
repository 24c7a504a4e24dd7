import math

import pytest
import torch

from fastlik.objectives import (
    importance_normaliser,
    likelihood_weight,
    log_snr_range,
    sample_times,
    stratified,
    weight,
    weight_integral,
)
from fastlik.schedule import (
    EDM,
    VE,
    VP,
    Cosine,
    DiscreteVP,
    LogSNR,
    RectifiedFlow,
    SubVP,
)

SCHEDULES = [
    VP(),
    SubVP(),
    VE(),
    Cosine(),
    EDM(),
    RectifiedFlow(),
    RectifiedFlow(data_at=1),
    LogSNR(),
    LogSNR(path="straight"),
    DiscreteVP(tuple(torch.cumprod(1 - torch.linspace(1e-4, 0.02, 100).double(), 0).tolist())),
]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: str(s)[:30])


@pytest.mark.parametrize(
    ("schedule", "value"),
    [(VP(), 23.864472), (SubVP(t_min=1e-5), 37.678946), (VE(), 17.034216)],
)
def test_normalisers_of_song_et_al(schedule, value):
    assert importance_normaliser(schedule) == pytest.approx(value, abs=1e-6)


@every_schedule
def test_weight_is_the_diffusion_over_the_variance(schedule):
    t = sample_times(schedule, "importance", torch.linspace(0.01, 0.99, 50)).t
    expected = schedule.diffusion_squared(t).abs() / schedule.sigma(t) ** 2
    torch.testing.assert_close(likelihood_weight(schedule, t), expected)


@every_schedule
def test_importance_times_are_uniform_in_log_snr(schedule):
    u = torch.linspace(0, 1, 101, dtype=torch.float64)
    times = sample_times(schedule, "importance", u)
    low, high = log_snr_range(schedule)
    torch.testing.assert_close(schedule.log_snr(times.t), high + (low - high) * u, rtol=0, atol=1e-9)
    assert math.isfinite(low) and math.isfinite(high)


@every_schedule
@pytest.mark.parametrize("kind", ["importance", "uniform"])
def test_density_is_the_derivative_of_the_map(schedule, kind):
    u = torch.linspace(0.013, 0.987, 40, dtype=torch.float64)
    h = 1e-6
    rise = sample_times(schedule, kind, u + h).t - sample_times(schedule, kind, u - h).t
    times = sample_times(schedule, kind, u)
    torch.testing.assert_close(1 / times.density, (rise / (2 * h)).abs(), rtol=1e-4, atol=0)


@every_schedule
def test_weight_integrals(schedule):
    z = importance_normaliser(schedule)
    assert weight_integral("likelihood", schedule) == pytest.approx(z, rel=1e-12)
    low, high = log_snr_range(schedule)
    length = abs(float(schedule.t(low)) - float(schedule.t(high)))
    assert weight_integral("uniform", schedule, 20000) == pytest.approx(length, rel=1e-3)


def test_infinite_ends_are_cut_at_fifteen():
    assert log_snr_range(RectifiedFlow()) == (-15.0, 15.0)
    assert log_snr_range(RectifiedFlow(t_min=1e-3))[1] == pytest.approx(2 * math.log(999))


def test_stratified_numbers_fill_every_stratum_in_random_order():
    torch.manual_seed(0)
    u = stratified(64)
    assert u.dtype == torch.float64
    assert u.min() >= 0 and u.max() < 1
    assert torch.equal((u.sort().values * 64).floor(), torch.arange(64).double())
    assert not torch.equal(u, u.sort().values)
    # each number alone is uniform: its mean over draws is 1/2 within 4 standard errors
    firsts = torch.stack([stratified(8)[0] for _ in range(2000)])
    assert abs(firsts.mean() - 0.5) < 4 / math.sqrt(12 * 2000)
    assert stratified(0).shape == (0,)


def test_weights_by_name_and_by_function():
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    assert torch.equal(weight("uniform", VP(), t), torch.ones_like(t))
    assert torch.equal(weight("likelihood", VP(), t), likelihood_weight(VP(), t))
    assert torch.equal(weight(lambda t: t**2, VP(), t), t**2)
    with pytest.raises(ValueError, match="'likelihood', 'uniform'"):
        weight("snr", VP(), t)
    with pytest.raises(ValueError, match="weights of the same shape"):
        weight(lambda t: 1.0, VP(), t)
    with pytest.raises(ValueError, match="'importance', 'uniform'"):
        sample_times(VP(), "antithetic", t)
