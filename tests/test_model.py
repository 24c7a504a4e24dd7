"""ScoreModel: six predictions, one ODE."""

import pytest
import torch
from torch import nn

import fastlik
from fastlik.model import PREDICTIONS, evaluating


@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_every_prediction_gives_the_same_quantities(schedule, predicts, mixture, draw):
    model = mixture.model(schedule, predicts)
    x, _ = draw(mixture, schedule, 16)
    inside = torch.linspace(0.05, 0.95, 16, dtype=torch.float64)
    t = schedule.t_min + inside * (schedule.t_max - schedule.t_min)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x = alpha[:, None] * x + sigma[:, None]
    score = mixture.score(x, alpha, sigma)
    denoised = mixture.denoised(x, alpha, sigma)
    drift = (schedule.rates(t)[0] / alpha)[:, None] * x
    expected = {
        "noise": -sigma[:, None] * score,
        "score": score,
        "denoised": denoised,
        "velocity": drift - 0.5 * schedule.diffusion_squared(t)[:, None] * score,
    }
    for name, value in expected.items():
        got = getattr(model, name)(x, t)
        torch.testing.assert_close(got, value, rtol=1e-7, atol=1e-9 * float(value.abs().max()))


def test_angular_velocity_is_dz_dangle(schedule, mixture):
    """Along the ODE's velocity, z = x / s moves by v per unit of angle."""
    model = mixture.model(schedule)
    t = schedule.t_min + 0.4 * (schedule.t_max - schedule.t_min)
    if isinstance(schedule, fastlik.DiscreteVP):
        t = 400.5  # between the kinks of the table
    step = 1e-6 * (schedule.t_max - schedule.t_min)
    x = mixture.sample(5) + 0.3
    moved = [x + sign * step * model.velocity(x, t) for sign in (-1, 1)]
    z = [m / schedule.scale(t + sign * step) for m, sign in zip(moved, (-1, 1), strict=True)]
    turned = schedule.angle(t + step) - schedule.angle(t - step)
    angle = schedule.angle(t).expand(5)
    v = model.angular_velocity(x / schedule.scale(t), angle)
    torch.testing.assert_close((z[1] - z[0]) / turned, v, rtol=1e-4, atol=1e-5)


class Probe(nn.Module):
    """Remembers what it was called with."""

    def forward(self, x, time, **condition):
        self.x, self.time, self.condition = x, time, condition
        return x


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("t", lambda s, t: t),
        ("sigma", lambda s, t: s.sigma(t)),
        ("log_snr", lambda s, t: s.log_snr(t)),
        (lambda t: t**2, lambda s, t: t**2),
    ],
)
def test_time_conventions(time, expected):
    schedule, net = fastlik.VP(), Probe()
    model = fastlik.wrap(net, schedule, "noise", time=time, time_scale=3.0)
    t = torch.tensor([0.2, 0.7], dtype=torch.float64)
    model.noise(torch.zeros(2, 4), t, label=1)
    assert net.time.dtype == torch.float32 and net.condition == {"label": 1}
    torch.testing.assert_close(net.time, 3 * expected(schedule, t).float())


def test_index_time_and_calling_convention():
    schedule = fastlik.DiscreteVP([0.9, 0.5, 0.1])
    calls = []

    def call(net, x, time, **condition):
        calls.append(time)
        return {"sample": x}

    model = fastlik.wrap(
        nn.Identity(), schedule, "noise", time="index", call=call, output=lambda o: o["sample"]
    )
    model.noise(torch.zeros(2, 4), 1.5)
    torch.testing.assert_close(calls[0], torch.tensor([1.5, 1.5]))


def test_edm_network_gets_scaled_input():
    net = Probe()
    model = fastlik.wrap(net, fastlik.EDM(), "edm", time="log_snr", time_scale=-1 / 8, sigma_data=0.5)
    x = torch.randn(3, 4)
    denoised = model.denoised(x, 2.0)
    c_in = 1 / (4 + 0.25) ** 0.5
    torch.testing.assert_close(net.x, x * c_in)
    torch.testing.assert_close(net.time, torch.full((3,), 0.25).mul(torch.log(torch.tensor(2.0))))
    c_skip, c_out = 0.25 / 4.25, 2 * 0.5 / 4.25**0.5
    torch.testing.assert_close(denoised, c_skip * x + c_out * net.x)


def test_an_unusable_output_is_named():
    vp = fastlik.VP()
    with pytest.raises(TypeError, match="output=lambda"):
        fastlik.wrap(lambda x, t: (x,), vp, "noise").noise(torch.zeros(2, 3), 0.5)
    with pytest.raises(ValueError, match="chunk"):
        fastlik.wrap(lambda x, t: torch.cat((x, x), 1), vp, "noise").noise(torch.zeros(2, 3), 0.5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(predicts="epsilon"), ValueError, "'noise', 'score', 'x0', 'v', 'velocity', 'edm'"),
        (dict(predicts="noise", time="lambda"), ValueError, "'t', 'sigma', 'log_snr', 'index'"),
        (dict(predicts="noise", time="index"), ValueError, "DiscreteVP"),
        (dict(predicts="noise", schedule="vp"), TypeError, r"fastlik\.VP\(\)"),
    ],
)
def test_wrap_lists_what_is_valid(arguments, error, message):
    with pytest.raises(error, match=message):
        fastlik.wrap(nn.Identity(), **{"schedule": fastlik.VP(), **arguments})


class Frozen(nn.Dropout):
    """Stays in training mode whatever is asked of it."""

    def train(self, mode=True):
        return super().train(True)


@pytest.mark.parametrize("kind", ["plain", "own train", "script"])
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_evaluating_restores_every_modules_mode(kind):
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), Frozen(0.5) if kind == "own train" else nn.Tanh())
    net[0].eval()
    net = torch.jit.script(net) if kind == "script" else net
    model = nn.ModuleList([net])
    before = [module.training for module in model.modules()]
    with evaluating(model):
        training = [module.training for module in net.modules()]
        assert training == [False, False, False, kind == "own train"]
        x = torch.ones(8, 2)
        assert kind == "own train" or torch.equal(net(x), net(x))
    assert [module.training for module in model.modules()] == before
