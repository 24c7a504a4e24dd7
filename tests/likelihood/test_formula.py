"""``formula_nll``: its forms against closed forms and each other."""

import pytest
import torch

import fastlik
from fastlik.testing import GaussianMixture

DDPM = fastlik.DiscreteVP(torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0))


@pytest.fixture(scope="module")
def data():
    return GaussianMixture.random(3, 20, seed=2)


def test_anchored_is_the_bound_with_the_matched_prior(data):
    model, x = data.model(fastlik.VP(), moments=True), data.sample(8)
    formula, bound = fastlik.formula_nll(model, x, draws=32), fastlik.bound_nll(model, x, draws=32)
    torch.testing.assert_close(formula.nats, bound.nats, rtol=0, atol=1e-9)
    assert formula.protocol["estimator"] == "score-based density formula" and "prior" not in formula.protocol
    assert formula.protocol["beyond_t_prior"] == "the Gaussian of the data's moments"


def test_anchored_is_exact_for_gaussian_data(schedule):
    data = GaussianMixture([1.0], [[2.0, -0.2]], torch.tensor([[[0.5, 0.2], [0.2, 0.3]]]))
    x = data.sample(16)
    result = fastlik.formula_nll(data.model(schedule, moments=True), x, draws=4)
    slack = (-2 * schedule.log_snr(schedule.t_data)).exp()
    torch.testing.assert_close(result.nats, -data.log_density(x), rtol=0, atol=1e-6 + 100 * float(slack))


@pytest.mark.parametrize("form", ["anchored", "difference", "ism"])
@pytest.mark.parametrize("seed, components, size", [(0, 4, 3), (2, 3, 20)])
def test_every_form_is_the_density_of_the_true_score(form, seed, components, size):
    data = GaussianMixture.random(components, size, seed=seed)
    x = data.sample(400, 3)
    for moments in {True, form == "anchored"}:
        result = fastlik.formula_nll(data.model(fastlik.VP(), moments=moments), x, form=form)
        error = result.nats + data.log_density(x)
        assert abs(error.mean()) < 4 * error.std() / 20
        assert 0.8 < (error / result.stderr).square().mean().sqrt() < 1.25


def test_the_anchor_takes_noise_away():
    """Data near a Gaussian, in 64 dimensions: the same expectation with far less noise."""
    generator = torch.Generator().manual_seed(0)
    means = 0.1 * torch.randn(3, 64, generator=generator, dtype=torch.float64)
    data = GaussianMixture([1.0, 1.0, 1.0], means, 0.25)
    model, x = data.model(fastlik.VP(), moments=True), data.sample(40)
    anchored, plain = (
        fastlik.formula_nll(model, x, form=form, draws=64) for form in ("anchored", "difference")
    )
    assert plain.stderr.mean() > 10 * anchored.stderr.mean()
    assert ((plain.nats - anchored.nats) / plain.stderr).square().mean() < 1.6


@pytest.mark.parametrize("schedule", [fastlik.VP(), fastlik.LogSNR()], ids=["VP", "LogSNR"])
def test_above_t_max_unit_variance_stands_in(schedule):
    """With log-SNR down to -5 the rest is 3e-3 nats for data of unit scale, and nearly all of it is known."""
    data = GaussianMixture([1.0], [[0.0, 0.0]], 0.25)
    x = data.sample(4000)
    result = fastlik.formula_nll(data.model(schedule), x, form="difference", draws=32)
    error = result.nats + data.log_density(x)
    assert abs(error.mean()) < 4 * error.std() / 4000**0.5 + 1e-3


