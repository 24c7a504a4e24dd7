import pytest
import torch
from torch import nn

from fastlik.model import PREDICTIONS, per_row, wrap
from fastlik.nn import MLP, UNet
from fastlik.objectives import importance_normaliser, sample_times, stratified
from fastlik.schedule import EDM, VE, VP, RectifiedFlow
from fastlik.training import train
from fastlik.training.ema import EMA
from fastlik.training.network import LimitedLogSNR, UnitScale, score_model
from fastlik.training.random import stream_seed

QUIET = {"progress": False, "device": "cpu"}
DATA = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))


def small(**options):
    return MLP(2, width=16, depth=2, time_features=8, **options)


@pytest.mark.parametrize(
    ("schedule", "predicts"),
    [("vp", "noise"), ("vp", "v"), ("rectified_flow", "velocity"), ("ve", "score"), ("edm", "edm")],
)
def test_a_gaussian_is_learned_to_the_known_optimum(schedule, predicts):
    """Data N(m, 0.25 I): J = Z/2 E ||eps_hat - E[eps | x_t]||^2 / d bounds the KL divergence."""
    torch.manual_seed(0)
    mean = torch.tensor([0.5, -0.25])
    data = mean + 0.5 * torch.randn(4000, 2)
    run = train(
        data, MLP(2, width=64, depth=2), schedule=schedule, predicts=predicts, steps=400,
        batch_size=256, lr=5e-3, ema=0.98, warmup=30, **QUIET,
    )  # fmt: skip
    process = run.model.schedule
    t = sample_times(process, "importance", stratified(8000)).t
    alpha, sigma = process.alpha(t), process.sigma(t)
    x0, noise = mean + 0.5 * torch.randn(8000, 2), torch.randn(8000, 2)
    x = per_row(alpha, x0) * x0 + per_row(sigma, x0) * noise
    gain = per_row(sigma / (0.25 * alpha**2 + sigma**2), x)
    optimum = gain * (x - per_row(alpha, x) * mean)
    gap = (run.model.noise(x, t) - optimum).square().mean()
    assert 0.5 * importance_normaliser(process) * float(gap) < 0.04  # nats per dimension


def test_the_run_is_ready_for_evaluation():
    run = train(DATA, small(), steps=40, batch_size=16, **QUIET)
    assert run.path is None
    assert not run.model.training
    assert not any(p.requires_grad for p in run.model.parameters())
    assert run.model.quantisation is None
    mean, covariance = run.model.moments
    torch.testing.assert_close(mean, DATA.double().mean(0))
    torch.testing.assert_close(covariance, torch.cov(DATA.double().T, correction=0))
    assert [record["step"] for record in run.history] == [20, 40]
    assert set(run.history[0]) == {"step", "loss", "lr", "grad_norm", "samples_per_second"}
    assert run.history[0]["lr"] == pytest.approx(2e-3 * 20 / 200)
    # an untrained network predicts zero: the loss is Z E eps^2 = Z
    assert run.history[0]["loss"] == pytest.approx(23.86, rel=0.2)


def test_default_networks_follow_the_data():
    vectors = train(DATA, steps=1, batch_size=8, **QUIET).model.net
    assert isinstance(vectors, MLP) and vectors.config["dim"] == 2
    conditional = train(
        DATA, steps=1, batch_size=8, condition={"condition": torch.randn(200, 3)}, **QUIET
    ).model.net
    assert conditional.config["condition_dim"] == 3
    levels = torch.randint(5, (20, 1, 8, 8))
    run = train(levels, steps=1, batch_size=4, bins=5, condition={"label": torch.arange(20) % 3}, **QUIET)
    assert isinstance(run.model.net, UNet) and run.model.net.config["classes"] == 3
    assert (run.model.quantisation.bins, run.model.quantisation.range) == (5, (-1.0, 1.0))
    with pytest.raises(ValueError, match=r"events of shape \(2, 3\): pass model="):
        train(torch.randn(4, 2, 3), **QUIET)
    with pytest.raises(ValueError, match="named 'condition', not 'label'"):
        train(DATA, condition={"label": torch.zeros(200)}, **QUIET)


def test_the_callers_generator_and_network_are_left_alone():
    net = small(activation="gelu")
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.get_rng_state()
    first = train(DATA, net, steps=5, batch_size=8, **QUIET)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    torch.manual_seed(77)  # nor does it matter
    second = train(DATA, net, steps=5, batch_size=8, **QUIET)
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    other = train(DATA, net, steps=5, batch_size=8, seed=1, **QUIET)
    assert not torch.equal(next(first.model.parameters()), next(other.model.parameters()))


def test_a_ready_model_is_trained_with_its_own_conventions():
    model = wrap(small(), VP(beta_max=10.0), "v", time="t")
    run = train(DATA, model, steps=3, batch_size=8, **QUIET)
    assert (run.model.predicts, run.model.time, run.model.schedule) == ("v", "t", VP(beta_max=10.0))
    with pytest.raises(ValueError, match="has its own VP"):
        train(DATA, model, schedule="ve", **QUIET)
    with pytest.raises(ValueError, match="the model predicts 'v'"):
        train(DATA, model, predicts="x0", **QUIET)
    more = train(DATA, run.model, steps=3, batch_size=8, **QUIET)  # a frozen model is trained on
    assert not torch.equal(next(more.model.parameters()), next(run.model.parameters()))


