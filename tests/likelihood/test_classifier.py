"""``classify`` against Bayes' rule for Gaussian classes."""

import pytest
import torch

import fastlik
from fastlik.solvers.status import Status
from fastlik.testing import GaussianMixture

SCHEDULE = fastlik.VP()
SIZE, VARIANCE = 6, 0.2
CENTRES = torch.randn(4, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.8
PRIOR = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)


def of_class(net, x, t, y, spread=None):
    """The noise prediction of N(CENTRES[y], VARIANCE I); y holds numbers, or centres themselves."""
    centre = CENTRES[y] if y.dim() == 1 else y
    alpha, sigma = SCHEDULE.alpha(t)[:, None], SCHEDULE.sigma(t)[:, None]
    variance = VARIANCE if spread is None else spread[:, None]
    return sigma * (x - alpha * centre) / (alpha**2 * variance + sigma**2)


MODEL = fastlik.wrap(torch.nn.Identity(), SCHEDULE, "noise", call=of_class)
X = GaussianMixture(PRIOR, CENTRES, VARIANCE).sample(200)


def truth(x=X, prior=PRIOR):
    square = (x[:, None] - CENTRES).square().sum(2)
    return (prior.log() - 0.5 * square / VARIANCE).log_softmax(1)


def test_gaussian_classes_have_their_posterior():
    result = fastlik.classify(MODEL, X, range(4), prior=PRIOR, prune=False)
    error = result.log_posterior - truth()
    torch.testing.assert_close(result.log_posterior.exp().sum(1), torch.ones(200, dtype=torch.float64))
    assert abs(error.mean()) < 4 * error.std() / 200**0.5
    for likely in (truth() > -5, truth() <= -5):
        assert 0.8 < (error / result.stderr)[likely].square().mean().sqrt() < 1.25
    assert torch.equal(result.predicted, truth().argmax(1))
    assert (result.nfe == 4 * 256).all()


def test_pruning_spares_evaluations_and_changes_no_survivor():
    pruned, whole = (fastlik.classify(MODEL, X, range(4), prior=PRIOR, prune=p) for p in (True, False))
    assert pruned.nfe.double().mean() < 0.8 * 4 * 256
    assert set(pruned.draws.unique().tolist()) <= {32, 64, 128, 256}
    survived = pruned.draws == 256
    assert survived.any(1).all()
    difference = (pruned.log_posterior - whole.log_posterior).abs()
    assert difference[survived].max() < 2e-3
    # those left out are improbable, and known as well as their standard errors say
    assert (truth()[~survived] < -6).all()
    z = (pruned.log_posterior - truth())[~survived] / pruned.stderr[~survived]
    assert 0.6 < z.square().mean().sqrt() < 1.25


@pytest.mark.parametrize("draws", [4, 32, 64, 100, 128])
def test_few_draws_drop_no_class_that_may_win(draws):
    result = fastlik.classify(MODEL, X, range(4), prior=PRIOR, draws=draws)
    assert (result.draws.amax(1) == draws).all() and result.draws.min() >= min(draws, 32)
    assert (truth()[result.draws < draws] < -3).all()
    assert result.log_posterior.isfinite().all()


def test_common_draws_leave_little_noise():
    """The same classes from independent runs differ by far more than their paired error."""
    paired = fastlik.classify(MODEL, X, range(2), draws=64, prune=False)
    alone = [
        fastlik.bound_nll(MODEL, X, condition=dict(y=torch.full((200,), label)), draws=64, seed=label)
        for label in range(2)
    ]
    odds = alone[1].nats - alone[0].nats
    exact = (X[:, None] - CENTRES[:2]).square().sum(2).diff(dim=1)[:, 0] / (2 * VARIANCE)
    spread = paired.log_posterior[:, 0] - paired.log_posterior[:, 1] - exact
    assert (odds - exact).std() > 1.5 * spread.std()


