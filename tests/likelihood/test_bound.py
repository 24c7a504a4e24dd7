"""``bound_nll`` against closed forms: exact scores, misfit Gaussians, discrete data, rows and their draws."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal

import fastlik
from fastlik.likelihood.dequantise import Quantisation
from fastlik.testing import GaussianMixture, quantised_gaussian_log_mass


def z_scores(result, truth):
    return (result.nats - truth) / result.stderr


def test_gaussian_data_need_no_luck(schedule):
    """F.7: the bound of the exact score is the likelihood of the data, on every process, and has no noise."""
    data = GaussianMixture([1.0], [[0.3, -0.2]], torch.tensor([[[0.5, 0.2], [0.2, 0.3]]]))
    x = data.sample(16)
    result = fastlik.bound_nll(data.model(schedule, moments=True), x, draws=16)
    # the slack of the reconstruction is of order (sigma / alpha)^4
    slack = math.exp(-2 * float(schedule.log_snr(schedule.t_data)))
    torch.testing.assert_close(result.nats, -data.log_density(x), rtol=0, atol=1e-6 + 50 * slack)
    assert result.stderr.max() < 1e-6 and (result.discretisation == 0).all()


@pytest.mark.parametrize("form", ["dsm", "ism"])
@pytest.mark.parametrize("moments", [True, False])
@pytest.mark.parametrize("seed, components, size", [(0, 4, 3), (2, 3, 20)])
def test_the_error_is_as_large_as_the_standard_error_says(form, moments, seed, components, size):
    """F.7 for mixtures: no bias, and rms(error / standard error) near 1."""
    data = GaussianMixture.random(components, size, seed=seed)
    x = data.sample(400, 3)
    result = fastlik.bound_nll(data.model(fastlik.VP(), moments=moments), x, form=form)
    z = z_scores(result, -data.log_density(x))
    error = result.nats + data.log_density(x)
    assert 0.8 < z.square().mean().sqrt() < 1.25
    assert abs(error.mean()) < 4 * error.std() / 400**0.5
    evaluations = result.trace_evaluations
    assert (result.nfe == 256).all() and (evaluations == (256 if form == "ism" else 0)).all()


@pytest.mark.parametrize("predicts", ["score", "x0", "v", "velocity", "edm"])
def test_every_prediction(predicts, mixture):
    """They describe one model: one number, for one seed."""
    schedule, x = fastlik.VP(), mixture.sample(8)
    noise = fastlik.bound_nll(mixture.model(schedule), x, draws=32)
    for form in ("dsm", "ism"):
        result = fastlik.bound_nll(mixture.model(schedule, predicts), x, draws=32, form=form)
        other = noise if form == "dsm" else fastlik.bound_nll(mixture.model(schedule), x, draws=32, form=form)
        torch.testing.assert_close(result.nats, other.nats, rtol=0, atol=1e-6)


def test_a_misfit_gaussian_is_off_by_girsanovs_divergence():
    """F.3: with the score (1 + misfit) times the true one, the mean over the data exceeds the entropy by
    misfit^2 / 2 (log(v_T / v_0) - 2 log(alpha_T / alpha_0)) a dimension, and each row by its own integral."""
    misfit, variance, schedule = 0.1, 0.05, fastlik.VP()
    data = GaussianMixture([1.0], [[0.0, 0.0]], variance)
    x = data.sample(2000, 1)
    model = data.model(schedule, misfit=misfit, moments=True)
    result = fastlik.bound_nll(model, x)
    ends = torch.tensor([schedule.t_min, schedule.t_max], dtype=torch.float64)
    alpha, sigma = schedule.alpha(ends), schedule.sigma(ends)
    v = alpha**2 * variance + sigma**2
    girsanov = float(0.5 * misfit**2 * ((v[1] / v[0]).log() - 2 * (alpha[1] / alpha[0]).log()))
    excess = result.nats + data.log_density(x)
    # the reconstruction term adds misfit^2 / 2 times sigma^2 / v
    expected = 2 * (girsanov + 0.5 * misfit**2 * float(sigma[0] ** 2 / v[0]))
    assert abs(excess.mean() - expected) < 4 * excess.std() / 2000**0.5
    assert 0.05 < 2 * girsanov == pytest.approx(expected, rel=1e-3)

    gamma = -torch.linspace(*(float(schedule.log_snr(t)) for t in ends), 20001, dtype=torch.float64)
    r = (-gamma).exp()
    shrink, offset = 1 / (1 + r * variance), x.square().sum(1)[:, None]
    square = (r * offset + 2) * shrink**2  # E||eps*||^2, and E eps . eps* is 2 shrink
    integrand = 0.5 * misfit**2 * square - misfit * (2 * shrink - square)
    each = torch.trapezoid(integrand, gamma) + integrand[:, 0]
    error = excess - each
    assert abs(error.mean()) < 4 * error.std() / 2000**0.5
    assert 0.8 < (error / result.stderr).square().mean().sqrt() < 1.25


def test_the_two_forms_agree_for_any_network():
    """Stein's identity holds whatever the network: here one that was never trained."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 2)).double()
    model = fastlik.wrap(
        net, fastlik.VP(), "v", call=lambda net, x, t: net(torch.cat((x, t[:, None].to(x.dtype)), 1))
    )
    x = GaussianMixture.ring().sample(200)
    one, other, probed = (
        fastlik.bound_nll(model, x, form=form, divergence=divergence)
        for form, divergence in (("dsm", "auto"), ("ism", "exact"), ("ism", "hutchinson"))
    )
    for result in (other, probed):
        difference = one.nats - result.nats
        z = difference / torch.hypot(one.stderr, result.stderr)
        assert abs(difference.mean()) < 4 * difference.std() / 200**0.5 and z.square().mean().sqrt() < 1.3


