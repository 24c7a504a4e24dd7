"""Noise within the bins: its density, the bounds it gives, and what modules may return."""

import math

import pytest
import torch
from scipy.integrate import quad
from torch import nn
from torch.special import ndtr, ndtri

import fastlik
from fastlik.likelihood.dequantise import Quantisation
from fastlik.likelihood.dequantiser import Learned, TruncatedNormal, Uniform, _open_unit
from fastlik.testing import GaussianMixture, quantised_gaussian_log_mass

MEAN, STD = 0.1, 0.3
DATA = GaussianMixture([1.0], [[MEAN] * 3], STD**2)
SCHEDULE = fastlik.VP(t_min=1e-6)


def truncated(bins=256, alpha=1.0, sigma=1e-3, average=False, **quantisation):
    return TruncatedNormal(Quantisation(bins, **quantisation), alpha, sigma, torch.float64, average)


def drawn(dequantiser, levels, draw=0, seed=0):
    return dequantiser(levels, torch.arange(len(levels)), draw, seed)


# truncated normal


def test_the_constants_of_i_dode():
    """reference/papers.md D.2: gamma_0 = -13.3 and 256 bins over [-1, 1]."""
    schedule = fastlik.LogSNR(gamma_min=-13.3)
    alpha, sigma = schedule.alpha(0.0).item(), schedule.sigma(0.0).item()
    q = truncated(alpha=alpha, sigma=sigma, average=True)
    assert q.truncation == pytest.approx(3.0187, abs=5e-5)
    _, log_q = drawn(q, torch.zeros(2, 5, dtype=torch.long))
    assert log_q.tolist() == pytest.approx([5 * 5.246283158] * 2, abs=5e-9)


@pytest.mark.parametrize("sigma", [1e-7, 0.01, 0.1, 30.0])
def test_the_density_of_the_points_is_a_normals_cut_off_at_the_bin(sigma):
    q = truncated(5, 0.9, sigma, low=-2.0, high=3.0)
    levels = torch.arange(5).repeat(400)[:, None]
    x, log_q = drawn(q, levels)
    offset = x / 0.9 - (-2.0 + levels + 0.5)
    assert offset.abs().max() <= 0.5 * (1 + 1e-12) and offset.abs().max() > 0.4 * min(1, sigma / 0.1)
    half = 0.45 / sigma
    normal = torch.distributions.Normal(0, torch.tensor(sigma, dtype=torch.float64))
    expected = normal.log_prob(0.9 * offset[:, 0].double()) - math.log(math.erf(half / math.sqrt(2)))
    torch.testing.assert_close(log_q, expected, rtol=1e-6, atol=1e-6)
    # the points follow it: their distribution function is uniform
    uniform = (ndtr(0.9 * offset / sigma) - ndtr(torch.tensor(-half))) / math.erf(half / math.sqrt(2))
    assert abs(uniform.mean() - 0.5) < 5 / math.sqrt(12 * 2000)
    assert abs(uniform.var() - 1 / 12) < 0.01
    # and the closed form of its expectation
    _, mean = drawn(truncated(5, 0.9, sigma, True, low=-2.0, high=3.0), levels)
    assert abs(log_q.mean() - mean[0]) <= 5 * log_q.std() / math.sqrt(2000) + 1e-9


