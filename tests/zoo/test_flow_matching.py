"""Velocity fields of flow_matching, and of torchcfm's ways to be called."""

import torch
from flow_matching.solver import ODESolver
from flow_matching.utils import ModelWrapper
from torch import nn

import fastlik
from fastlik import zoo
from fastlik.testing import GaussianMixture

DATA = GaussianMixture.ring()
SCHEDULE = fastlik.RectifiedFlow(data_at=1)
MOMENTS = (DATA.mean, DATA.covariance)


class Velocity(nn.Module):
    """The exact velocity of a mixture."""

    def __init__(self):
        super().__init__()
        self.exact = DATA.model(SCHEDULE, predicts="velocity").net

    def forward(self, x, t):
        return self.exact(x, t.expand(len(x)))


class TimeFirst(Velocity):
    def forward(self, t, x):
        return super().forward(x, t)


class Joined(Velocity):
    """As torchcfm's MLP."""

    time_varying = True

    def forward(self, joined):
        return super().forward(joined[:, :-1], joined[:, -1])


def test_the_likelihood_is_the_library_s_own():
    x = DATA.sample(8, seed=4)
    model = zoo.from_flow_matching(ModelWrapper(Velocity()))
    result = fastlik.ode_nll(model, x, tolerance=1e-5, prior="standard")
    normal = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2).double(), 1.0), 1)
    # solvers of torchdiffeq must not start where the exact velocity divides by zero
    _, theirs = ODESolver(ModelWrapper(Velocity())).compute_likelihood(
        x, normal.log_prob, step_size=None, method="dopri5", atol=1e-7, rtol=1e-7, exact_divergence=True,
        time_grid=torch.tensor([1.0, 0.0], dtype=torch.float64),
    )  # fmt: skip
    torch.testing.assert_close(-result.nats, theirs, rtol=0, atol=1e-3)


def test_exact_velocities_have_the_data_s_likelihood():
    x = DATA.sample(8, seed=5)
    for model in (
        zoo.from_flow_matching(Velocity(), moments=MOMENTS),
        zoo.from_torchcfm(TimeFirst(), moments=MOMENTS),
        zoo.from_torchcfm(Joined(), moments=MOMENTS),
    ):
        result = fastlik.ode_nll(model, x, tolerance=1e-5)
        torch.testing.assert_close(-result.nats, DATA.log_density(x), rtol=0, atol=1e-3)
