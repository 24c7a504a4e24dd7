"""A row's number depends on the row and its id: not on chunk, order, split or neighbours."""

import pytest
import torch
from torch import nn

import fastlik
from fastlik.testing import GaussianMixture


@pytest.fixture(scope="module")
def setting():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(21, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 20))
    model = fastlik.wrap(
        net.double(),
        fastlik.VP(),
        "v",
        time="log_snr",
        time_scale=0.1,
        call=lambda net, x, t: net(torch.cat((x, t[:, None]), 1)),
    )
    x = GaussianMixture.random(3, 20).sample(24)
    return model, x, dict(divergence="hutchinson", probes=2)


def test_chunks_and_order_change_nothing(setting):
    model, x, options = setting
    whole = fastlik.ode_nll(model, x, **options)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    for chunk in (1, 7, 24):
        mixed = fastlik.ode_nll(model, x[order], rows=order, chunk=chunk, **options)
        torch.testing.assert_close(mixed.nats, whole.nats[order], rtol=0, atol=1e-9)
        assert torch.equal(mixed.nfe, whole.nfe[order])
        torch.testing.assert_close(mixed.stderr, whole.stderr[order], rtol=0, atol=1e-9)


def test_float32_too(setting):
    """Up to the rounding of the network's products, which differ from batch size to batch size: a few 1e-6
    nats for exact traces and frozen probes.  Fresh probes change with the steps, whose lengths feel that
    rounding: below a thousandth of the probes' own noise."""
    model, x, _ = setting
    single = model.float()
    for options, limit in (
        (dict(divergence="exact"), 2e-5),
        (dict(divergence="hutchinson", probes=2, probe_mode="frozen"), 1e-4),
        (dict(divergence="hutchinson", probes=2), 1e-3),
    ):
        whole = fastlik.ode_nll(single, x.float(), **options)
        for chunk in (1, 7):
            split = fastlik.ode_nll(single, x.float(), chunk=chunk, **options)
            torch.testing.assert_close(split.nats, whole.nats, rtol=0, atol=limit)
    model.double()


def test_seed_and_row_ids_matter(setting):
    model, x, options = setting
    first = fastlik.ode_nll(model, x, **options)
    assert torch.equal(first.nats, fastlik.ode_nll(model, x, **options).nats)
    assert not torch.equal(first.nats, fastlik.ode_nll(model, x, seed=1, **options).nats)
    shifted = fastlik.ode_nll(model, x, rows=torch.arange(24) + 24, **options)
    assert not torch.equal(first.nats, shifted.nats)


def test_a_nan_row_does_not_touch_its_neighbours(setting):
    model, x, options = setting

    def poisoned(net, x, time):
        out = net(torch.cat((x, time[:, None]), 1))
        return torch.where((x[:, :1] > 10) & (time[:, None] < 0), torch.nan, out)

    pair = x[[5, 6]]
    pair[0, 0] += 100
    sick = fastlik.wrap(model.net, model.schedule, "v", time="log_snr", time_scale=0.1, call=poisoned)
    with pytest.warns(fastlik.ConvergenceWarning, match="NaN or infinite at t = "):
        result = fastlik.ode_nll(sick, pair, rows=torch.tensor([5, 6]), **options)
    assert result.nats[0].isnan() and not result.converged[0] and result.converged[1]
    healthy = fastlik.ode_nll(model, x[[6]], rows=torch.tensor([6]), **options)
    torch.testing.assert_close(result.nats[1:], healthy.nats, rtol=0, atol=1e-9)
    assert 0 < result.stopped_at[0] < 1


def test_conditions_are_split_with_the_rows():
    """A condition that shifts the density: each row sees its own."""
    data = GaussianMixture.random(2, 3)
    base = data.model(fastlik.VP())

    def call(net, x, t, shift, scale):
        return net(x - fastlik.VP().alpha(t)[:, None] * shift * scale, t)

    model = fastlik.wrap(base.net, fastlik.VP(), "noise", call=call)
    shift = torch.arange(6.0).double()[:, None] * torch.ones(3)
    x = data.sample(6)
    condition = dict(shift=shift, scale=0.5)
    whole = fastlik.ode_nll(model, x + 0.5 * shift, condition=condition, tolerance=1e-6)
    parts = fastlik.ode_nll(model, x + 0.5 * shift, condition=condition, chunk=4, tolerance=1e-6)
    torch.testing.assert_close(parts.nats, whole.nats, rtol=0, atol=1e-8)
    plain = fastlik.ode_nll(base, x, tolerance=1e-6)
    # not exactly: the prior stays at zero while x(t_max) is shifted by alpha(1) = 0.0066 of it
    torch.testing.assert_close(whole.nats, plain.nats, rtol=0, atol=0.05)


def test_image_shapes_and_layouts():
    data = GaussianMixture.random(2, 12)
    model, x = data.model(fastlik.VP()), data.sample(5)
    flat = fastlik.ode_nll(model, x, tolerance=1e-4)
    image = x.reshape(5, 3, 2, 2)
    for layout in (image, image.to(memory_format=torch.channels_last)):
        result = fastlik.ode_nll(model, layout, tolerance=1e-4)
        torch.testing.assert_close(result.nats, flat.nats, rtol=0, atol=1e-9)
        assert result.latent.shape == (5, 3, 2, 2)


def test_interrupted_evaluations_keep_finished_chunks(setting):
    model, x, options = setting
    options = options | {"mode": "jvp"}  # calls the network from Python
    expected = fastlik.ode_nll(model, x, **options)
    seen = []

    def call(net, x, t):
        seen.append(len(x))
        if len(seen) > 80:
            raise KeyboardInterrupt
        return model.call(net, x, t)

    stubborn = fastlik.wrap(model.net, model.schedule, "v", time="log_snr", time_scale=0.1, call=call)
    with pytest.raises(fastlik.EvaluationInterrupted, match="of 24 rows") as caught:
        fastlik.ode_nll(stubborn, x, chunk=1, **options)
    partial = caught.value.partial
    assert 0 < len(partial) < 24
    torch.testing.assert_close(partial.nats, expected.nats[: len(partial)], rtol=0, atol=1e-9)


def test_memory_running_out_halves_the_chunk(setting):
    model, x, options = setting
    options = options | {"mode": "jvp"}  # calls the network from Python
    sizes = []

    def call(net, x, t):
        sizes.append(len(x))
        if len(x) > 10:
            raise torch.OutOfMemoryError("too much")
        return model.call(net, x, t)

    small = fastlik.wrap(model.net, model.schedule, "v", time="log_snr", time_scale=0.1, call=call)
    result = fastlik.ode_nll(small, x, **options)
    assert max(sizes) > 10 and result.converged.all()
    with pytest.raises(torch.OutOfMemoryError):
        fastlik.ode_nll(small, x, chunk=24, **options)


def test_training_mode_is_restored_and_dropout_is_off():
    net = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    model = fastlik.wrap(net, fastlik.VP(), "v", call=lambda net, x, t: net(x))
    model.train()
    net[0].eval()
    x = torch.randn(3, 2)
    first, second = fastlik.ode_nll(model, x), fastlik.ode_nll(model, x)
    assert torch.equal(first.nats, second.nats)
    assert model.training and net.training and net[1].training and not net[0].training
