import builtins
import math

import numpy as np
import pytest
import torch

from fastlik.data import checkerboard, digits, load_array, mixture_1d, ring, swissroll

TOYS = {checkerboard: 2, mixture_1d: 1, ring: 2, swissroll: 2}


@pytest.mark.parametrize("toy", TOYS, ids=lambda f: f.__name__)
def test_toys_are_reproducible_and_leave_the_generator_alone(toy):
    before = torch.get_rng_state()
    samples = toy(100, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    assert samples.shape == (100, TOYS[toy])
    assert samples.dtype == torch.float32
    assert torch.equal(samples, toy(100, seed=3))
    assert not torch.equal(samples, toy(100, seed=4))


def test_checkerboard_is_uniform_on_its_squares():
    samples = checkerboard(40000)
    assert samples.abs().max() <= 4
    cells = ((samples + 4) / 2).floor().long().clamp(0, 3)
    assert bool((cells.sum(1) % 2 == 0).all())
    counts = torch.bincount(cells[:, 0] * 4 + cells[:, 1], minlength=16)
    counts = counts[counts > 0].double()
    assert len(counts) == 8
    # chi-squared with 7 degrees of freedom: above 24.3 with probability 1e-3
    assert float(((counts - 5000) ** 2 / 5000).sum()) < 24.3


def test_mixture_has_the_published_entropy():
    samples = mixture_1d(200000).double()
    means = torch.tensor([-2.0, -6.0, 4.0], dtype=torch.float64) / 7
    variances = torch.tensor([0.1, 0.1, 1.0], dtype=torch.float64) / 49
    weights = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)
    parts = -((samples - means) ** 2) / (2 * variances) - (2 * math.pi * variances).log() / 2
    nll = -torch.logsumexp(parts + weights.log(), 1)
    assert abs(float(nll.mean()) + 0.128854) < 4 * float(nll.std()) / math.sqrt(len(nll))


def test_ring_and_swissroll_lie_where_they_should():
    modes = ring(8000)
    angle = torch.arange(8) * math.pi / 4
    centres = 2 * torch.stack((angle.cos(), angle.sin()), 1)
    nearest, which = torch.cdist(modes, centres).min(1)
    assert torch.bincount(which, minlength=8).min() > 850
    assert float(nearest.square().mean()) == pytest.approx(2 * 0.04, rel=0.06)
    radius = swissroll(4000).norm(dim=1)
    assert 0.4 < radius.min() < 0.7 and 1.8 < radius.max() < 2.1


def test_digits_split_is_fixed_and_complete():
    train, test = digits()
    assert train.shape == (1500, 1, 8, 8) and test.shape == (297, 1, 8, 8)
    assert train.dtype == test.dtype == torch.int64
    assert train.min() == 0 and train.max() == 16
    again = digits()
    assert torch.equal(train, again[0]) and torch.equal(test, again[1])
    both = torch.cat((train, test)).flatten(1)
    from sklearn.datasets import load_digits

    images = torch.as_tensor(load_digits().data).long()
    assert sorted(map(tuple, both.tolist())) == sorted(map(tuple, images.tolist()))


def test_digits_without_scikit_learn_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install fastlik\[data\]"):
        digits()


def test_arrays_come_back_from_files(tmp_path):
    array = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    levels = np.arange(6, dtype=np.uint16).reshape(2, 3)
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "one.npz", array)
    np.savez(tmp_path / "two.npz", x=array, y=levels)
    np.savetxt(tmp_path / "a.csv", array, delimiter=",", header="a,b,c", comments="")
    np.savetxt(tmp_path / "bare.csv", array, delimiter=",")
    expected = torch.as_tensor(array)
    for name in ("a.npy", "one.npz", "two.npz:x"):
        assert torch.equal(load_array(tmp_path / name), expected)
    assert torch.equal(load_array(f"{tmp_path}/two.npz:y"), torch.arange(6).reshape(2, 3))
    for name in ("a.csv", "bare.csv"):
        torch.testing.assert_close(load_array(tmp_path / name), expected.double())
    np.save(tmp_path / "big.npy", array.astype(">f4"))
    assert torch.equal(load_array(tmp_path / "big.npy"), expected)


def test_bad_files_say_what_is_wrong(tmp_path):
    def refused(name, content, match, error=ValueError):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(error, match=match):
            load_array(tmp_path / name)

    refused("none.npy", None, "there is no file", FileNotFoundError)
    refused("a.txt", b"1", ".npy, .npz or .csv")
    refused("cut.npy", b"\x93NUMPY\x01\x00", "cannot be read as a numpy file")
    refused("cut.npz", b"PK\x03\x04 and then nothing", "cannot be read as a numpy file")
    refused("noise.npy", b"not numpy at all", "numpy file|pickled")
    refused("ragged.csv", b"1,2\n3,4\n5\n", "line 3: 1 cells where the first row has 2")
    refused("words.csv", b"a,b\n1,2\n3,x\n", "line 3: 'x' is not a number")
    refused("empty.csv", b"a,b\n", "holds no numbers")
    np.save(tmp_path / "objects.npy", np.array([{}, 1], dtype=object), allow_pickle=True)
    refused("objects.npy", None, "never loaded")
    np.save(tmp_path / "text.npy", np.array(["a"]))
    refused("text.npy", None, "not real numbers")
    np.savez(tmp_path / "two.npz", x=np.ones(1), y=np.ones(1))
    refused("two.npz", None, r"several arrays; name one as .*two.npz:KEY.*\['x', 'y'\]")
    with pytest.raises(ValueError, match="no array 'z'"):
        load_array(f"{tmp_path}/two.npz:z")
