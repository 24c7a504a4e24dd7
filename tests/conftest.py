"""Shared fixtures: the oracle distributions, and every schedule."""

import os

import pytest
import torch

# without a GPU the Triton kernels are interpreted: the variable is read when triton is imported
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import fastlik  # noqa: E402
from fastlik.testing import GaussianMixture  # noqa: E402
from tests.emulated_cuda import emulated_module, emulator  # noqa: E402, F401

# On tensors this small a second thread only waits, and where other programs use the cores it waits a
# hundred times longer.  The variable is for the subprocesses of tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

SCHEDULES = {
    "VP": fastlik.VP(),
    "SubVP": fastlik.SubVP(),
    "VE": fastlik.VE(),
    "Cosine": fastlik.Cosine(),
    "EDM": fastlik.EDM(),
    "RectifiedFlow": fastlik.RectifiedFlow(),
    "RectifiedFlow-data-at-1": fastlik.RectifiedFlow(data_at=1),
    "LogSNR-vp": fastlik.LogSNR(),
    "LogSNR-straight": fastlik.LogSNR(path="straight"),
    "DiscreteVP": fastlik.DiscreteVP(
        torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    ),
}


@pytest.fixture(params=SCHEDULES, scope="session")
def schedule(request):
    return SCHEDULES[request.param]


@pytest.fixture(scope="session")
def mixture():
    """Four components with full covariances in three dimensions."""
    return GaussianMixture.random(4, 3)


@pytest.fixture(scope="session")
def ring():
    return GaussianMixture.ring()


@pytest.fixture(scope="session")
def draw():
    """draw(mixture, schedule, n): samples at the schedule's data end, with their exact log-density."""

    def draw(mixture, schedule, n, seed=1):
        alpha, sigma = schedule.alpha(schedule.t_data), schedule.sigma(schedule.t_data)
        generator = torch.Generator().manual_seed(seed + 1)
        noise = torch.randn(n, mixture.size, generator=generator, dtype=torch.float64)
        x = alpha * mixture.sample(n, seed) + sigma * noise
        return x, mixture.log_density(x, alpha, sigma)

    return draw