def test_a_misfit_costs_half_the_integral_of_its_square():
    """The deficit is 1/2 int E||eps_hat - eps*||^2 dgamma: with eps_hat = (1 + m) eps* of data N(0, v I),
    m^2 / 2 int d / (1 + v snr) dgamma."""
    misfit, variance, size, schedule = 0.2, 0.05, 8, fastlik.Cosine()
    data = GaussianMixture([1.0], torch.zeros(1, size), variance)
    x = data.sample(2000, 1)
    excess = fastlik.formula_nll(data.model(schedule, misfit=misfit, moments=True), x, draws=64).nats
    excess = excess + data.log_density(x)
    low, high = (float(schedule.log_snr(t)) for t in (schedule.t_max, schedule.t_min))
    gamma = torch.linspace(-high, -low, 10001, dtype=torch.float64)
    square = size / (1 + variance * (-gamma).exp())
    deficit = 0.5 * misfit**2 * float(torch.trapezoid(square, gamma) + square[0])
    assert abs(excess.mean() - deficit) < 4 * excess.std() / 2000**0.5
    assert deficit > 20 * float(excess.std()) / 2000**0.5


@pytest.mark.parametrize("moments", [True, False])
def test_ddpms_sum(moments):
    """It is 0.46 nats/dim above the truth on the table of 1000 steps, and says so."""
    data = GaussianMixture.random(3, 4, seed=1)
    x = data.sample(12)
    result = fastlik.formula_nll(data.model(DDPM, moments=moments), x, form="ddpm")
    assert "reconstruction" not in result.protocol["start"] and result.protocol["beyond_t_prior"] == "nothing"
    assert (result.nfe == 999 * 4).all() and result.protocol["draws"] == 999 * 4
    gap = result.discretisation / 4
    assert ((gap - 0.465).abs() < 1e-3).all()
    excess = (result.nats + data.log_density(x)) / 4
    assert abs(excess.mean() - 0.465) < 0.05 and result.stderr.max() / 4 < 0.2


def test_ddpms_sum_on_the_grid_of_any_schedule():
    data = GaussianMixture([1.0], [[0.1, 0.2]], 0.5)
    x = data.sample(4)
    result = fastlik.formula_nll(data.model(fastlik.LogSNR(), moments=True), x, form="ddpm", steps=2000)
    assert (result.nfe == 1999 * 4).all() and (result.discretisation > 0).all()
    # for Gaussian data nothing is random: the error is that of the sum, which the gap describes
    assert result.stderr.max() < 1e-9
    error = result.nats + data.log_density(x)
    assert (error - result.discretisation).abs().max() < 0.02


def test_fewer_steps_of_a_table():
    data = GaussianMixture([1.0], [[0.1, 0.2]], 0.5)
    model = data.model(DDPM, moments=True)
    few = fastlik.formula_nll(model, data.sample(4), form="ddpm", steps=100)
    whole = fastlik.formula_nll(model, data.sample(4), form="ddpm")
    assert (few.nfe == 99 * 4).all() and (few.discretisation > whole.discretisation).all()


def test_a_row_keeps_its_number(data):
    model, x = data.model(DDPM, moments=True), data.sample(6)
    for options in (dict(form="ddpm", steps=10), dict(form="difference", draws=16)):
        whole = fastlik.formula_nll(model, x, **options)
        part = fastlik.formula_nll(model, x[3:], rows=torch.arange(3, 6), chunk=7, **options)
        torch.testing.assert_close(part.nats, whole.nats[3:], rtol=0, atol=1e-9)


def test_discrete_data_and_bad_options(data):
    model, x = data.model(DDPM, moments=True), data.sample(4)
    levels = fastlik.formula_nll(model, x.round().clamp(0, 4).long(), dequantize="uniform", bins=5, draws=8)
    assert levels.converged.all() and (levels.stderr > 0).all()
    for options, message in (
        (dict(form="anchor"), "'anchored', 'difference', 'ism', 'ddpm'"),
        (dict(steps=100), 'form="ddpm"'),
        (dict(form="ddpm", steps=1001), "more than the 1000"),
        (dict(form="ddpm", steps=1), "at least 2"),
        (dict(form="ddpm", draws=2), "at least 4"),
        (dict(draws=10), "multiple of 4"),
    ):
        with pytest.raises(ValueError, match=message):
            fastlik.formula_nll(model, x, **options)
    with pytest.raises(ValueError, match='moments=.*or take form="difference"'):
        fastlik.formula_nll(data.model(DDPM), x)
