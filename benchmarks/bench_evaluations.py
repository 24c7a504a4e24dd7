"""What an error costs at default settings, in counts that do not depend on the machine."""

from __future__ import annotations

import pytest
import torch

import fastlik
from benchmarks import workloads
from benchmarks.cost import count
from benchmarks.methods import SCORE_SDE
from fastlik.testing import GaussianMixture

TARGET = 1e-3
"""Nats per dimension of discretisation error, mean over the points."""


def clusters() -> GaussianMixture:
    """Sixteen well separated isotropic clusters in 64 dimensions."""
    means = torch.randn(16, 64, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return GaussianMixture(torch.ones(16), means, 0.01)


MIXTURES = {
    "16 full covariances": GaussianMixture.random(16, 64),
    "4 full covariances": GaussianMixture.random(4, 64, seed=3),
    "16 clusters": clusters(),
}


@pytest.mark.parametrize("name", MIXTURES)
def bench_mixture_in_64_dimensions(benchmark, name):
    """At most 40 evaluations with the exact score; a frozen probe has at least four times the variance."""
    data, schedule = MIXTURES[name], fastlik.VP()
    alpha, sigma = schedule.alpha(schedule.t_data), schedule.sigma(schedule.t_data)
    noise = torch.randn(24, 64, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x = alpha * data.sample(24, 1) + sigma * noise
    truth = -data.log_density(x, alpha, sigma)
    model = data.model(schedule, moments=True)
    fresh = benchmark.pedantic(fastlik.ode_nll, (model, x), {"divergence": "hutchinson"}, rounds=1)
    frozen = fastlik.ode_nll(model, x, divergence="hutchinson", probe_mode="frozen", probes=8)
    exact = fastlik.ode_nll(model, x[:8], divergence="exact")
    error = ((exact.nats - truth[:8]).abs() / 64).mean().item()
    # the variance of one probe is eight times that of the mean of eight
    ratio = (8 * frozen.stderr.square().mean() / fresh.stderr.square().mean()).item()
    evaluations = fresh.nfe.double().mean().item()
    benchmark.extra_info |= {"error": error, "evaluations": evaluations, "frozen / fresh variance": ratio}
    assert error < TARGET and evaluations <= 40 and ratio >= 4


def bench_digits_to_a_standard_error(benchmark):
    """Forward units to one standard error on a trained U-Net, against score_sde's procedure: RK45 at 1e-5, a
    frozen probe, the drift evaluated twice; repeats cost and average as evaluations do."""
    workload = workloads.unet()
    options = {"prior": "standard", "divergence": "hutchinson"}

    def ours() -> fastlik.NLL:
        return fastlik.ode_nll(workload.model, workload.x, **options)

    fresh = benchmark.pedantic(ours, rounds=1)
    frozen = fastlik.ode_nll(workload.model, workload.x, probe_mode="frozen", probes=8, **options)
    theirs = SCORE_SDE.likelihood(workload, counted=True)
    units = count(workload, ours).forward_units
    their_units = count(workload, lambda: theirs(SCORE_SDE.practice)).forward_units
    ratio = (8 * frozen.stderr.square().mean() / fresh.stderr.square().mean()).item()
    gain = their_units * ratio / units
    benchmark.extra_info |= {
        "evaluations": fresh.nfe.double().mean().item(),
        "forward units": units,
        "forward units of score_sde": their_units,
        "frozen / fresh variance": ratio,
        "gain at equal variance": gain,
    }
    assert ratio >= 4 and gain >= 20
