import numpy as np
import pytest
import torch

from fastlik.training.dataset import Dataset
from fastlik.training.random import batch_rows

CPU, SINGLE = torch.device("cpu"), torch.float32


def test_every_epoch_is_a_permutation_whatever_the_batch_size():
    for size in (3, 10, 25):
        stream = torch.cat([batch_rows(5, step, size, 10) for step in range(20)])
        for epoch in stream[: len(stream) // 10 * 10].reshape(-1, 10):
            assert sorted(epoch.tolist()) == list(range(10))
    assert torch.equal(batch_rows(5, 7, 3, 10), batch_rows(5, 7, 3, 10))
    assert not torch.equal(batch_rows(5, 0, 10, 10), batch_rows(6, 0, 10, 10))
    assert not torch.equal(batch_rows(5, 0, 10, 10), batch_rows(5, 1, 10, 10))


def test_levels_are_dequantised_within_their_bins():
    levels = torch.randint(17, (50, 1, 2, 2))
    dataset = Dataset(levels, bins=17, data_range=(0.0, 1.0))
    first, _ = dataset.batch(0, 0, 50, CPU, SINGLE)
    again, _ = dataset.batch(0, 0, 50, CPU, SINGLE)
    assert first.shape == (50, 1, 2, 2) and first.dtype == SINGLE
    assert not torch.equal(first, again)  # fresh noise
    assert torch.equal((first * 17).floor().long(), levels[batch_rows(0, 0, 50, 50)])
    assert dataset.rows.dtype == torch.uint8


def test_moments_are_those_of_the_dequantised_data():
    levels = torch.randint(5, (300, 2, 3))
    dataset = Dataset(levels.numpy(), bins=5, data_range=(-1, 1))
    mean, covariance = dataset.moments()
    centres = ((levels + 0.5) * 0.4 - 1).double()
    torch.testing.assert_close(mean, centres.mean(0))
    expected = torch.cov(centres.flatten(1).T, correction=0) + torch.eye(6).double() * 0.16 / 12
    torch.testing.assert_close(covariance, expected)


def test_wide_events_get_variances():
    data = torch.randn(5000, 1, 33, 32)
    mean, variance = Dataset(data).moments()
    assert variance.shape == (1, 33, 32)
    torch.testing.assert_close(mean, data.double().mean(0))
    torch.testing.assert_close(variance, data.double().var(0, correction=0))


def test_conditions_follow_their_rows():
    data = torch.arange(20.0)[:, None]
    dataset = Dataset(data, condition={"label": np.arange(20)})
    x0, condition = dataset.batch(1, 3, 7, CPU, SINGLE)
    assert torch.equal(x0[:, 0].long(), condition["label"])


def test_fingerprint_sees_every_change():
    data = torch.randn(6, 2)
    fingerprint = Dataset(data).describe()
    assert fingerprint == Dataset(data.clone()).describe()
    other = data.clone()
    other[3, 1] += 1e-6
    assert fingerprint != Dataset(other).describe()
    assert fingerprint != Dataset(data.double()).describe()
    assert fingerprint != Dataset(data, condition={"c": data}).describe()


@pytest.mark.parametrize(
    ("data", "options", "match"),
    [
        (torch.zeros(5), {}, r"shape \(N, \*event\)"),
        (torch.zeros(0, 2), {}, "N >= 1"),
        (torch.zeros(5, 2, dtype=torch.uint8), {}, "pass bins="),
        (torch.tensor([[0.0], [float("nan")], [1.0]]), {}, "NaN or infinity in row 1"),
        (torch.full((3, 2), 17), {"bins": 17}, "outside the 17 levels"),
        (torch.zeros(3, 2), {"data_range": (0, 1)}, "pass bins="),
        (torch.zeros(3, 2).int(), {"bins": 17, "dequantize": "none"}, "'uniform'"),
        (torch.zeros(3, 2), {"condition": {"c": torch.zeros(2)}}, "'c' has shape .2,.*3 rows"),
    ],
)
def test_bad_data_says_what_is_wrong(data, options, match):
    with pytest.raises(ValueError, match=match):
        Dataset(data, **options)


def test_no_arrays():
    with pytest.raises(TypeError, match="tensor or a numpy array, got list"):
        Dataset([[1.0]])
    with pytest.raises(TypeError, match="not of real numbers"):
        Dataset(np.array([["a"]]))