def test_frozen_parameters_stay():
    net = small()
    net.hidden[0].weight.requires_grad_(False)
    run = train(DATA, net, steps=5, batch_size=8, **QUIET)
    assert torch.equal(run.model.net.hidden[0].weight, net.hidden[0].weight)
    assert not torch.equal(run.model.net.hidden[1].weight, net.hidden[1].weight)


@pytest.mark.parametrize("predicts", PREDICTIONS)
@pytest.mark.parametrize("schedule", [VP(), VE(), EDM(), RectifiedFlow(), RectifiedFlow(data_at=1)])
def test_networks_see_unit_scales_and_finite_times(schedule, predicts):
    """For unit-variance data the input and the target over the output's factor are of order one."""
    seen = []

    class Probe(nn.Module):
        def forward(self, x, time):
            seen.append((x, time))
            return torch.ones_like(x)

    model = score_model(Probe(), schedule, predicts)
    for t in (schedule.t_min, schedule.t_max, 0.5 * (schedule.t_min + schedule.t_max)):
        times = torch.full((4000,), t, dtype=torch.float64)
        alpha, sigma = schedule.alpha(times), schedule.sigma(times)
        torch.manual_seed(0)
        x0, noise = torch.randn(2, 4000, 1)
        model(per_row(alpha, x0) * x0 + per_row(sigma, x0) * noise, times)
        x, time = seen.pop()
        if predicts == "edm":  # EDM's unit is data of deviation sigma_data = 0.5
            assert 0.9 < x.std() < 2.1
        else:
            assert abs(x.std() - 1) < 0.05
        assert time.abs().max() <= 2
        finite_target = not (predicts == "score" and float(sigma[0]) == 0)
        if finite_target and predicts == "score":
            out = model(x0, times)
            seen.pop()
            torch.testing.assert_close(
                out.double(), per_row(1 / sigma, out).double().expand_as(out), rtol=1e-3, atol=0
            )


def test_convention_helpers_are_used_where_needed():
    assert score_model(small(), VP(), "noise").call is None
    assert score_model(small(), VP(), "v").call is None
    assert score_model(small(), EDM(), "edm").call is None
    assert isinstance(score_model(small(), VE(), "noise").call, UnitScale)
    assert isinstance(score_model(small(), VP(), "score").call, UnitScale)
    assert score_model(small(), VE(), "noise").time == "log_snr"
    assert isinstance(score_model(small(), RectifiedFlow(), "velocity").time, LimitedLogSNR)


def test_ema_starts_fast_and_settles():
    model = wrap(nn.Linear(1, 1), VP(), "noise")
    ema = EMA(model, 0.9)
    reference = [p.clone() for p in model.parameters()]
    for step in range(300):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter))
        ema.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step))
        reference = [decay * r + (1 - decay) * p for r, p in zip(reference, model.parameters(), strict=True)]
    for mine, expected in zip(ema.model.parameters(), reference, strict=True):
        torch.testing.assert_close(mine, expected.detach())


def test_a_loss_that_is_not_finite_stops_the_run():
    class Bomb(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))
            self.calls = 0

        def forward(self, x, time):
            self.calls += 1
            return x * self.weight * (float("nan") if self.calls == 27 else 1.0)

    with pytest.raises(FloatingPointError, match="loss is nan at step 27"):
        train(DATA, Bomb(), steps=60, batch_size=8, **QUIET)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"order": 4}, "order=4 is unknown; the valid values are 1, 2, 3"),
        ({"weighting": "snr"}, "'likelihood', 'uniform'"),
        ({"time_sampling": "log"}, "'importance', 'uniform'"),
        ({"schedule": "vpp"}, "the valid names are vp,"),
        ({"predicts": "eps"}, "'noise', 'score'"),
        ({"precision": "fp8"}, "'float32', 'bf16'"),
        ({"compile": "no"}, "'auto', True, False"),
        ({"resume": "must"}, "'auto', False"),
        ({"steps": 0}, "steps must be an integer of at least 1, got 0"),
        ({"batch_size": 2.5}, "batch_size must be an integer"),
        ({"lr": 0.0}, "lr must be a finite number above 0"),
        ({"ema": 1.0}, "ema is a decay"),
        ({"clip": -1.0}, "clip must be"),
    ],
)
def test_bad_options_list_the_valid_ones(options, match):
    with pytest.raises(ValueError, match=match):
        train(DATA, **options, **QUIET)


def test_bad_models_are_refused():
    with pytest.raises(TypeError, match="must be a torch module"):
        train(DATA, lambda x, t: x, **QUIET)
    with pytest.raises(ValueError, match="no parameters"):
        train(DATA, nn.Identity(), **QUIET)


def test_bf16_trains_in_float32_state():
    run = train(DATA, small(), steps=20, batch_size=8, precision="bf16", **QUIET)
    exact = train(DATA, small(), steps=20, batch_size=8, **QUIET)
    assert next(run.model.parameters()).dtype == torch.float32
    assert run.history[0]["loss"] == pytest.approx(exact.history[0]["loss"], rel=0.05)
    assert run.history[0]["loss"] != exact.history[0]["loss"]


def test_float64_networks_train_in_float64():
    run = train(DATA, small().double(), steps=2, batch_size=8, **QUIET)
    assert run.model.noise(DATA.double(), 0.5).dtype == torch.float64


def test_streams_of_random_numbers_do_not_meet():
    seeds = {stream_seed(seed, name, i) for seed in range(20) for name in "ab" for i in range(50)}
    assert len(seeds) == 2000