def test_any_distribution_is_a_prior():
    """Those whose cross-entropy has no closed form here are sampled."""
    data = GaussianMixture.random(3, 3)
    model, x = data.model(fastlik.VP()), data.sample(200)
    normal = Independent(Normal(torch.zeros(3).double(), torch.ones(3).double()), 1)
    exact, drawn = (fastlik.bound_nll(model, x, prior=prior) for prior in ("standard", normal))
    difference = drawn.nats - exact.nats
    # the same draws but for the prior's term, whose variance is that of |eps|^2 / 2 over 128 pairs
    assert abs(difference.mean()) < 4 * (1.5 / 128 / 200) ** 0.5
    assert difference.std() == pytest.approx((1.5 / 128) ** 0.5, rel=0.2)


def test_discrete_data():
    """F.11: above -log P of the levels, by what uniform dequantisation costs; its noise is in the standard
    error."""
    data, schedule = GaussianMixture([1.0], [[0.1, 0.1, 0.1]], 0.3**2), fastlik.VP(t_min=1e-6)
    levels = Quantisation(17).nearest(data.sample(400, 5))
    result = fastlik.bound_nll(data.model(schedule, moments=True), levels, dequantize="uniform", bins=17)
    width = 2 / 17
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    places = -1 + width * (levels[..., None] + u)
    expected = (0.5 * ((places - 0.1) / 0.3).square().mean(2) + math.log(0.3 * (2 * math.pi) ** 0.5)).sum(1)
    expected = expected - 3 * math.log(width)
    z = (result.nats - expected) / result.stderr
    assert abs(z.mean()) < 4 / 20 and 0.8 < z.square().mean().sqrt() < 1.25
    gap = result.nats + quantised_gaussian_log_mass(levels, 0.1, 0.3, 17, -1.0, 1.0)
    assert 0.0 < gap.mean() < 0.03 and result.protocol["bins"] == 17


@pytest.fixture(scope="module")
def setting():
    data = GaussianMixture.random(3, 20, seed=2)
    return data.model(fastlik.VP(), moments=True), data.sample(12)


@pytest.mark.parametrize("form", ["dsm", "ism"])
def test_a_row_keeps_its_number(setting, form):
    model, x = setting
    options = dict(form=form, draws=32)
    whole = fastlik.bound_nll(model, x, **options)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    for chunk in (1, 40, 100, 1000):
        mixed = fastlik.bound_nll(model, x[order], rows=order, chunk=chunk, **options)
        for name in ("nats", "stderr", "latent"):
            value, other = getattr(mixed, name), getattr(whole, name)[order]
            torch.testing.assert_close(value, other, rtol=0, atol=1e-9)
    assert not torch.equal(whole.nats, fastlik.bound_nll(model, x, seed=1, **options).nats)


def test_levels_keep_their_number():
    data = GaussianMixture.random(2, 2)
    model, levels = data.model(fastlik.VP()), torch.randint(0, 5, (6, 2))
    options = dict(dequantize="uniform", bins=5, draws=16)
    whole = fastlik.bound_nll(model, levels, **options)
    part = fastlik.bound_nll(model, levels[4:], rows=torch.tensor([4, 5]), chunk=5, **options)
    torch.testing.assert_close(part.nats, whole.nats[4:], rtol=0, atol=1e-9)


def test_conditions_are_split_with_rows_and_draws():
    data = GaussianMixture.random(2, 3)
    base = data.model(fastlik.VP())

    def call(net, x, t, shift, table):
        assert len(shift) == len(x) and table.shape == (16,)
        return net(x - fastlik.VP().alpha(t)[:, None] * shift, t)

    model = fastlik.wrap(base.net, fastlik.VP(), "noise", call=call)
    shift = torch.arange(6.0).double()[:, None] * torch.ones(3)
    # a table whose length is that of a chunk, not of the batch, stays whole
    condition = dict(shift=shift, table=torch.zeros(16))
    x = data.sample(6)
    plain = fastlik.bound_nll(base, x, draws=16, prior="standard", form="ism")
    moved = fastlik.bound_nll(
        model, x + shift, draws=16, prior="standard", form="ism", condition=condition, chunk=16
    )
    prior = (0.5 * fastlik.VP().alpha(1.0) ** 2 * ((x + shift).square() - x.square())).sum(1)
    # draws are the same in the frame that moves along, but for what the plain anchor does not see
    torch.testing.assert_close(moved.nats, plain.nats + prior, rtol=0, atol=1e-9)


