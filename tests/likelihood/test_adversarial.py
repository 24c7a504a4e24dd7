"""Models that break step control: bounded evaluations, flags instead of wrong numbers."""

import pytest
import torch

import fastlik
from fastlik.testing import GaussianMixture


def per_dim(result, exact):
    return (result.nats + exact).abs() / exact.new_tensor(result.dimensions)


def rounded(net, x, t):
    """A score as a bf16 network gives it."""
    return net(x, t).bfloat16().to(x.dtype)


@pytest.mark.parametrize("predicts", ["noise", "v"])
def test_a_score_rounded_to_bf16_at_most_doubles_the_evaluations(ring, draw, predicts):
    schedule = fastlik.VP()
    x, exact = draw(ring, schedule, 48)
    smooth = ring.model(schedule, predicts, moments=True)
    rough = fastlik.wrap(smooth.net, schedule, predicts, call=rounded, moments=smooth.moments)
    fine, coarse = fastlik.ode_nll(smooth, x), fastlik.ode_nll(rough, x)
    assert coarse.nfe.double().mean() < 2 * fine.nfe.double().mean()
    # bf16 keeps 8 bits: 4e-3 of a noise of order one
    assert per_dim(coarse, exact).mean() < 5e-3


def test_rows_that_cross_a_jump_of_the_score_are_flagged(ring, draw):
    """The divergence at points knows nothing of the jump's share in the density."""
    schedule, edge = fastlik.VP(), 1.5
    x, exact = draw(ring, schedule, 48)
    smooth = ring.model(schedule, moments=True)

    def jump(net, x, t):
        return net(x, t) + 0.5 * (x.norm(dim=1, keepdim=True) > edge)

    model = fastlik.wrap(smooth.net, schedule, "noise", call=jump, moments=smooth.moments)
    with pytest.warns(fastlik.ConvergenceWarning, match="jumps"):
        result = fastlik.ode_nll(model, x)
    clean = fastlik.ode_nll(smooth, x)
    assert result.nfe.max() < 2000  # along the edge, where the field points to it from both sides
    crosses = clean.latent.norm(dim=1) > edge + 0.3
    assert crosses.sum() > 8 and not result.converged[crosses].any()
    stays = result.latent.norm(dim=1) < edge - 0.1
    assert stays.sum() > 8 and result.converged[stays].all()
    assert (result.nats - clean.nats)[result.converged & stays].abs().max() < 1e-2


def test_sharp_turns_are_no_jumps():
    """Far from the modes one takes over from another within a fraction of a step: shorter ones see it."""
    data, schedule = GaussianMixture.random(4, 20), fastlik.VP()
    generator = torch.Generator().manual_seed(0)
    x = 0.7 * torch.randn(4, 20, generator=generator, dtype=torch.float64)[[0, 3]]
    exact = data.log_density(x, schedule.alpha(schedule.t_data), schedule.sigma(schedule.t_data))
    result = fastlik.ode_nll(data.model(schedule, moments=True), x, divergence="exact")
    assert result.converged.all() and per_dim(result, exact).max() < 5e-3


@pytest.mark.parametrize("predicts", ["noise", "score"])
@pytest.mark.parametrize("std", [0.1, 1e-4])
def test_a_stiff_process_is_no_harder(predicts, std):
    """VE from sigma = 1e-5: seven decades of noise."""
    schedule = fastlik.VE(sigma_min=1e-5)
    data = GaussianMixture.ring(std=std)
    x = data.sample(32)
    exact = data.log_density(x, 1.0, schedule.sigma(schedule.t_data))
    result = fastlik.ode_nll(data.model(schedule, predicts, moments=True), x)
    assert result.converged.all() and result.nfe.double().mean() < 120
    assert per_dim(result, exact).max() < 5e-3


def test_an_output_that_explodes_at_small_t_is_flagged(ring, draw):
    schedule = fastlik.VP()
    x, _ = draw(ring, schedule, 4)
    smooth = ring.model(schedule, moments=True)

    def explode(net, x, t):
        return net(x, t) + 1e-6 * x**3 / t[:, None] ** 2

    model = fastlik.wrap(smooth.net, schedule, "noise", call=explode)
    with pytest.warns(fastlik.ConvergenceWarning):
        result = fastlik.ode_nll(model, x, max_steps=300)
    assert not result.converged.any() and result.nats.isnan().all() and (result.nfe <= 301).all()


def test_a_tolerance_below_the_precision_is_flagged(ring, draw):
    x, exact = draw(ring, fastlik.VP(), 8)
    model = ring.model(fastlik.VP(), moments=True)
    with pytest.warns(fastlik.ConvergenceWarning, match="five times the tolerance"):
        hopeless = fastlik.ode_nll(model, x.float(), tolerance=1e-8)
    assert not hopeless.converged.any() and hopeless.nfe.max() < 1000
    kept = fastlik.ode_nll(model, x.float(), tolerance=1e-6)
    assert kept.converged.all() and per_dim(kept, exact).max() < 5e-6


def test_a_row_that_misses_the_tolerance_is_solved_again_or_flagged():
    """Points between narrow modes, thousands of nats away: the first estimate is too large for some."""
    data = GaussianMixture.ring(std=0.02)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 2, generator=generator, dtype=torch.float64)[[*range(8), 10]]
    schedule = fastlik.VP()
    exact = data.log_density(x, schedule.alpha(schedule.t_data), schedule.sigma(schedule.t_data))
    with pytest.warns(fastlik.ConvergenceWarning):
        result = fastlik.ode_nll(data.model(schedule, moments=True), x, max_steps=500)
    assert result.converged.sum() >= 6 and (result.nfe > 100).any()
    assert per_dim(result, exact)[result.converged].max() < 5e-3
