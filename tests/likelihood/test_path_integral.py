"""The density formula itself, by quadrature instead of draws, and what the draws are made of."""

import math

import pytest
import torch

import fastlik
from fastlik.likelihood.anchor import PlainAnchor, choose_anchor
from fastlik.likelihood.bound import implicit_trace, variational_terms
from fastlik.likelihood.path_integral import PathIntegral, Span, standard_error
from fastlik.likelihood.prior import choose_prior
from fastlik.likelihood.strata import RiemannSum, UniformStrata
from fastlik.testing import GaussianMixture

WIDE = fastlik.LogSNR(gamma_min=-20.0, gamma_max=16.0)
DATA = {
    "Gaussian": GaussianMixture([1.0], [[0.4]], 0.25),
    "mixture": GaussianMixture([0.3, 0.3, 0.4], [[-2 / 7], [-6 / 7], [4 / 7]], [0.1 / 49, 0.1 / 49, 1 / 49]),
}


def expectation(integral, x0, gamma, noise):
    """(len(x0), len(gamma)) of ``values`` over the noise, by the trapezium rule."""
    weights = (-0.5 * noise**2).exp()
    weights = weights / weights.sum()
    rows = []
    for point in x0:
        levels = gamma.repeat_interleave(len(noise))
        where = point.expand(len(levels), 1)
        zeros = torch.zeros(len(levels), dtype=torch.int64)
        values = integral.values(where, levels, noise.repeat(len(gamma))[:, None], zeros, 0, {})
        rows.append(values.reshape(len(gamma), -1) @ weights)
    return torch.stack(rows)


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("kind", ["anchored", "difference", "implicit"])
def test_the_formula_is_the_density(data, kind):
    """F.6: to 1e-7 for Gaussians and mixtures, in every form."""
    data = DATA[data]
    x0 = torch.tensor([[-0.8], [-0.35], [0.1], [0.6]], dtype=torch.float64)
    model = data.model(WIDE, moments=True)
    span = Span.of(model, None, None)
    anchor = PlainAnchor() if kind == "difference" else choose_anchor(model, 1, x0.device)
    trace = implicit_trace(kind == "implicit", 1, "exact", 1, "rademacher", 0)
    integral = PathIntegral(model, span, UniformStrata(span.start, span.end, 1), anchor, trace, 0)
    gamma = torch.linspace(span.start, span.end, 361, dtype=torch.float64)
    noise = torch.linspace(-8.0, 8.0, 401, dtype=torch.float64)
    with torch.no_grad():
        values = expectation(integral, x0, gamma, noise)
    closed = variational_terms(integral, choose_prior("auto", model, span.t_prior, 1, x0.device), 1)
    nats = closed.value(x0, None) + torch.trapezoid(values, gamma) + values[:, 0]
    torch.testing.assert_close(nats, -data.log_density(x0), rtol=0, atol=1e-7)


def test_ddpms_sum_is_off_by_its_gap_and_the_difference_form_is_not():
    """Without noise, for the true score: the table of a DDPM, and the same levels by the trapezium rule.

    The left sum is 0.46 nats too high on this schedule and the trapezium of the difference 1e-3 or less.
    """
    table = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    data, schedule = GaussianMixture([0.4, 0.6], [[-1.0], [0.8]], 0.16), fastlik.DiscreteVP(table)
    model = data.model(schedule)
    x0 = torch.tensor([[-1.8], [0.1], [0.6]], dtype=torch.float64)
    span = Span.of(model, None, None)
    gamma = -schedule.log_snr(torch.arange(1000.0, dtype=torch.float64))
    strata = RiemannSum(gamma, 2)
    integral = PathIntegral(model, span, strata, PlainAnchor(), None, 0)
    noise = torch.linspace(-8.0, 8.0, 401, dtype=torch.float64)
    with torch.no_grad():
        values = expectation(integral, x0, gamma, noise)
    size, truth = math.log(2 * math.pi * math.e), -data.log_density(x0)
    first = gamma[0].sigmoid().log()
    left = (
        0.5 * (size + first)
        + strata.anchored(integral.anchor, x0)
        + values[:, :-1] @ strata.weights(x0.device)
    )
    difference = 0.5 * size + torch.trapezoid(values, gamma)
    assert (difference - truth).abs().max() < 5e-3
    excess = left - truth
    assert (excess - strata.gap).abs().max() < 0.04 and 0.4 < excess.min()


@pytest.mark.parametrize(
    ("schedule", "length"),
    [(fastlik.VP(), 23.864472), (fastlik.SubVP(t_min=1e-5), 37.678946), (fastlik.VE(), 17.034216)],
)
def test_the_normaliser_of_importance_sampling(schedule, length):
    """Song et al.'s Z, with their constants."""
    span = Span.of(DATA["Gaussian"].model(schedule), None, None)
    assert span.end - span.start == pytest.approx(length, abs=1e-5)
    assert (span.t_data, span.t_prior) == (schedule.t_min, schedule.t_max)


def test_infinite_ends_are_cut():
    for data_at in (0, 1):
        span = Span.of(DATA["Gaussian"].model(fastlik.RectifiedFlow(data_at=data_at)), None, None)
        assert (span.start, span.end) == (-15.0, 15.0)
        assert abs(span.t_data - data_at) == pytest.approx(math.exp(-7.5), rel=1e-3)


def test_the_standard_error_of_white_strata_is_that_of_their_sum():
    generator = torch.Generator().manual_seed(0)
    scale = torch.linspace(0.5, 2.0, 40, dtype=torch.float64)[:, None]
    table = scale * torch.randn(4000, 40, 2, generator=generator, dtype=torch.float64)
    truth = float((scale.square() / 2).sum().sqrt())
    # 80 degrees of freedom and more: the mean over rows is within a percent
    assert float(standard_error(table).square().mean().sqrt()) == pytest.approx(truth, rel=0.01)
    assert float(table.mean(2).sum(1).std()) == pytest.approx(truth, rel=0.05)
    assert standard_error(table[:, :1]).shape == standard_error(table[:, :2]).shape == (4000,)