def test_float32(setting):
    model, x = setting
    double, single = (fastlik.bound_nll(model, each, draws=64) for each in (x, x.float()))
    assert single.latent.dtype == torch.float32 and single.nats.dtype == torch.float64
    torch.testing.assert_close(single.nats, double.nats, rtol=0, atol=2e-3)


def test_a_nan_row_is_flagged_alone(setting):
    model, x = setting

    def poisoned(net, x, t):
        return torch.where((x[:, :1].abs() > 50) & (t > 0.5)[:, None], torch.nan, net(x, t))

    sick = fastlik.wrap(model.net, model.schedule, "noise", call=poisoned, moments=model.moments)
    bad = x.clone()
    bad[3] += 1e5
    with pytest.warns(fastlik.ConvergenceWarning, match="1 of 12 rows have no estimate .*row 3"):
        result = fastlik.bound_nll(sick, bad, draws=32)
    keep = torch.arange(12) != 3
    assert result.nats[3].isnan() and result.stderr[3].isnan() and 0.5 < result.stopped_at[3] < 1
    assert torch.equal(result.converged, keep)
    whole = fastlik.bound_nll(model, x, draws=32)
    torch.testing.assert_close(result.nats[keep], whole.nats[keep], rtol=0, atol=1e-9)


def test_an_interruption_keeps_finished_rows(setting):
    model, x = setting
    calls = []

    def interrupted(net, x, t):
        calls.append(len(x))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return net(x, t)

    slow = fastlik.wrap(model.net, model.schedule, "noise", call=interrupted, moments=model.moments)
    with pytest.raises(fastlik.EvaluationInterrupted, match="6 of 12 rows") as caught:
        fastlik.bound_nll(slow, x, draws=32, chunk=64)
    assert calls == [64] * 4
    partial = caught.value.partial
    whole = fastlik.bound_nll(model, x, draws=32)
    torch.testing.assert_close(partial.nats, whole.nats[:6], rtol=0, atol=1e-9)
    assert partial.protocol == whole.protocol


def test_the_protocol_names_the_conventions(setting):
    model, x = setting
    result = fastlik.bound_nll(model, x[:2], form="ism", draws=8, seed=5)
    told = result.protocol
    assert told["estimator"] == "upper bound of the SDE" and told["form"] == "ism"
    assert told["prior"] == "matched: data mean and covariance" and "reconstruction" in told["start"]
    assert (told["draws"], told["seed"], told["divergence"], told["probes"]) == (8, 5, "hutchinson", 1)
    assert result.to_dict()["protocol"]["sampling"].startswith("uniform in log-SNR, 2 strata")


def test_an_empty_batch(setting):
    model, x = setting
    for options in ({}, dict(form="ism"), dict(dequantize="uniform", bins=4)):
        empty = x[:0].long() if options.get("bins") else x[:0]
        result = fastlik.bound_nll(model, empty, **options)
        assert len(result) == 0 and result.latent.shape == (0, 20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(form="dms"), "'dsm', 'ism'"),
        (dict(draws=6), "multiple of 4.*take 8"),
        (dict(draws=2), "at least 4"),
        (dict(draws=8.0), "integer"),
        (dict(seed=-1), "seed"),
        (dict(probes=0), "probes"),
        (dict(divergence="hutch"), "'hutchinson'"),
        (dict(probe="sign"), "'rademacher'"),
        (dict(prior="gauss"), "'standard'"),
        (dict(chunk=0), "chunk"),
        (dict(t_min=0.9, t_max=0.1), "interval within"),
        (dict(dequantize="uniform"), "needs bins="),
        (dict(rows=torch.arange(3)), "12 integer ids"),
    ],
)
def test_bad_options_are_named(setting, options, message):
    model, x = setting
    with pytest.raises((ValueError, TypeError), match=message):
        fastlik.bound_nll(model, x, **options)


def test_bad_data_are_named(setting):
    model, x = setting
    with pytest.raises(TypeError, match="dequantize="):
        fastlik.bound_nll(model, x.long())
    with pytest.raises(TypeError, match=r"fastlik\.wrap\(net"):
        fastlik.bound_nll(model.net, x)
    with pytest.raises(ValueError, match="events of 19"):
        fastlik.bound_nll(model, x[:, 1:])