def test_much_noise_is_uniform_in_the_bins_of_the_scaled_data():
    """tau -> 0, where nothing cancels."""
    levels = torch.arange(17)[:, None]
    x, log_q = drawn(truncated(17, 0.5, 1e8), levels)
    uniform, volume = drawn(Uniform(Quantisation(17)), levels)
    torch.testing.assert_close(x, 0.5 * uniform, rtol=0, atol=1e-7)
    torch.testing.assert_close(log_q, volume - math.log(0.5), rtol=0, atol=1e-9)
    _, mean = drawn(truncated(17, 0.5, 1e8, average=True), levels)
    torch.testing.assert_close(mean, log_q, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("schedule", "bins", "low", "high"),
    [
        (fastlik.LogSNR(gamma_min=-4.0), 9, -1.0, 1.0),
        (fastlik.LogSNR(gamma_min=-4.0, path="straight"), 5, -1.0, 1.0),
        (fastlik.VE(sigma_min=0.05), 17, -1.0, 2.0),
        (fastlik.SubVP(), 33, -0.9, 1.1),
        (fastlik.RectifiedFlow(data_at=1, t_max=0.97), 12, -1.5, 1.5),
    ],
)
def test_it_bounds_the_mass_in_the_bins_by_its_divergence_from_the_density_there(schedule, bins, low, high):
    """F.11 with the gap in numbers: E_q log q / p over each bin, by quadrature; K draws close it."""
    levels = Quantisation(bins, low, high).nearest(DATA.sample(120, 5))
    model = DATA.model(schedule, "v", moments=True)
    alpha, sigma = (float(value(schedule.t_data)) for value in (schedule.alpha, schedule.sigma))
    spread = math.hypot(STD, sigma / alpha)  # x_t / alpha is N(mean, spread^2)
    exact = -quantised_gaussian_log_mass(levels, MEAN, spread, bins, low, high)
    options = dict(dequantize="truncated_normal", bins=bins, data_range=(low, high), tolerance=1e-4)

    def gap(level):
        width, scale = (high - low) / bins, sigma / alpha
        tau = 0.5 * width / scale
        centre = low + width * (level + 0.5)

        def integrand(eps):
            log_q = -0.5 * eps**2 - math.log(scale * math.sqrt(2 * math.pi) * math.erf(tau / math.sqrt(2)))
            z = (centre + scale * eps - MEAN) / spread
            log_p = -0.5 * z**2 - math.log(spread * math.sqrt(2 * math.pi))
            return math.exp(log_q) * scale * (log_q - log_p)

        return quad(integrand, -tau, tau, epsabs=1e-9)[0]

    table = torch.tensor([gap(level) for level in range(bins)]).double()
    for importance in (1, 12):
        result = fastlik.ode_nll(model, levels, importance=importance, **options)
        error = result.nats - (table[levels].sum(1) if importance == 1 else exact)
        noise = error.std() / math.sqrt(len(error))
        if importance == 1:
            assert result.protocol["truncation"] == pytest.approx(0.5 * (high - low) / bins * alpha / sigma)
            assert abs(error.mean()) < 4.5 * noise + 3e-5
            assert (table[levels].sum(1) >= exact - 1e-9).all()
            first = (result.nats - exact).mean()
        else:  # a forgotten - log K would be 2.5 nats below
            assert -4.5 * noise - 3e-5 < error.mean() < 0.9 * first