def test_classes_may_be_tensors_dictionaries_or_shared_conditions():
    numbers = fastlik.classify(MODEL, X[:8], [0, 1], draws=32)
    centres = fastlik.classify(MODEL, X[:8], CENTRES[:2], draws=32)
    named = fastlik.classify(MODEL, X[:8], [dict(y=0, spread=VARIANCE), dict(y=1, spread=VARIANCE)], draws=32)
    spread = torch.full((8,), VARIANCE, dtype=torch.float64)
    shared = fastlik.classify(MODEL, X[:8], [0, 1], condition=dict(spread=spread), draws=32)
    other = fastlik.wrap(
        MODEL.net, SCHEDULE, "noise", call=lambda net, x, t, label: of_class(net, x, t, label)
    )
    keyed = fastlik.classify(other, X[:8], [0, 1], key="label", draws=32)
    for result in (centres, named, shared, keyed):
        torch.testing.assert_close(result.log_posterior, numbers.log_posterior, rtol=0, atol=1e-9)


def test_a_row_keeps_its_posterior():
    whole = fastlik.classify(MODEL, X[:12], range(4), draws=64)
    for chunk in (1, 50, 1000):
        part = fastlik.classify(MODEL, X[5:12], range(4), draws=64, rows=torch.arange(5, 12), chunk=chunk)
        for name in ("log_posterior", "stderr", "draws"):
            torch.testing.assert_close(getattr(part, name), getattr(whole, name)[5:], rtol=0, atol=1e-9)
    assert not torch.equal(
        whole.log_posterior, fastlik.classify(MODEL, X[:12], range(4), draws=64, seed=1).log_posterior
    )


def test_a_row_that_fails_is_flagged_alone():
    def poisoned(net, x, t, y):
        return torch.where((x[:, :1] > 50) & (y == 2)[:, None], torch.nan, of_class(net, x, t, y))

    x = X[:6].clone()
    x[4] += 1e3
    sick = fastlik.wrap(MODEL.net, SCHEDULE, "noise", call=poisoned)
    with pytest.warns(fastlik.ConvergenceWarning, match="1 of 6 rows have no posterior .*row 4"):
        result = fastlik.classify(sick, x, range(4), draws=64, prune=False)
    keep = torch.arange(6) != 4
    assert result.log_posterior[4].isnan().all() and torch.equal(result.status == Status.DONE, keep)
    healthy = fastlik.classify(MODEL, X[:6], range(4), draws=64, prune=False)
    torch.testing.assert_close(result.log_posterior[keep], healthy.log_posterior[keep], rtol=0, atol=1e-9)


def test_an_interruption_keeps_finished_rows():
    calls = []

    def interrupted(net, x, t, y):
        calls.append(len(x))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return of_class(net, x, t, y)

    slow = fastlik.wrap(MODEL.net, SCHEDULE, "noise", call=interrupted)
    with pytest.raises(fastlik.EvaluationInterrupted, match="4 of 8 rows") as caught:
        fastlik.classify(slow, X[:8], range(2), draws=16, chunk=32)
    assert len(caught.value.partial) == 4


def test_empty_batches_and_bad_options():
    assert fastlik.classify(MODEL, X[:0], range(4)).log_posterior.shape == (0, 4)
    assert (fastlik.classify(MODEL, X[:3], [1], draws=4).log_posterior == 0).all()
    for options, message in (
        (dict(classes=[]), "classes is empty"),
        (dict(prior=[0.5, 0.5]), "4 probabilities above 0"),
        (dict(prior=[1.0, 0.0, 0.0, 0.0]), "leave classes of probability 0 out"),
        (dict(draws=7), "multiple of 4"),
    ):
        with pytest.raises(ValueError, match=message):
            fastlik.classify(MODEL, X, **dict(classes=range(4)) | options)


def test_a_class_that_fails_everywhere_leaves_no_posterior():
    def poisoned(net, x, t, y):
        return torch.where((y == 2)[:, None], torch.nan, of_class(net, x, t, y))

    sick = fastlik.wrap(MODEL.net, SCHEDULE, "noise", call=poisoned)
    with pytest.warns(fastlik.ConvergenceWarning, match="3 of 3 rows"):
        result = fastlik.classify(sick, X[:3], range(4))
    assert result.log_posterior.isnan().all() and result.stderr.isnan().all()
