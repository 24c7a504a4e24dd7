"""Learned dequantisation: where the optimum is known, what it reaches, and its files."""

import math

import pytest
import torch
from torch import nn

import fastlik
from fastlik.likelihood.dequantise import Quantisation
from fastlik.likelihood.prior import choose_prior
from fastlik.nn import FlowDequantiser
from fastlik.objectives import dequantisation_loss
from fastlik.testing import GaussianMixture, quantised_gaussian_log_mass

BINS, MEAN, STD = 4, 0.1, 0.3
SCHEDULE = fastlik.VP(t_min=1e-5)


def task(size, rows=4000, seed=1):
    data = GaussianMixture([1.0], [[MEAN] * size], STD**2)
    levels = Quantisation(BINS).nearest(data.sample(rows, seed))
    return data.model(SCHEDULE, moments=True), levels


def options(**changes):
    return dict(steps=300, batch_size=256, lr=5e-3, bins=BINS, progress=False) | changes


@pytest.mark.parametrize("size", [1, 2])
def test_it_closes_the_gap_between_the_uniform_bound_and_the_likelihood(size):
    model, levels = task(size)
    run = fastlik.train_dequantiser(model, levels, **options())
    held_out = task(size, 600, seed=2)[1]
    exact = -quantised_gaussian_log_mass(held_out, MEAN, STD, BINS, -1.0, 1.0)
    gaps = {}
    for name, dequantize in (("uniform", "uniform"), ("learned", run.dequantiser)):
        result = fastlik.ode_nll(model, held_out, dequantize=dequantize, bins=BINS, tolerance=1e-4)
        error = result.nats - exact
        gaps[name], noise = error.mean().item(), (error.std() / math.sqrt(len(error))).item()
    assert gaps["uniform"] > 0.1 * size
    assert -5 * noise - 1e-4 < gaps["learned"] < 0.25 * gaps["uniform"]


def test_the_loss_is_the_bound():
    """Of an exact score it is the likelihood plus the gap of the dequantiser, here uniform."""
    model, levels = task(2, 20_000)
    torch.manual_seed(0)
    prior = choose_prior("auto", model, SCHEDULE.t_prior, 2, torch.device("cpu"))
    untrained = FlowDequantiser((2,)).double()
    with torch.no_grad():
        loss = dequantisation_loss(model, untrained, Quantisation(BINS), levels, prior, torch.float64)
    result = fastlik.ode_nll(model, levels, dequantize="uniform", bins=BINS)
    error = loss - result.nats
    assert abs(error.mean()) < 4.5 * error.std() / math.sqrt(len(error)) + 1e-3


def test_the_score_model_stays_as_it_is():
    torch.manual_seed(0)
    net = nn.Linear(2, 2).double()  # in another precision than the dequantiser's
    model = fastlik.wrap(net, SCHEDULE, "v", call=lambda net, x, t: net(x))
    before = [p.clone() for p in net.parameters()]
    state = torch.random.get_rng_state()
    run = fastlik.train_dequantiser(model, task(2, 50)[1], **options(steps=3))
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert all(p.grad is None and p.requires_grad for p in net.parameters()) and net.training
    assert not run.dequantiser.training and torch.equal(state, torch.random.get_rng_state())


def test_images_conditions_and_the_models_own_bins():
    model = fastlik.wrap(
        nn.Conv2d(1, 1, 3, padding=1), SCHEDULE, "v",
        call=lambda net, x, t, shift: net(x) + shift[:, None, None, None],
    )  # fmt: skip
    model.quantisation = Quantisation(5, 0.0, 2.0)
    images = torch.randint(5, (40, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    changes = dict(bins=None, steps=20, batch_size=8, condition={"shift": torch.rand(40)})
    run = fastlik.train_dequantiser(model, images, **options(**changes))
    assert run.dequantiser.config["data_range"] == [0.0, 2.0] and run.dequantiser.config["event"] == [1, 4, 4]
    assert len(run.history) == 1 and math.isfinite(run.history[0]["loss"])


def test_the_seed_decides():
    model, levels = task(1, 100)
    losses = [
        fastlik.train_dequantiser(model, levels, **options(steps=20, seed=seed)).history[0]["loss"]
        for seed in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_it_is_kept_in_a_file(tmp_path):
    model, levels = task(2, 100)
    path = tmp_path / "dequantiser.safetensors"
    run = fastlik.train_dequantiser(model, levels, **options(steps=5, out=path))
    again = fastlik.load_dequantiser(path)
    assert run.path == path and not again.training and not any(p.requires_grad for p in again.parameters())
    first, second = (
        fastlik.ode_nll(model, levels[:9], dequantize=module, bins=BINS)
        for module in (run.dequantiser, again)
    )
    assert torch.equal(first.nats, second.nats) and first.protocol["dequantize"] == "FlowDequantiser"
    with pytest.raises(FileNotFoundError, match="no dequantiser"):
        fastlik.load_dequantiser(tmp_path / "none")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="truncated"):
        fastlik.load_dequantiser(path)


class Fixed(nn.Module):
    def forward(self, centres, noise):
        return noise, noise[:, 0]


@pytest.mark.parametrize(
    ("module", "changes", "message"),
    [
        (None, dict(bins=None), "pass bins="),
        (None, dict(ema=1.0), "ema"),
        (None, dict(steps=0), "steps"),
        (Fixed(), {}, "no parameters"),
        (Fixed(), dict(out="x"), "FlowDequantiser"),
    ],
)
def test_bad_options(module, changes, message):
    model, levels = task(1, 10)
    with pytest.raises(ValueError, match=message):
        fastlik.train_dequantiser(model, levels, module, **options(**changes))
