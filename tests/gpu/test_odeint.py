"""odeint on a GPU against the CPU, and the waiting that it asks of the host."""

import warnings

import pytest
import torch

import fastlik

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


def vanderpol(t, y):
    return torch.stack((y[:, 1], (1 - y[:, 0] ** 2) * y[:, 1] - y[:, 0]), 1)


def make(device):
    y0 = torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ends = torch.linspace(-3, 4, 20, dtype=torch.float64)
    return y0.to(device), (ends[:, None] * torch.linspace(0, 1, 30, dtype=torch.float64)).to(device)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("method", ["rk45", "tsit5", "rk4"])
def test_the_gpu_agrees_with_the_cpu(method, dense):
    here, there = (
        fastlik.odeint(vanderpol, *make(device), method=method, dense=dense) for device in ("cpu", "cuda")
    )
    assert there.y.is_cuda and there.converged.all()
    torch.testing.assert_close(there.y.cpu(), here.y, rtol=1e-8, atol=1e-8)
    if dense:
        torch.testing.assert_close(
            there.evaluate(0.5).cpu(), here.evaluate(0.5), rtol=1e-6, atol=1e-6, equal_nan=True
        )


def test_one_wait_per_attempt():
    y0, t = make("cuda")
    fastlik.odeint(vanderpol, y0, t)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            solution = fastlik.odeint(vanderpol, y0, t)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = sum("synchronizing" in str(warning.message) for warning in caught)
    assert waits <= (solution.steps + solution.rejected).max() + 16
