"""``density_penalty``: the value is -log p, its gradient minus the score, and the model stays as it is."""

import pytest
import torch
from torch import nn

import fastlik
from fastlik.testing import GaussianMixture

SCHEDULE = fastlik.VP()
GAUSSIAN = GaussianMixture([1.0], [[0.3, -0.2]], torch.tensor([[[0.5, 0.2], [0.2, 0.3]]]))
MIXTURE = GaussianMixture.random(3, 3, seed=1)


def penalty_and_gradient(model, x, **options):
    x = x.clone().requires_grad_()
    values = fastlik.density_penalty(model, x, reduction="none", **options)
    (gradient,) = torch.autograd.grad(values.sum(), x)
    return values.detach(), gradient


def test_gaussian_data_need_one_draw():
    """With the anchor neither the value nor the gradient has any noise."""
    x = GAUSSIAN.sample(8)
    values, gradient = penalty_and_gradient(GAUSSIAN.model(SCHEDULE, moments=True), x)
    torch.testing.assert_close(values, -GAUSSIAN.log_density(x), rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient, -GAUSSIAN.score(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("moments", [True, False])
def test_without_bias_for_mixtures(moments):
    torch.manual_seed(0)
    x = MIXTURE.sample(3)
    many = x.repeat_interleave(4000, 0)
    values, gradient = penalty_and_gradient(MIXTURE.model(SCHEDULE, moments=moments), many, draws=4)
    for found, truth in ((values, -MIXTURE.log_density(x)), (gradient, -MIXTURE.score(x))):
        table = found.reshape(3, 4000, -1)
        error = table.mean(1) - truth.reshape(3, -1)
        assert (error.abs() < 4 * table.std(1) / 4000**0.5).all()


def test_uniform_weights():
    """E 1/2 ||eps - eps_hat||^2 over uniform t, for a Gaussian by quadrature."""
    torch.manual_seed(0)
    data = GaussianMixture([1.0], [[0.0, 0.0]], 0.3)
    x = data.sample(1)
    values, _ = penalty_and_gradient(data.model(SCHEDULE), x.repeat(20000, 1), weights="uniform")
    t = torch.linspace(SCHEDULE.t_min, SCHEDULE.t_max, 20001, dtype=torch.float64)
    r = SCHEDULE.log_snr(t).exp()
    integrand = 0.5 * (2 * (0.3 * r) ** 2 + r * x.square().sum()) / (1 + 0.3 * r) ** 2
    exact = torch.trapezoid(integrand, t) / (SCHEDULE.t_max - SCHEDULE.t_min)
    assert abs(values.mean() - exact) < 4 * values.std() / 20000**0.5


@pytest.mark.parametrize("weights", ["likelihood", "uniform"])
def test_a_detached_jacobian_is_score_distillation(weights):
    """alpha E eps_hat, eps_hat = sigma x_t / (alpha^2 v + sigma^2), without a graph of the network."""
    torch.manual_seed(0)
    data = GaussianMixture([1.0], [[0.0, 0.0]], 0.3)
    inner = data.model(SCHEDULE)

    def call(net, x, t):
        assert not torch.is_grad_enabled()
        return net(x, t)

    model = fastlik.wrap(inner.net, SCHEDULE, "noise", call=call)
    x = torch.tensor([[0.5, -1.0]], dtype=torch.float64)
    _, gradient = penalty_and_gradient(model, x.repeat(20000, 1), weights=weights, detach_jacobian=True)
    t = torch.linspace(SCHEDULE.t_min, SCHEDULE.t_max, 200001, dtype=torch.float64)
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    slope = alpha * sigma * alpha / (alpha**2 * 0.3 + sigma**2)
    if weights == "uniform":
        exact = torch.trapezoid(slope, t) / (t[-1] - t[0])
    else:
        exact = torch.trapezoid(slope, -SCHEDULE.log_snr(t)) + slope[0]
    error = gradient.mean(0) - exact * x[0]
    assert (error.abs() < 4 * gradient.std(0) / 20000**0.5).all()


def test_the_network_is_frozen_and_the_generator_is_not():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 16), nn.SiLU(), nn.Dropout(0.5), nn.Linear(16, 2))
    model = fastlik.wrap(net, SCHEDULE, "v", call=lambda net, x, t: net(x))
    generator = nn.Linear(4, 2)
    for options in ({}, dict(detach_jacobian=True), dict(weights="uniform", draws=3)):
        loss = fastlik.density_penalty(model, generator(torch.randn(16, 4)), **options)
        assert loss.shape == () and loss.dtype == torch.float64
        loss.backward()
        assert all(parameter.grad is None for parameter in model.parameters())
        assert all(parameter.grad.abs().sum() > 0 for parameter in generator.parameters())
        generator.zero_grad()
    assert net.training and all(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        assert not fastlik.density_penalty(model, torch.randn(3, 2)).requires_grad


def test_it_pulls_samples_to_the_data():
    torch.manual_seed(0)
    x = torch.full((64, 2), 3.0, dtype=torch.float64, requires_grad=True)
    model = GaussianMixture.ring().model(SCHEDULE, moments=True)
    optimiser = torch.optim.Adam([x], lr=0.1)
    for _ in range(60):
        optimiser.zero_grad()
        fastlik.density_penalty(model, x).backward()
        optimiser.step()
    assert -GaussianMixture.ring().log_density(x.detach()).mean() < 3.0


def test_conditions_follow_their_rows():
    base = GAUSSIAN.model(SCHEDULE, moments=True)

    def call(net, x, t, shift):
        return net(x - SCHEDULE.alpha(t)[:, None] * shift, t)

    model = fastlik.wrap(base.net, SCHEDULE, "noise", call=call)
    x, shift = GAUSSIAN.sample(4000), torch.ones(4000, 1, dtype=torch.float64)
    values = fastlik.density_penalty(model, x + shift, draws=2, condition=dict(shift=shift), reduction="none")
    error = values + GAUSSIAN.log_density(x)
    assert abs(error.mean()) < 4 * error.std() / 4000**0.5


def test_bad_options():
    model, x = GAUSSIAN.model(SCHEDULE), GAUSSIAN.sample(2)
    for options, message in (
        (dict(weights="snr"), "'likelihood', 'uniform'"),
        (dict(reduction="sum"), "'mean', 'none'"),
        (dict(draws=0), "draws"),
    ):
        with pytest.raises(ValueError, match=message):
            fastlik.density_penalty(model, x, **options)
