"""Counter-based random numbers: known answers, independence of the batch, moments."""

import pytest
import torch

from fastlik.derivatives.probes import Stream, gaussian, philox, probe, rademacher, uniform


@pytest.mark.parametrize(
    ("word", "key", "answer"),
    [  # the known-answer tests that come with Salmon et al. 2011
        (0, 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (0xFFFFFFFF, 0xFFFFFFFF, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ],
)
def test_philox_known_answers(word, key, answer):
    counter = (torch.tensor([word]),) * 4
    assert tuple(int(w) for w in philox(counter, (key, key))) == answer


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_a_row_is_the_same_in_any_batch(kind):
    rows = torch.tensor([7, 0, 123456789012, 3])
    like = torch.empty(4, 3, 5)
    whole = probe(kind, 5, rows, 1, 2, like)
    order = torch.tensor([2, 0])
    part = probe(kind, 5, rows[order], 1, torch.tensor([2, 2]), like[order])
    assert torch.equal(whole[order], part)
    longer = probe(kind, 5, rows, 1, 2, torch.empty(4, 40))
    assert torch.equal(whole.flatten(1), longer[:, :15])


def test_every_key_matters():
    rows, like = torch.arange(2), torch.empty(2, 64)
    base = dict(seed=0, draw=0, node=0)
    first = probe("rademacher", rows=rows, like=like, **base)
    for change in (dict(seed=1), dict(seed=2**40), dict(draw=1), dict(node=1)):
        assert not torch.equal(first, probe("rademacher", rows=rows, like=like, **(base | change)))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(
        uniform(0, Stream.PROBE, rows, 0, 0, 8), uniform(0, Stream.DEQUANTISE, rows, 0, 0, 8)
    )


def test_moments():
    """Means within five standard errors at a fixed seed."""
    rows, size, n = torch.arange(500), 201, 500 * 201
    signs = rademacher(3, Stream.PROBE, rows, 0, 0, size)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(signs.mean()) < 5 / n**0.5
    normal = gaussian(3, Stream.PROBE, rows, 0, 0, size)
    assert abs(normal.mean()) < 5 / n**0.5
    assert abs(normal.square().mean() - 1) < 5 * (2 / n) ** 0.5
    assert abs(normal.pow(4).mean() - 3) < 5 * (96 / n) ** 0.5
    u = uniform(3, Stream.PROBE, rows, 0, 0, size)
    assert 0 < u.min() and u.max() < 1
    assert abs(u.mean() - 0.5) < 5 * (1 / 12 / n) ** 0.5
    # neighbours in every direction are uncorrelated
    for left, right in ((signs[1:], signs[:-1]), (signs[:, 1:], signs[:, :-1])):
        assert abs((left * right).mean()) < 5 / n**0.5


def test_unknown_probe():
    with pytest.raises(ValueError, match="'rademacher', 'gaussian'"):
        probe("cauchy", 0, torch.arange(1), 0, 0, torch.empty(1, 2))
