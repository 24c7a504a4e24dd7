"""Bounds, formulas and classifiers on an accelerator: the CPU's numbers."""

import pytest
import torch

import fastlik
from tests.simulated.accelerator import Simulated, module_to_device, to_device
from tests.simulated.test_likelihood import LABELS, SCHEDULES, X, mlp

MOMENTS = {
    "none": None,
    "variances": (X.mean(0), X.var(0)),
    "covariance": (X.mean(0), torch.eye(5, dtype=torch.float64) + 0.1),
}


def both(schedule, moments):
    """The same model for the CPU and for the device, and its conditions."""
    host, device = (fastlik.wrap(mlp(), schedule, "noise", moments=moments).eval() for _ in range(2))
    return (host, LABELS, X), (module_to_device(device), to_device(LABELS), to_device(X))


def agree(host, device, names):
    for name in names:
        value = getattr(device, name)
        assert isinstance(value, Simulated), name
        torch.testing.assert_close(value.inner, getattr(host, name), rtol=0, atol=1e-8)


@pytest.mark.parametrize("moments", MOMENTS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_bounds_and_formulas(schedule, moments):
    names = ("nats", "stderr", "discretisation", "latent", "nfe", "status", "stopped_at")
    for estimate, options in (
        (fastlik.bound_nll, {}),
        (fastlik.bound_nll, dict(form="ism", divergence="exact")),
        (fastlik.bound_nll, dict(form="ism", divergence="hutchinson", prior="standard")),
        (fastlik.formula_nll, dict(form="difference")),
        (fastlik.formula_nll, dict(form="ddpm", steps=5)),
    ):
        host, device = (
            estimate(model, x, draws=8, condition=dict(condition=labels), **options)
            for model, labels, x in both(SCHEDULES[schedule], MOMENTS[moments])
        )
        agree(host, device, names)


def test_levels():
    levels = (X * 2).round().clamp(0, 4).long()
    results = [
        fastlik.bound_nll(
            model, each, draws=8, condition=dict(condition=labels), dequantize="uniform", bins=5
        )
        for (model, labels, _), each in zip(
            both(fastlik.VP(), MOMENTS["variances"]), (levels, to_device(levels)), strict=True
        )
    ]
    agree(*results, ("nats", "stderr", "latent"))


def test_classifier():
    for draws in (4, 256):
        host, device = (
            fastlik.classify(model, x, LABELS[:3], key="condition", draws=draws, prior=[0.5, 0.3, 0.2])
            for model, _, x in both(fastlik.VP(), None)
        )
        agree(host, device, ("log_posterior", "stderr", "draws", "status"))


@pytest.mark.parametrize("moments", MOMENTS)
def test_penalty(moments):
    """Its value alone: no gradients run on the simulated device, and its draws are torch's own."""
    _, (model, labels, x) = both(fastlik.VP(), MOMENTS[moments])
    for options in ({}, dict(weights="uniform", draws=2)):
        with torch.no_grad():
            loss = fastlik.density_penalty(model, x, condition=dict(condition=labels), **options)
        assert loss.inner.isfinite()
