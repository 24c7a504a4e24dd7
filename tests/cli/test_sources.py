"""Data by name."""

import math

import numpy as np
import pytest
import torch

from fastlik.cli import sources


@pytest.mark.parametrize("name", sources.TOYS)
def test_splits_differ_and_repeat(name):
    train, test = sources.load(name, "train"), sources.load(name, "test")
    assert len(train) == 50_000 and len(test) == 10_000
    assert not torch.equal(train[:100], test[:100])
    assert torch.equal(train, sources.load(name))


def test_digits():
    pytest.importorskip("sklearn")
    assert sources.load("digits", "test").shape == (297, 1, 8, 8)
    assert int(sources.load("digits").max()) == sources.DIGITS_BINS - 1


def test_files(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, a=np.zeros((2, 1)), b=np.ones((3, 1)))
    assert sources.load(f"{path}:b").shape == (3, 1)
    with pytest.raises(ValueError, match="only built-in data have splits"):
        sources.load(str(path), "test")


@pytest.mark.parametrize("name, half", [("checkerboard", 4.0), ("ring", 4.0)])
def test_true_densities_are_those_of_the_samples(name, half):
    """They integrate to one, and have the entropy that their samples show."""
    log_density = sources.log_density(name)
    middle = (torch.arange(400, dtype=torch.float64) + 0.5) / 400 * 2 * half - half
    grid = torch.cartesian_prod(middle, middle)
    p = log_density(grid).exp()
    area = (2 * half / 400) ** 2
    assert abs(p.sum().item() * area - 1) < 1e-6
    entropy = torch.special.entr(p).sum().item() * area
    values = -log_density(sources.load(name, "test").double())
    assert abs(values.mean().item() - entropy) < 4 * values.std().item() / math.sqrt(len(values)) + 1e-6


def test_data_without_a_closed_form():
    assert sources.log_density("swissroll") is None
    assert sources.log_density(None) is None