def test_the_importance_weights_hold_the_density_of_each_draw():
    """Where q is p given the bin, every draw is the likelihood: here data that are a point."""
    sigma = 0.02
    model = GaussianMixture([1.0], [[0.0]], 1e-12).model(fastlik.VE(sigma_min=sigma), moments=True)
    for bins in (5, 31):
        levels = torch.full((50, 1), bins // 2)
        options = dict(dequantize="truncated_normal", bins=bins, tolerance=1e-6)
        result = fastlik.ode_nll(model, levels, importance=3, **options)
        mass = math.erf(1 / bins / sigma / math.sqrt(2))
        assert result.nats.tolist() == pytest.approx([-math.log(mass)] * 50, abs=2e-4)


@pytest.mark.parametrize(
    ("schedule", "options"),
    [
        (fastlik.RectifiedFlow(), {}),
        (fastlik.RectifiedFlow(data_at=1), {}),
        (fastlik.LogSNR(gamma_min=-40.0), {}),
        (fastlik.VE(sigma_min=1e-3), dict(data_range=(0, 1e5))),
    ],
)
def test_without_noise_at_the_data_there_is_nothing_to_draw(schedule, options):
    model = fastlik.wrap(nn.Linear(2, 2), schedule, "velocity", call=lambda net, x, t: net(x))
    with pytest.raises(ValueError, match=r'sigma=.* cannot tell from 0 .*t_min=.*dequantize="uniform"'):
        fastlik.ode_nll(model, torch.ones(3, 2).long(), dequantize="truncated_normal", bins=256, **options)


@pytest.mark.parametrize("dequantize", ["truncated_normal", "module"])
def test_the_noise_belongs_to_the_row(dequantize):
    model, levels = DATA.model(SCHEDULE), Quantisation(17).nearest(DATA.sample(8, 5))
    options = dict(dequantize=Exact() if dequantize == "module" else dequantize, bins=17, importance=2)
    whole = fastlik.ode_nll(model, levels, **options)
    chunked = fastlik.ode_nll(model, levels, chunk=3, **options)
    last = fastlik.ode_nll(model, levels[5:], rows=torch.arange(5, 8), **options)
    torch.testing.assert_close(chunked.nats, whole.nats, rtol=0, atol=1e-9)
    torch.testing.assert_close(last.nats, whole.nats[5:], rtol=0, atol=1e-9)
    other = fastlik.ode_nll(model, levels, seed=1, **options)
    assert not torch.equal(whole.latent, other.latent)


# modules


class Returning(nn.Module):
    """What ``f`` makes of centres and noise."""

    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, centres, noise):
        return self.f(centres, noise)


class Exact(nn.Module):
    """The Gaussian's own distribution within the bins: no bound is tighter."""

    def __init__(self, bins=17):
        super().__init__()
        self.bins = bins

    def forward(self, centres, noise):
        low, high = ((centres + side / self.bins - MEAN) / STD for side in (-1, 1))
        lower, mass = ndtr(low), ndtr(high) - ndtr(low)
        z = ndtri(lower + noise * mass)
        log_q = -0.5 * z**2 - 0.5 * math.log(2 * math.pi) + math.log(2 / self.bins / STD) - mass.log()
        return ((z - low) / (high - low)).clamp(0, 1), log_q.sum(1)


def test_the_density_within_the_bins_gives_the_likelihood_itself():
    model = DATA.model(SCHEDULE, moments=True)
    levels = Quantisation(17).nearest(DATA.sample(100, 5))
    x = levels.double() / 8 - 1
    result = fastlik.ode_nll(model, x, dequantize=Exact(), bins=17, tolerance=1e-6)
    exact = -quantised_gaussian_log_mass(levels, MEAN, STD, 17, -1.0, 1.0)
    torch.testing.assert_close(result.nats, exact, rtol=0, atol=5e-4)
    assert result.protocol["dequantize"] == "Exact" and result.protocol["seed"] == 0


def test_the_noise_itself_is_uniform_dequantisation():
    levels = Quantisation(9, 0.0, 3.0).nearest(DATA.sample(20, 5).abs())
    options = dict(bins=9, data_range=(0.0, 3.0), importance=3)
    module = Returning(lambda centres, noise: (noise, noise.new_zeros(len(noise))))
    learned = fastlik.ode_nll(DATA.model(SCHEDULE), levels.double() / 8 * 3, dequantize=module, **options)
    uniform = fastlik.ode_nll(DATA.model(SCHEDULE), levels.double() / 8 * 3, dequantize="uniform", **options)
    assert torch.equal(learned.nats, uniform.nats)


def test_a_module_gets_centres_and_noise_in_its_own_precision_and_is_evaluated():
    seen = {}

    class Watching(nn.Module):
        def __init__(self, dtype):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros((), dtype=dtype))

        def forward(self, centres, noise):
            seen.update(centres=centres, noise=noise, training=self.training)
            return noise + self.weight, self.weight.expand(len(noise))

    model = DATA.model(SCHEDULE)
    for dtype in (torch.float32, torch.float64):
        module = Watching(dtype)
        options = dict(bins=4, data_range=(0.0, 2.0))
        result = fastlik.ode_nll(model, torch.tensor([[0, 1, 3]]), dequantize=module, **options)
        assert result.nats.dtype == torch.float64 and not result.nats.requires_grad
        assert seen["noise"].dtype == dtype and not seen["training"] and module.training
        assert seen["centres"].tolist() == [[0.25, 0.75, 1.75]]


