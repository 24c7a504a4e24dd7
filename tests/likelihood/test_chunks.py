"""Rows evaluated some at a time: what runs out of memory is tried in smaller chunks."""

import pytest
import torch

import fastlik

X = torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(0))


def model_of(most):
    """A network of images that takes at most so many at once."""

    def call(net, x, t):
        if len(x) > most:
            raise torch.OutOfMemoryError("too much")
        return 0.1 * x

    return fastlik.wrap(torch.nn.Identity(), fastlik.VP(), "noise", call=call)


def test_chunks_are_halved_until_they_fit():
    whole = fastlik.bound_nll(model_of(10**6), X, draws=64)
    assert whole.latent.shape == X.shape
    # fewer than a row's draws as well
    for most in (150, 20, 4):
        split = fastlik.bound_nll(model_of(most), X, draws=64)
        torch.testing.assert_close(split.nats, whole.nats, rtol=0, atol=1e-5)
    with pytest.raises(torch.OutOfMemoryError):
        fastlik.bound_nll(model_of(3), X, draws=64)
    with pytest.raises(torch.OutOfMemoryError):
        fastlik.bound_nll(model_of(20), X, draws=64, chunk=64)
