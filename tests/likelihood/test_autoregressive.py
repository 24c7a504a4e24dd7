"""``ar_nll`` against the joint density of a Gaussian autoregression."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

import fastlik

SCHEDULE = fastlik.VP()
LENGTH, SIZE, DECAY, VARIANCE = 5, 2, 0.8, 0.3


def of_token(net, x, t, context):
    """The noise prediction of N(context, VARIANCE I)."""
    alpha, sigma = SCHEDULE.alpha(t)[:, None], SCHEDULE.sigma(t)[:, None]
    return sigma * (x - alpha * context) / (alpha**2 * VARIANCE + sigma**2)


MODEL = fastlik.wrap(torch.nn.Identity(), SCHEDULE, "noise", call=of_token, moments=(0.0, 0.6))


def sequences(count):
    """x_i = DECAY x_{i-1} + noise, the means given the past, and the joint log-density."""
    generator = torch.Generator().manual_seed(0)
    noise = math.sqrt(VARIANCE) * torch.randn(count, LENGTH, SIZE, generator=generator, dtype=torch.float64)
    # x = (I - DECAY shift)^-1 noise
    mix = torch.linalg.inv(
        torch.eye(LENGTH).double() - DECAY * torch.diag(torch.ones(LENGTH - 1).double(), -1)
    )
    tokens = torch.einsum("ij,bjd->bid", mix, noise)
    means = torch.cat((torch.zeros(count, 1, SIZE).double(), DECAY * tokens[:, :-1]), 1)
    joint = MultivariateNormal(torch.zeros(LENGTH).double(), VARIANCE * mix @ mix.T)
    return tokens, means, joint.log_prob(tokens.mT).sum(1)


TOKENS, MEANS, EXACT = sequences(100)


@pytest.mark.parametrize("form", ["anchored", "difference", "ism"])
def test_the_sum_over_tokens_is_the_joint_density(form):
    result = fastlik.ar_nll(MODEL, TOKENS, MEANS, form=form, draws=128)
    error = result.nats + EXACT
    assert abs(error.mean()) < 4 * error.std() / 10
    assert 0.8 < (error / result.stderr).square().mean().sqrt() < 1.25
    assert result.latent.shape == TOKENS.shape and (result.nfe == LENGTH * 128).all()
    assert result.dimensions == LENGTH * SIZE and result.protocol["tokens"] == LENGTH
    torch.testing.assert_close(result.bits_per_dim, result.nats / (LENGTH * SIZE * math.log(2)))


def test_a_sequence_keeps_its_number():
    whole = fastlik.ar_nll(MODEL, TOKENS[:6], MEANS[:6], draws=16)
    part = fastlik.ar_nll(MODEL, TOKENS[2:6], MEANS[2:6], rows=torch.arange(2, 6), draws=16, chunk=10)
    torch.testing.assert_close(part.nats, whole.nats[2:], rtol=0, atol=1e-9)


def test_contexts_by_name_and_shared_conditions():
    def call(net, x, t, mean, scale):
        return of_token(net, x, t, mean * scale)

    model = fastlik.wrap(MODEL.net, SCHEDULE, "noise", call=call, moments=(0.0, 0.6))
    scale = torch.arange(1.0, 7.0).double()[:, None]
    plain = fastlik.ar_nll(MODEL, TOKENS[:6], MEANS[:6], draws=16)
    contexts = dict(mean=MEANS[:6] / scale[..., None])
    named = fastlik.ar_nll(model, TOKENS[:6], contexts, condition=dict(scale=scale), draws=16)
    torch.testing.assert_close(named.nats, plain.nats, rtol=0, atol=1e-9)


def test_a_sequence_with_a_token_that_fails_is_flagged_alone():
    tokens = TOKENS[:4].clone()
    tokens[2, 3] += 1e3

    def poisoned(net, x, t, context):
        return torch.where(x[:, :1] > 100, torch.nan, of_token(net, x, t, context))

    sick = fastlik.wrap(MODEL.net, SCHEDULE, "noise", call=poisoned, moments=(0.0, 0.6))
    with pytest.warns(fastlik.ConvergenceWarning, match="1 of 4 rows have no estimate .*row 2") as caught:
        result = fastlik.ar_nll(sick, tokens, MEANS[:4], draws=16)
    assert len(caught) == 1
    assert result.converged.tolist() == [True, True, False, True]
    assert result.nats.isnan().tolist() == [False, False, True, False] and result.stopped_at[2] < 1


def test_an_interruption_keeps_whole_sequences():
    calls = []

    def interrupted(net, x, t, context):
        calls.append(len(x))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return of_token(net, x, t, context)

    slow = fastlik.wrap(MODEL.net, SCHEDULE, "noise", call=interrupted, moments=(0.0, 0.6))
    with pytest.raises(fastlik.EvaluationInterrupted, match="2 of 6 rows") as caught:
        # three tokens a chunk
        fastlik.ar_nll(slow, TOKENS[:6], MEANS[:6], draws=16, chunk=48)
    whole = fastlik.ar_nll(MODEL, TOKENS[:2], MEANS[:2], draws=16)
    torch.testing.assert_close(caught.value.partial.nats, whole.nats, rtol=0, atol=1e-9)


def test_empty_batches_and_bad_shapes():
    assert fastlik.ar_nll(MODEL, TOKENS[:0], MEANS[:0]).latent.shape == (0, LENGTH, SIZE)
    for tokens, contexts, message in (
        (TOKENS[:, :0], MEANS[:, :0], "n tokens a sequence"),
        (TOKENS[0], MEANS[0], r"\(B, n, \*event\)"),
        (TOKENS, MEANS[:, :2], r"'context' must be a tensor \(100, 5, ...\)"),
        (TOKENS, dict(z=3.0), "'z' must be"),
    ):
        with pytest.raises(ValueError, match=message):
            fastlik.ar_nll(MODEL, tokens, contexts)
