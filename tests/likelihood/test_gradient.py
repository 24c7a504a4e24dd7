"""Gradients of nats: by x the oracle's score; by parameters and conditions finite differences."""

import pytest
import torch
from torch import nn

import fastlik
from fastlik.likelihood.flow import LikelihoodFlow, Trace
from fastlik.likelihood.gradient import Path, attach, replay
from fastlik.likelihood.problem import CLOCK


def small_model(condition: bool = False) -> fastlik.ScoreModel:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4 + condition, 16), nn.SiLU(), nn.Linear(16, 3)).double()

    def call(net, x, t, shift=None):
        features = (x, t[:, None]) if shift is None else (x, t[:, None], shift)
        return net(torch.cat(features, 1))

    return fastlik.wrap(net, fastlik.VP(), "v", time="log_snr", time_scale=0.1, call=call)


def points(rows=5):
    return torch.randn(rows, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("schedule", [fastlik.VP(), fastlik.EDM()], ids=["VP", "EDM"])
def test_the_gradient_by_x_is_minus_the_score(mixture, schedule, draw):
    x, _ = draw(mixture, schedule, 12)
    x.requires_grad_()
    result = fastlik.ode_nll(mixture.model(schedule, moments=True), x, tolerance=1e-6)
    (gradient,) = torch.autograd.grad(result.nats.sum(), x)
    t = schedule.t_data
    score = mixture.score(x.detach(), schedule.alpha(t), schedule.sigma(t))
    torch.testing.assert_close(gradient, -score, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "two probes"])
def test_the_adjoint_is_the_gradient_of_the_replay(exact):
    """On nodes that stay: by x, parameters and a condition, against autograd and finite differences."""
    model, x = small_model(condition=True), points()
    shift = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None].requires_grad_()
    trace = Trace(exact, 2, "rademacher", True, 0, "auto")
    flow = LikelihoodFlow(model, CLOCK, trace, torch.arange(5), {"shift": shift}, companion=True)
    t = torch.linspace(0.1, 2.5, 12, dtype=torch.float64) + 0.02 * torch.arange(5).double()[:, None]
    path = Path(t, torch.tensor([12, 12, 7, 3, 12]), 4)

    def answer(z: torch.Tensor, parameters: bool = False) -> torch.Tensor:
        end, change, _ = replay(flow, path, z)
        return (end.sin().sum(1) + change).sum()

    x.requires_grad_()
    leaves = [x, shift, *model.parameters()]
    truth = torch.autograd.grad(answer(x), leaves)
    with torch.no_grad():
        end, change, _ = replay(flow, path, x)
    end, change = attach(flow, path, x, end, change)
    ours = torch.autograd.grad((end.sin().sum(1) + change).sum(), leaves)
    for found, expected in zip(ours, truth, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    for leaf, gradient in zip(leaves, ours, strict=True):
        direction = torch.randn(leaf.shape, dtype=leaf.dtype, generator=torch.Generator().manual_seed(2))
        values = []
        with torch.no_grad():
            for sign in (1, -2, 1):
                leaf += sign * 1e-5 * direction
                values.append(answer(x))
        difference = (values[0] - values[1]) / 2e-5
        torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-6, atol=1e-7)


def test_the_likelihood_can_be_trained_on_exactly():
    """Gradients reach the weights through ode_nll, and following them lowers the nats."""
    model, x = small_model(), points(16).requires_grad_()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(5):
        loss = fastlik.ode_nll(model, x, tolerance=1e-2).nats.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05


def test_refined_and_failed_rows_and_chunks():
    """A failed row has no gradient; the others' do not depend on how rows are evaluated together."""
    model, x = small_model(), points().requires_grad_()

    def call(net, x, t):
        return torch.where((x[:, :1] > 50) & (t[:, None] > 0), torch.nan, model.call(net, x, t))

    sick = fastlik.wrap(model.net, model.schedule, "v", time="log_snr", time_scale=0.1, call=call)
    far = torch.cat((x, torch.full((1, 3), 100.0, dtype=torch.float64)))
    with pytest.warns(fastlik.ConvergenceWarning):
        result = fastlik.ode_nll(sick, far)
    (together,) = torch.autograd.grad(result.nats[:5].sum(), x)
    (apart,) = torch.autograd.grad(fastlik.ode_nll(model, x, chunk=2).nats.sum(), x)
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-8)


def test_no_graph_without_need():
    model, x = small_model(), points()
    assert not fastlik.ode_nll(model, x).nats.requires_grad
    x.requires_grad_()
    with torch.no_grad():
        assert not fastlik.ode_nll(model, x).nats.requires_grad
    result = fastlik.ode_nll(model, x)
    assert result.nats.requires_grad and not result.latent.requires_grad
