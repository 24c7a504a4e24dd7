"""Bits per dimension of discrete data: bins, ranges, dequantisation."""

import math

import pytest
import torch

import fastlik
from fastlik.likelihood.dequantise import Quantisation
from fastlik.testing import GaussianMixture, quantised_gaussian_log_mass

DATA = GaussianMixture([1.0], [[0.1, 0.1, 0.1]], 0.3**2)
SCHEDULE = fastlik.VP(t_min=1e-6)


@pytest.fixture(scope="module")
def levels():
    return Quantisation(17).nearest(DATA.sample(400, 5))


def truth(levels):
    return -quantised_gaussian_log_mass(levels, 0.1, 0.3, 17, -1.0, 1.0)


def test_uniform_dequantisation_bounds_the_discrete_likelihood(levels):
    """F.11: above -log P on average, below it never by more than noise; K draws tighten it."""
    model = DATA.model(SCHEDULE, moments=True)
    gaps = {}
    for draws in (1, 16):
        result = fastlik.ode_nll(
            model, levels, dequantize="uniform", bins=17, importance=draws, tolerance=1e-4
        )
        gap = result.nats - truth(levels)
        gaps[draws] = gap.mean()
        assert gap.mean() > -5 * gap.std() / len(gap) ** 0.5
        assert gap.mean() < 0.03
    # forgetting to divide by the number of draws would land log 16 = 2.8 nats below
    assert -0.01 < gaps[16] < gaps[1]


def test_floats_on_the_grid_are_the_same_levels(levels):
    model = DATA.model(SCHEDULE, moments=True)
    options = dict(dequantize="uniform", bins=17)
    integers = fastlik.ode_nll(model, levels.to(torch.uint8), **options)
    floats = fastlik.ode_nll(model, levels.float() / 16 * 2 - 1, **options)
    torch.testing.assert_close(floats.nats, integers.nats, rtol=0, atol=1e-5)


def test_bits_per_dim_of_any_bins_and_range():
    """A density of 1 over the range is log2(bins) bits/dim, whatever the range."""
    for bins, low, high in ((256, -1.0, 1.0), (256, 0.0, 1.0), (17, -2.0, 5.0)):
        data = GaussianMixture([1.0], [[0.5 * (low + high)] * 2], ((high - low) / 2) ** 2)
        x = data.sample(64, 1).clamp(low, high)
        model = data.model(SCHEDULE, moments=True)
        continuous = fastlik.ode_nll(model, x)
        discrete = fastlik.ode_nll(model, x, bins=bins, data_range=(low, high))
        shift = -2 * math.log((high - low) / bins)
        torch.testing.assert_close(discrete.nats, continuous.nats + shift)
        torch.testing.assert_close(discrete.bits_per_dim, discrete.nats / (2 * math.log(2)))


def test_the_eight_bit_convention():
    """bits/dim on [-1, 1] and 256 bins is the density's plus 7: score_sde's offset."""
    x = DATA.sample(4).clamp(-1, 1)
    model = DATA.model(SCHEDULE)
    density = fastlik.ode_nll(model, x).bits_per_dim
    torch.testing.assert_close(fastlik.ode_nll(model, x, bins=256).bits_per_dim, density + 7)


def test_the_noise_belongs_to_the_row(levels):
    model = DATA.model(SCHEDULE)
    options = dict(dequantize="uniform", bins=17)
    whole = fastlik.ode_nll(model, levels[:8], **options)
    last = fastlik.ode_nll(model, levels[5:8], rows=torch.arange(5, 8), **options)
    torch.testing.assert_close(last.nats, whole.nats[5:], rtol=0, atol=1e-9)
    assert not torch.equal(whole.nats, fastlik.ode_nll(model, levels[:8], seed=1, **options).nats)


def test_a_trained_models_bins_and_range_are_the_default(levels):
    model = DATA.model(SCHEDULE)
    model.quantisation = Quantisation(17)
    result = fastlik.ode_nll(model, levels[:4], dequantize="uniform")
    assert result.protocol["bins"] == 17 and result.protocol["data_range"] == (-1.0, 1.0)


def test_quantisation_round_trip():
    quantisation = Quantisation(5, 0.0, 10.0)
    levels = torch.arange(5)[:, None]
    for u in (0.0, 0.5, 0.999):
        x = quantisation.continuous(levels, torch.full((5, 1), u, dtype=torch.float64))
        assert torch.equal(quantisation.nearest(x), levels)
    assert torch.equal(quantisation.levels(levels / 4.0 * 10), levels)


def test_dequantisation_draws_share_no_probe(monkeypatch):
    """Not even those that a target adds: their noise is independent, as the standard error supposes."""
    generator = torch.Generator().manual_seed(0)
    axes, _ = torch.linalg.qr(torch.randn(20, 20, generator=generator, dtype=torch.float64))
    covariance = (axes * torch.linspace(0.1, 0.4, 20).double() ** 2) @ axes.T
    data = GaussianMixture([1.0], torch.zeros(1, 20), covariance[None])
    model, levels = data.model(fastlik.VP()), Quantisation(17).nearest(data.sample(3, 1).clamp(-1, 1))
    drawn, seen = fastlik.derivatives.probes.probe, []

    def probe(kind, seed, rows, draw, node, like):
        seen.append(draw)
        return drawn(kind, seed, rows, draw, node, like)

    monkeypatch.setattr(fastlik.derivatives.probes, "probe", probe)
    options = dict(dequantize="uniform", bins=17, divergence="hutchinson", target_stderr=0.3)
    fastlik.ode_nll(model, levels, **options)
    first = set(seen)
    seen.clear()
    fastlik.ode_nll(model, levels, importance=2, **options)
    second = set(seen) - first
    # the second draw adds about as many as the first, all of them new
    assert len(first) > 4 and first < set(seen) and len(second) >= len(first) - 4
    assert min(second) > max(first)
