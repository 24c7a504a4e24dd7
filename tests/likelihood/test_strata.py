"""Noise levels of path integrals: uniform in log-SNR, and DDPM's."""

import pytest
import torch

import fastlik
from fastlik.likelihood.strata import RiemannSum, UniformStrata


def test_every_stratum_has_its_pairs_and_the_first_unit_is_at_the_start():
    strata = UniformStrata(-13.0, 5.0, 19)
    rows = torch.arange(200).repeat_interleave(38)
    number = torch.arange(38).repeat(200)
    gamma = strata.gamma(0, rows, number)
    # one unit of gamma a stratum
    assert (gamma[number < 2] == -13.0).all()
    inside = number >= 2
    assert torch.equal((gamma[inside] + 14.0).floor().long(), number[inside] // 2)
    fraction = (gamma[inside] + 14.0) % 1
    assert abs(fraction.mean() - 0.5) < 5 * (1 / 12 / 7200) ** 0.5
    assert float(strata.weights(gamma.device).sum()) == pytest.approx(19.0)
    assert torch.equal(strata.gamma(0, rows[:7], number[:7]), gamma[:7])


def test_the_known_gap_of_ddpms_sum():
    """0.465 nats per dimension for the linear table of 1000 steps, less for finer ones."""
    table = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    at = -fastlik.DiscreteVP(table).log_snr(torch.arange(1000.0, dtype=torch.float64))
    strata = RiemannSum(at, 2)
    assert strata.gap == pytest.approx(0.465, abs=1e-3)
    # (1 - alpha_{i+1}) / (1 - alphas_cumprod_i), twice the paper's weight of the squared error
    weights = (1 - table[1:] / table[:-1]) / (1 - table[:-1])
    torch.testing.assert_close(strata.weights(at.device), weights)
    fine = RiemannSum(torch.linspace(float(at[0]), float(at[-1]), 1000, dtype=torch.float64), 2)
    assert 0 < fine.gap < 0.05
