"""Input without a likelihood: one sentence that says what to change."""

import pytest
import torch
from torch import nn

import fastlik

X = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return fastlik.wrap(nn.Linear(2, 2), fastlik.VP(), "v", call=lambda net, x, t: net(x))


def with_bad_rows(value):
    x = X.clone()
    x[1, 0] = x[3, 1] = value
    return x


@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        (X[:, 0], {}, ValueError, r"shape \(B, \*event\).*\(B, 1\)"),
        (X.tolist(), {}, TypeError, "torch.as_tensor"),
        (X.half(), {}, TypeError, r"x\.float\(\)"),
        (X.double(), {}, TypeError, r"network is torch.float32: pass x.to\(torch.float32\)"),
        (with_bad_rows(torch.nan), {}, ValueError, "rows 1, 3"),
        (with_bad_rows(torch.inf), {}, ValueError, "rows 1, 3"),
        (torch.zeros(4, 0), {}, ValueError, "empty event"),
        (torch.ones(4, 2, dtype=torch.uint8), {}, TypeError, 'dequantize="uniform"'),
        (torch.ones(4, 2, dtype=torch.int64), dict(dequantize="uniform"), ValueError, "needs bins="),
        (X, dict(dequantize="gaussian", bins=4), ValueError, "None, 'uniform'"),
        (X * 9, dict(bins=256), ValueError, r"outside data_range=\(-1.0, 1.0\)"),
        (X * 9, dict(bins=256, data_range=(0, 1)), ValueError, r"outside data_range=\(0, 1\)"),
        (X.long() + 300, dict(dequantize="uniform", bins=256), ValueError, "rows 0, 1, 2, 3 is outside"),
        (X.clamp(0, 1), dict(dequantize="uniform", bins=2), ValueError, "not on the grid"),
        (X, dict(bins=1), ValueError, "at least 2"),
        (X, dict(bins=8, data_range=(1, 0)), ValueError, "low < high"),
        (X, dict(data_range=(0, 1)), ValueError, "needs bins="),
        (X, dict(importance=4), ValueError, "needs dequantize="),
        (X, dict(method="dopri5"), ValueError, "'auto', 'adams', 'rk45', 'tsit5', 'rk4', 'heun', 'euler'"),
        (X, dict(divergence="hutch"), ValueError, "'auto', 'exact', 'hutchinson'"),
        (X, dict(probe="sign"), ValueError, "'rademacher', 'gaussian'"),
        (X, dict(probe_mode="new"), ValueError, "'fresh', 'frozen'"),
        (X, dict(mode="fwd"), ValueError, "'auto', 'jvp', 'vjp'"),
        (X, dict(prior="gauss"), ValueError, "'auto', 'standard'"),
        (X, dict(backend="cpp"), ValueError, "native"),
        (X, dict(probes=0), ValueError, "probes must be an integer of at least 1"),
        (X, dict(probes=1.5), ValueError, "probes must be an integer"),
        (X, dict(chunk=0), ValueError, "chunk must be"),
        (X, dict(tolerance=0.0), ValueError, "tolerance must be a finite number above 0"),
        (X, dict(tolerance=float("nan")), ValueError, "tolerance"),
        (X, dict(rows=torch.arange(3)), ValueError, "4 integer ids"),
        (X, dict(rows=torch.arange(4.0)), ValueError, "4 integer ids"),
        (X, dict(rows=torch.arange(-1, 3)), ValueError, r"\[0, 2\^48\)"),
        (X, dict(t_min=0.5, t_max=0.2), ValueError, "interval within"),
        (X, dict(t_max=2.0), ValueError, "interval within"),
    ],
)
def test_it_is_named_with_its_remedy(model, x, options, error, message):
    with pytest.raises(error, match=message):
        fastlik.ode_nll(model, x, **options)


def test_an_unwrapped_module(model):
    with pytest.raises(TypeError, match=r"fastlik\.wrap\(net"):
        fastlik.ode_nll(model.net, X)


def test_a_prediction_that_does_not_determine_the_ode():
    net = nn.Linear(2, 2)
    for predicts, where in (("noise", "t=1"), ("x0", "t=0")):
        model = fastlik.wrap(net, fastlik.RectifiedFlow(), predicts, call=lambda net, x, t: net(x))
        with pytest.raises(ValueError, match=f"{where}.*shorten the interval"):
            fastlik.ode_nll(model, X)


def test_an_unknown_argument(model):
    with pytest.raises(TypeError, match="tolerence"):
        fastlik.ode_nll(model, X, tolerence=1e-3)


def test_an_empty_batch_returns_an_empty_result(model):
    result = fastlik.ode_nll(model, X[:0])
    assert len(result) == 0 and result.latent.shape == (0, 2)
    for value in (result.nats, result.bits_per_dim, result.stderr, result.nfe, result.status):
        assert value.shape == (0,)
    discrete = fastlik.ode_nll(model, X[:0].long(), dequantize="uniform", bins=4, importance=2)
    assert len(discrete) == 0


def test_a_network_that_explodes_is_flagged_not_returned():
    def explode(net, x, t):
        return 1e3 * x**3 / t[:, None]

    model = fastlik.wrap(nn.Identity(), fastlik.VP(), "noise", call=explode)
    with pytest.warns(fastlik.ConvergenceWarning, match="have no likelihood"):
        result = fastlik.ode_nll(model, X, max_steps=200)
    assert not result.converged.any() and result.nats.isnan().all()
    with pytest.warns(fastlik.ConvergenceWarning, match="not in the mean"):
        assert result.mean().rows == 0


def test_a_network_of_nans_says_where():
    def poisoned(net, x, t):
        return torch.where((t > 0.5)[:, None] & (x[:, :1] > X[2, 0] + 10), torch.nan, x)

    model = fastlik.wrap(nn.Identity(), fastlik.VP(), "v", call=poisoned)
    x = X.clone()
    x[2] += 40
    with pytest.warns(fastlik.ConvergenceWarning, match=r"1 of 4 rows .*row 2: .* at t = 0\.5"):
        result = fastlik.ode_nll(model, x)
    assert result.converged.tolist() == [True, True, False, True]


def test_too_few_steps_are_flagged(model):
    with pytest.warns(fastlik.ConvergenceWarning, match="maximum number of steps"):
        result = fastlik.ode_nll(model, X, max_steps=2)
    assert not result.converged.any()
