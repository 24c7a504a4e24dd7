import math

import pytest
import torch

from fastlik.model import PREDICTIONS, coefficients, per_row, wrap
from fastlik.objectives import dsm_error, dsm_loss, dsm_target, importance_normaliser, sample_times
from fastlik.schedule import EDM, VE, VP, RectifiedFlow, SubVP

SCHEDULES = [VP(), SubVP(), VE(), EDM(), RectifiedFlow(), RectifiedFlow(data_at=1)]


def gaussian_model(schedule, variance, predicts="noise"):
    """The optimal model of N(0, variance I), in any parameterisation."""

    def noise(x, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return per_row(sigma / (alpha**2 * variance + sigma**2), x) * x

    return wrap(as_prediction(noise, schedule, predicts), schedule, predicts)


def as_prediction(noise, schedule, predicts):
    """A network of the given parameterisation that has this eps_hat; time is t in float64."""

    def net(x, t):
        # for "edm" the network is given x / hypot(sigma, alpha sigma_data)
        if predicts == "edm":
            x = per_row(torch.hypot(schedule.sigma(t), schedule.alpha(t) * 0.5), x) * x
        affine = coefficients("noise", predicts, schedule, t)
        gap = noise(x, t) - per_row(affine.of_x, x) * x
        return gap / per_row(affine.of_output, x)

    return net


def draws(schedule, rows=64, event=(3,)):
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, rows, *event, dtype=torch.float64, generator=generator)
    u = (torch.arange(rows, dtype=torch.float64) + 0.5) / rows
    return x0, sample_times(schedule, "importance", u).t, noise


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_six_parameterisations_of_one_model_have_one_loss(schedule):
    x0, t, noise = draws(schedule, event=(2, 3))

    def eps_hat(x, t):  # not the optimum of anything
        return torch.sin(x) + per_row(schedule.sigma(t), x).tanh()

    expected = dsm_error(wrap(eps_hat, schedule, "noise"), x0, t, noise)
    x = per_row(schedule.alpha(t), x0) * x0 + per_row(schedule.sigma(t), x0) * noise
    by_hand = (eps_hat(x, t) - noise).square().mean((1, 2))
    torch.testing.assert_close(expected, by_hand)
    for predicts in PREDICTIONS:
        model = wrap(as_prediction(eps_hat, schedule, predicts), schedule, predicts)
        torch.testing.assert_close(dsm_error(model, x0, t, noise), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_targets_are_what_the_affine_map_inverts(schedule, predicts):
    x0, t, noise = draws(schedule)
    model = wrap(lambda x, t: x, schedule, predicts)
    x = per_row(schedule.alpha(t), x0) * x0 + per_row(schedule.sigma(t), x0) * noise
    target = dsm_target(model, x0, t, noise)
    back = coefficients("noise", predicts, schedule, t)(x, target)
    torch.testing.assert_close(back, noise, rtol=1e-5, atol=1e-6)


def test_targets_do_not_cancel_near_the_data():
    schedule = VP()
    x0, noise = draws(schedule)[::2]
    t = torch.full((64,), 1e-5, dtype=torch.float64)
    for predicts in PREDICTIONS:
        model = wrap(lambda x, t: x, schedule, predicts)
        exact = dsm_target(model, x0, t, noise)
        single = dsm_target(model, x0.float(), t, noise.float())
        torch.testing.assert_close(single.double(), exact, rtol=3e-7, atol=3e-7 * float(exact.abs().max()))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_loss_of_the_optimum_on_gaussian_data(schedule):
    """E ||eps_hat - eps||^2 / d = alpha^2 c / (alpha^2 c + sigma^2) for data of variance c."""
    variance, rows = 0.4, 400
    model = gaussian_model(schedule, variance)
    torch.manual_seed(0)
    x0 = math.sqrt(variance) * torch.randn(rows, 50, dtype=torch.float64)
    t = sample_times(schedule, "importance", torch.full((rows,), 0.37)).t
    error = dsm_error(model, x0, t, torch.randn_like(x0))
    alpha, sigma = schedule.alpha(t[0]), schedule.sigma(t[0])
    expected = float(alpha**2 * variance / (alpha**2 * variance + sigma**2))
    stderr = float(error.std()) / math.sqrt(rows)
    assert abs(float(error.mean()) - expected) < 4 * stderr
    assert stderr < 0.03 * expected


def test_integral_of_the_optimal_loss_in_closed_form():
    """Integrated over gamma it is log of a ratio: the likelihood weighting's J in nats."""
    schedule, c = VP(), 0.4
    low, high = (float(schedule.log_snr(t)) for t in (schedule.t_max, schedule.t_min))
    # integral of c e^l / (c e^l + 1) over the log-SNR l
    expected = math.log((1 + c * math.exp(high)) / (1 + c * math.exp(low)))
    torch.manual_seed(1)
    x0 = math.sqrt(c) * torch.randn(4000, 20, dtype=torch.float64)
    for time_sampling in ("importance", "uniform"):
        loss = dsm_loss(gaussian_model(schedule, c), x0, time_sampling=time_sampling)
        stderr = float(loss.std()) / math.sqrt(len(loss))
        assert abs(float(loss.mean()) - expected) < 4 * stderr, time_sampling
    model = gaussian_model(schedule, c)
    importance = dsm_loss(model, x0)
    z = importance_normaliser(schedule)
    assert float(importance.max()) < z * 3  # Z times a squared error of order one
    uniform = dsm_loss(model, x0, time_sampling="uniform")
    assert importance.var() * 3 < uniform.var()  # what importance sampling is for


def test_weighting_functions_integrate_over_time():
    schedule, c = VP(), 0.4
    model = gaussian_model(schedule, c)
    t = torch.linspace(schedule.t_min, schedule.t_max, 20001, dtype=torch.float64)
    signal = schedule.alpha(t) ** 2 * c
    optimum = signal / (signal + schedule.sigma(t) ** 2)
    torch.manual_seed(2)
    x0 = math.sqrt(c) * torch.randn(4000, 20, dtype=torch.float64)
    for weighting, w in (("uniform", torch.ones_like(t)), (torch.square, t**2)):
        expected = float(torch.trapezoid(w * optimum, t))
        for time_sampling in ("importance", "uniform"):
            loss = dsm_loss(model, x0, weighting, time_sampling)
            stderr = float(loss.std()) / math.sqrt(len(loss))
            assert abs(float(loss.mean()) - expected) < 4 * stderr


def test_conditions_reach_the_network():
    seen = {}

    def net(x, time, **condition):
        seen.update(condition)
        return x

    label = torch.arange(5)
    dsm_loss(wrap(net, VP(), "v"), torch.randn(5, 2), label=label)
    assert torch.equal(seen["label"], label)
