"""ode_nll against closed forms in float64 (and what float32 keeps of it)."""

import math
import warnings

import pytest
import torch
from torch import nn

import fastlik
from fastlik.model import PREDICTIONS
from fastlik.testing import GaussianMixture, misfit_gaussian_log_density

VARIANCES = torch.tensor([0.05, 0.4, 1.5], dtype=torch.float64)


def gaussian(mean=0.0):
    means = torch.full((1, 3), mean, dtype=torch.float64)
    return GaussianMixture([1.0], means, torch.diag(VARIANCES)[None])


def per_dim_error(result, exact):
    return ((result.nats + exact) / result.dimensions).abs()


def test_gaussian_data_any_schedule(schedule, draw):
    """F.1: exact score and matched prior give the exact density."""
    data = gaussian(0.3)
    x, exact = draw(data, schedule, 32)
    result = fastlik.ode_nll(data.model(schedule, "velocity", moments=True), x, tolerance=1e-7)
    assert result.converged.all()
    tolerance = 1e-5 if isinstance(schedule, fastlik.DiscreteVP) else 1e-6  # kinks of the table
    assert per_dim_error(result, exact).max() < tolerance


@pytest.mark.parametrize("misfit", [-0.1, 0.05, 0.2])
@pytest.mark.parametrize(
    "schedule", [fastlik.VP(), fastlik.SubVP(), fastlik.VE()], ids=lambda s: type(s).__name__
)
def test_misfit_gaussian(schedule, misfit, draw):
    """F.2: the ODE of (1 + delta) times the score has a closed form, far from the data's density."""
    data = gaussian()
    x, exact = draw(data, schedule, 16)
    result = fastlik.ode_nll(
        data.model(schedule, "noise", misfit=misfit), x, prior="standard", tolerance=1e-8
    )
    prior_variance = torch.full((3,), schedule.sigma_max**2 if hasattr(schedule, "sigma_max") else 1.0)
    closed = misfit_gaussian_log_density(x, VARIANCES, schedule, misfit, prior_variance.double())
    assert per_dim_error(result, closed).max() < 1e-6
    assert (closed - exact).abs().max() > 0.01


@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_mixture_any_schedule_and_prediction(schedule, predicts, mixture, draw):
    """F.5 at the default tolerance, with whatever the network predicts."""
    at_an_end = isinstance(schedule, fastlik.RectifiedFlow) and predicts not in ("v", "velocity", "edm")
    ends = dict(t_min=1e-4, t_max=1 - 1e-4) if at_an_end else {}
    x, _ = draw(mixture, schedule, 48)
    t_data = schedule.t_data
    if at_an_end:
        t_data = 1e-4 if schedule.data_at == 0 else 1 - 1e-4
    exact = mixture.log_density(x, schedule.alpha(t_data), schedule.sigma(t_data))
    result = fastlik.ode_nll(mixture.model(schedule, predicts, moments=True), x, **ends)
    assert per_dim_error(result, exact).mean() < 1e-3
    assert per_dim_error(result, exact).max() < 1e-2


@pytest.mark.parametrize("method", ["rk45", "tsit5", "rk4"])
def test_tight_tolerance_is_reached(method, mixture, draw):
    """1e-6 nats/dim; on VE with a large sigma_max what is left of the prior's mismatch is below that."""
    schedule = fastlik.EDM(sigma_max=2000.0)
    x, exact = draw(mixture, schedule, 8)
    model = mixture.model(schedule, "edm", moments=True)
    tolerance = 1e-6 if method == "rk4" else 1e-8
    result = fastlik.ode_nll(model, x, method=method, tolerance=tolerance)
    assert per_dim_error(result, exact).max() < 1e-6


def test_low_order_grids_meet_a_loose_tolerance(ring, draw):
    x, exact = draw(ring, fastlik.VP(), 16)
    model = ring.model(fastlik.VP(), moments=True)
    for method, tolerance in (("heun", 1e-3), ("euler", 2e-2)):
        result = fastlik.ode_nll(model, x, method=method, tolerance=tolerance)
        assert result.converged.all()
        assert per_dim_error(result, exact).max() < 3 * tolerance


def test_float32_keeps_the_default_tolerance(mixture, draw):
    schedule = fastlik.VP()
    x, exact = draw(mixture, schedule, 48)
    result = fastlik.ode_nll(mixture.model(schedule, moments=True), x.float())
    assert result.latent.dtype == torch.float32 and result.nats.dtype == torch.float64
    assert per_dim_error(result, exact).mean() < 1e-3


def test_the_error_estimate_is_of_the_right_size(ring, mixture, draw):
    """Never far too small; larger at tight tolerances, because it follows the predictor's error while the
    corrector's result is returned."""
    for data in (ring, mixture):
        x, exact = draw(data, fastlik.VP(), 64)
        model = data.model(fastlik.VP(), moments=True)
        for tolerance in (1e-3, 1e-5):
            result = fastlik.ode_nll(model, x, tolerance=tolerance)
            error = (result.nats + exact).abs()
            assert 0.2 < result.discretisation.mean() / error.mean() < (5 if tolerance == 1e-3 else 30)