def test_noise_stays_below_one_in_low_precision():
    highest = torch.tensor([[1 - 2.0**-33]], dtype=torch.float64)
    for dtype in (torch.float16, torch.float32, torch.float64):
        assert 0.99 < _open_unit(highest, dtype).double() < 1


def row_two(value):
    return lambda centres, noise: (noise.masked_fill(torch.arange(4)[:, None] == 2, value), noise[:, 0])


@pytest.mark.parametrize(
    ("f", "error", "message"),
    [
        (lambda c, v: v, TypeError, "returned Tensor: .*two tensors"),
        (lambda c, v: (v, v[:, 0], v), TypeError, "returned tuple of 3"),
        (lambda c, v: (v, 0.0), TypeError, "returned tuple of 2"),
        (lambda c, v: (v[:2], v[:, 0]), ValueError, r"u of shape \(2, 3\).*they are \(4, 3\) and \(4,\)"),
        (lambda c, v: (v, v), ValueError, r"log q of shape \(4, 3\)"),
        (row_two(1.5), ValueError, r"Returning returned for row 12 u outside \(0, 1\)"),
        (row_two(math.nan), ValueError, "for row 12 u outside"),
        (lambda c, v: (v, v[:, 0] / 0), ValueError, "for rows 10, 11, 12, 13 a log q that is not finite"),
    ],
)
def test_what_a_module_must_not_return(f, error, message):
    levels, rows = torch.ones(4, 3).long(), torch.arange(10, 14)
    with pytest.raises(error, match=message):
        fastlik.ode_nll(DATA.model(SCHEDULE), levels, rows=rows, dequantize=Returning(f), bins=17)


def test_a_module_elsewhere_is_named():
    module = nn.Linear(3, 3, device="meta")
    with pytest.raises(ValueError, match="x is on cpu but Linear is on meta"):
        fastlik.ode_nll(DATA.model(SCHEDULE), torch.ones(4, 3).long(), dequantize=module, bins=17)


def test_nothing_in_nothing_out():
    model, levels = DATA.model(SCHEDULE), torch.ones(0, 3).long()
    for dequantize in ("truncated_normal", Exact()):
        result = fastlik.ode_nll(model, levels, dequantize=dequantize, bins=17)
        assert len(result) == 0


def test_the_module_is_called_without_gradients():
    q = Learned(Quantisation(17), Returning(lambda c, v: (v, v.sum(1))), torch.float64)
    x, log_q = drawn(q, torch.ones(2, 3).long())
    assert not x.requires_grad and not log_q.requires_grad


def test_bounds_and_formulas_take_a_module_too():
    """Exact score and density within the bins: log p and log q differ by the levels' nats, draw by draw."""
    schedule = fastlik.VP(t_min=1e-6)
    model = DATA.model(schedule, moments=True)
    levels = Quantisation(17).nearest(DATA.sample(40, 5))
    exact = -quantised_gaussian_log_mass(levels, MEAN, STD, 17, -1.0, 1.0)
    for estimate in (fastlik.bound_nll, fastlik.formula_nll):
        result = estimate(model, levels, dequantize=Exact().double(), bins=17, draws=32)
        torch.testing.assert_close(result.nats, exact, rtol=0, atol=2e-3)
        assert result.protocol["dequantize"] == "Exact, anew for each pair"


def test_bounds_start_from_data_without_the_noise_of_a_truncated_normal():
    levels, options = torch.ones(2, 3).long(), {"dequantize": "truncated_normal", "bins": 17}
    with pytest.raises(ValueError, match="valid values are None, 'uniform'"):
        fastlik.bound_nll(DATA.model(SCHEDULE), levels, **options)