def test_one_dimensional_density_integrates_to_one():
    """F.14, for an untrained network: sign, offset and direction errors all break it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 1)).double()
    model = fastlik.wrap(
        net,
        fastlik.VP(),
        "noise",
        call=lambda net, x, t: 0.7 * x + 0.5 * net(torch.cat((x, t[:, None]), 1)),
    )
    grid = torch.linspace(-30, 30, 4001, dtype=torch.float64)
    density = torch.exp(-fastlik.ode_nll(model, grid[:, None], tolerance=1e-5).nats)
    assert torch.trapezoid(density, grid) == pytest.approx(1, abs=1e-5)


def test_two_dimensional_density_integrates_to_one():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 2)).double()
    model = fastlik.wrap(
        net,
        fastlik.RectifiedFlow(),
        "velocity",
        call=lambda net, x, t: net(torch.cat((x, t[:, None]), 1)),
    )
    side = torch.linspace(-6, 6, 81, dtype=torch.float64)
    points = torch.cartesian_prod(side, side)
    density = torch.exp(-fastlik.ode_nll(model, points, tolerance=1e-4).nats).reshape(81, 81)
    mass = torch.trapezoid(torch.trapezoid(density, side), side)
    assert mass == pytest.approx(1, abs=2e-3)


def test_orthogonal_maps_do_not_change_the_likelihood(mixture, draw):
    """F.12."""
    schedule = fastlik.VP()
    turn, _ = torch.linalg.qr(
        torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    )
    turned = GaussianMixture(mixture.weights, mixture.means @ turn.T, turn @ mixture.covariances @ turn.T)
    x, _ = draw(mixture, schedule, 8)
    straight = fastlik.ode_nll(mixture.model(schedule, moments=True), x, tolerance=1e-8)
    rotated = fastlik.ode_nll(turned.model(schedule, moments=True), x @ turn.T, tolerance=1e-8)
    torch.testing.assert_close(straight.nats, rotated.nats, rtol=0, atol=1e-5)


def test_rescaling_the_data_shifts_the_likelihood(mixture):
    """F.12: log p(a x) = log p(x) - d log |a|, on VE scaled with the data."""
    scale = 3.0
    scaled = GaussianMixture(mixture.weights, scale * mixture.means, scale**2 * mixture.covariances)
    x = mixture.sample(8)
    small = fastlik.ode_nll(mixture.model(fastlik.EDM(0.002, 80.0), moments=True), x, tolerance=1e-7)
    large = fastlik.ode_nll(
        scaled.model(fastlik.EDM(0.002 * scale, 80.0 * scale), moments=True), scale * x, tolerance=1e-7
    )
    shift = 3 * math.log(scale)
    torch.testing.assert_close(large.nats, small.nats + shift, rtol=0, atol=1e-5)


def test_the_path_does_not_matter_for_the_exact_score(mixture, draw):
    """F.12: one density over one range of log-SNR, whatever alpha and sigma do in between."""
    vp, straight = fastlik.LogSNR(path="vp"), fastlik.LogSNR(path="straight")
    x, _ = draw(mixture, vp, 8)
    gamma = torch.tensor(-13.3, dtype=torch.float64)
    # the same y = x / alpha on both paths
    ratio = straight.alpha(0.0) / vp.alpha(0.0)
    first = fastlik.ode_nll(mixture.model(vp, moments=True), x, tolerance=1e-8)
    second = fastlik.ode_nll(mixture.model(straight, moments=True), ratio * x, tolerance=1e-8)
    assert vp.log_snr(0.0) == pytest.approx(-gamma) == straight.log_snr(0.0)
    torch.testing.assert_close(second.nats, first.nats + 3 * ratio.log(), rtol=0, atol=1e-5)


def test_hutchinson_is_unbiased_and_its_standard_error_is_right():
    """Independent estimates of one integral: z-scores with unit variance, fixed seed."""
    data = GaussianMixture.random(3, 20, seed=2)
    model, x = data.model(fastlik.VP(), moments=True), data.sample(200, 3)
    exact = fastlik.ode_nll(model, x, divergence="exact", tolerance=1e-4)
    for mode in ("fresh", "frozen"):
        estimate = fastlik.ode_nll(
            model, x, divergence="hutchinson", probes=8, probe_mode=mode, tolerance=1e-4
        )
        z = (estimate.nats - exact.nats) / estimate.stderr
        # Student's t with 7 degrees of freedom: variance 7/5, fourth moment 9.8, so the mean of z^2 over
        # 200 rows has standard error 0.2 and the mean of z 0.084
        assert abs(z.mean()) < 5 * 0.084
        assert abs(z.square().mean() - 1.4) < 5 * 0.2


def test_fresh_probes_have_less_variance():
    data = GaussianMixture.random(3, 20, seed=2)
    model, x = data.model(fastlik.VP(), moments=True), data.sample(100, 3)
    spread = {
        mode: fastlik.ode_nll(model, x, divergence="hutchinson", probes=6, probe_mode=mode, tolerance=1e-2)
        .stderr.square()
        .mean()
        for mode in ("fresh", "frozen")
    }
    assert spread["frozen"] > 1.5 * spread["fresh"]


def test_gaussian_probes_and_forward_mode_agree_with_the_exact_trace(mixture):
    model, x = mixture.model(fastlik.VP(), moments=True), mixture.sample(100, 3)
    exact = fastlik.ode_nll(model, x, tolerance=1e-4)
    estimate = fastlik.ode_nll(
        model, x, divergence="hutchinson", probes=8, probe="gaussian", mode="jvp", tolerance=1e-4
    )
    z = (estimate.nats - exact.nats) / estimate.stderr
    assert abs(z.mean()) < 5 * (1.4 / 100) ** 0.5


def test_forward_and_reverse_mode_give_the_same_numbers(mixture):
    model, x = mixture.model(fastlik.VP()), mixture.sample(8)
    for divergence in ("exact", "hutchinson"):
        forward, reverse = (
            fastlik.ode_nll(model, x, divergence=divergence, mode=mode) for mode in ("jvp", "vjp")
        )
        torch.testing.assert_close(forward.nats, reverse.nats, rtol=0, atol=1e-9)


def test_one_evaluation_serves_state_and_trace(mixture):
    """nfe counts network calls: hooks see exactly as many rows."""
    model = mixture.model(fastlik.VP())
    calls = []
    model.net.register_forward_hook(lambda net, inputs, output: calls.append(len(inputs[0])))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = fastlik.ode_nll(model, mixture.sample(9), divergence="hutchinson")
    # the first-step rule evaluates once more than the steps do
    assert sum(calls) == int(result.nfe.sum())
    assert torch.equal(result.nfe, result.trace_evaluations)


@pytest.mark.parametrize("schedule", [fastlik.VP(), fastlik.VE()], ids=["VP", "VE"])
@pytest.mark.parametrize("components, size", [(8, 2), (4, 3), (6, 8)])
def test_the_calibration_of_the_step_control(components, size, schedule, draw):
    """The figures that ``likelihood/adams.py`` states for its constants."""
    data = GaussianMixture.ring() if size == 2 else GaussianMixture.random(components, size)
    x, exact = draw(data, schedule, 128)
    result = fastlik.ode_nll(data.model(schedule, moments=True), x)
    error = per_dim_error(result, exact)
    estimate = result.discretisation / size
    assert error.mean() < 5e-4 and error.max() < 5e-3
    assert result.nfe.double().mean() < 40
    assert 1 / 5 < error.mean() / estimate.mean() < 5


@pytest.mark.parametrize("components, seed", [(16, 0), (4, 3)])
def test_mixtures_in_64_dimensions_need_forty_evaluations(components, seed, draw):
    """At most 1e-3 nats/dim; one probe has at least four times less variance than a frozen one."""
    data = GaussianMixture.random(components, 64, seed=seed)
    x, exact = draw(data, fastlik.VP(), 48)
    model = data.model(fastlik.VP(), moments=True)
    fresh = fastlik.ode_nll(model, x)
    assert fresh.nfe.double().mean() <= 40 and fresh.converged.all()
    assert fresh.discretisation.mean() / 64 < 1e-3
    frozen = fastlik.ode_nll(model, x, probe_mode="frozen", probes=2)
    # the variance of one frozen probe is twice that of the mean of two
    assert 2 * frozen.stderr.square().mean() > 4 * fresh.stderr.square().mean()
    z = (fresh.nats + exact) / fresh.stderr
    # about 48 independent squares: their mean has standard error 0.2
    assert abs(z.square().mean() - 1) < 4 * 0.25 and abs(z.mean()) < 4 * 0.16


def test_a_target_standard_error_is_met(draw):
    """By more probes, or by the exact trace where that takes fewer; a row's number is its own."""
    data = GaussianMixture.random(3, 20, seed=2)
    x, exact = draw(data, fastlik.VP(), 12)
    model = data.model(fastlik.VP(), moments=True)
    for target in (0.5, ("mean", 0.5 / 12**0.5)):
        result = fastlik.ode_nll(model, x, target_stderr=target)
        assert (result.stderr <= 0.5 + 1e-12).all() and (result.nats + exact).abs().max() < 5 * 0.5
        assert (result.trace_evaluations == result.nfe).all()
    alone = fastlik.ode_nll(model, x[3:4], rows=torch.tensor([3]), target_stderr=0.5)
    torch.testing.assert_close(alone.nats, result.nats[3:4], rtol=0, atol=1e-9)
    sure = fastlik.ode_nll(model, x, target_stderr=1e-3)
    assert (sure.stderr == 0).all() and ((sure.nats + exact).abs() / 20).max() < 5e-3
