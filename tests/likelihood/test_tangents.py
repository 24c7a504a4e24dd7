"""Values and derivatives of recognised MLPs in C++: what uses them gives what jets give."""

import logging
from unittest import mock

import pytest
import torch
from torch import nn

import fastlik
from fastlik.derivatives.expansion import expand
from fastlik.likelihood import ode_score as scores
from fastlik.likelihood.tangents import native_expansion, native_tangents
from fastlik.objectives import choose_forms, draw, draw_probes, high_order_errors
from fastlik.objectives.high_order import THIRD_FORMS
from fastlik.training.objective import Objective

PREDICTIONS = ("noise", "score", "x0", "v", "velocity", "edm")


def model_of(predicts="noise", dim=2, dtype=torch.float64, **options):
    torch.manual_seed(0)
    net = fastlik.nn.MLP(dim, width=24, depth=3, **options).to(dtype)
    nn.init.normal_(net.out.weight, std=0.1)
    return fastlik.wrap(net, fastlik.VP(), predicts, time="log_snr", time_scale=-1 / 8)


def batch(rows=9, dim=2, directions=3, dtype=torch.float64, **conditions):
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    t = 0.05 + 0.9 * torch.rand(rows, generator=generator, dtype=torch.float64)
    given = {name: draw(rows, width) for name, width in conditions.items()}
    return draw(rows, dim), t, draw(directions, rows, dim), given


def same(actual, expected, dtype=torch.float64):
    tolerance = 1e-10 if dtype == torch.float64 else 2e-5
    for a, b in zip(actual, expected, strict=True):
        scale = max(1.0, float(b.detach().abs().max())) if b.numel() else 1.0
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_tangents_are_those_of_the_model(predicts):
    model = model_of(predicts, condition_dim=2)
    x, t, directions, given = batch(condition=2)
    actual = native_tangents(model, x, t, directions, given)
    same(actual, fastlik.jvp(lambda x: model(x, t, **given), x, directions))


def orders(directions):
    """The options of ``expand``, of which the last takes one gradient for each direction."""
    mixing, cotangents = directions[0].cos(), directions.sin()
    pulled = {"cotangents": cotangents}
    return {}, {"second": True}, {"collapse": True}, {"mixing": mixing}, pulled | {"joint": True}, pulled


@pytest.mark.parametrize("order", range(6))
@pytest.mark.parametrize("predicts", ["noise", "edm"])
def test_expansions_are_those_of_the_model(predicts, order):
    model = model_of(predicts, condition_dim=2)
    for rows in (9, 0):
        x, t, directions, given = batch(rows, condition=2)
        options = orders(directions)[order]
        ways = (
            native_expansion(model, x, t, directions, given, **options),
            expand(lambda x, t=t, given=given: model(x, t, **given), x, directions, **options),
        )
        flat = [[each for each in way if each is not None] for way in ways]
        assert [each is None for each in ways[0]] == [each is None for each in ways[1]]
        assert [each.shape for each in flat[0]] == [each.shape for each in flat[1]]
        scalars = [sum((each * each.cos()).sum() for each in way) for way in flat]
        same(*flat)
        parameters = tuple(model.parameters())
        same(*(torch.autograd.grad(scalar, parameters, materialize_grads=True) for scalar in scalars))


def test_expansions_of_more_lines_than_go_together():
    model, (x, t, directions, _) = model_of(), batch(directions=47)
    taken = [native_expansion(model, x, t, directions, {}, **more) is not None for more in orders(directions)]
    assert taken == [True, False, False, False, False, True]
    few = directions[:23]
    assert all(native_expansion(model, x, t, few, {}, **more) is not None for more in orders(few))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("predicts", PREDICTIONS)
@pytest.mark.parametrize(
    ("second", "third"),
    [("full", None), ("product+quadratic", None), *(("full", form) for form in THIRD_FORMS)],
)
def test_gradients_of_high_order_losses(second, third, predicts, dtype):
    model = model_of(predicts, dtype=dtype)
    x0, t, noise, _ = batch(directions=1, dtype=dtype)
    forms = choose_forms(2 if third is None else 3, second, third or "auto", 2, 2)
    torch.manual_seed(0)
    draws = {"probes": draw_probes(x0, 2), "mixing": draw_probes(x0, 1)[0]}

    def gradients(backend, watch):
        with mock.patch("fastlik.objectives.high_order.expand", watch):
            found = high_order_errors(model, x0, t, noise[0], forms=forms, backend=backend, **draws)
        total = sum(error.mean() for error in found if error is not None)
        return torch.autograd.grad(total, tuple(model.parameters()))

    same(gradients("native", None), gradients("jets", expand), dtype)


@pytest.mark.parametrize(("order", "third"), [(2, "auto"), (3, "auto"), (3, "gradient")])
def test_the_objective_of_a_run_follows_its_parameters(order, third, monkeypatch):
    """A few steps of training with and without the kernels."""
    ways = []
    for native in (True, False):
        with monkeypatch.context() as patch:
            if not native:
                nothing = mock.Mock(return_value=None)
                patch.setattr("fastlik.objectives.high_order.native_expansion", nothing)
            model = model_of(dtype=torch.float64).train()
            forms = choose_forms(order, "full", third, 2, 1)
            objective = Objective(model, forms, (0.5, 0.1))
            x0, _, _, _ = batch(rows=64)
            optimiser = torch.optim.Adam(model.parameters(), 1e-2)
            torch.manual_seed(3)
            losses = []
            for _ in range(5):
                draws = draw(model, x0, "likelihood", "importance", forms, 1)
                optimiser.zero_grad()
                loss = objective(x0, draws, {})[0] / len(x0)
                loss.backward()
                optimiser.step()
                losses.append(loss.detach())
            ways.append(torch.stack(losses))
    assert nothing.called
    torch.testing.assert_close(ways[0], ways[1], rtol=1e-8, atol=0)


@pytest.mark.parametrize("options", [{}, {"divergence": "hutchinson", "probes": 2}])
def test_scores_of_the_ode(options, monkeypatch):
    model = model_of("edm", condition_dim=2).eval()
    x, _, _, given = batch(rows=12, condition=2)
    calls = []
    monkeypatch.setattr(
        scores, "native_tangents", lambda *a, **k: calls.append(1) or native_tangents(*a, **k)
    )
    fast = fastlik.ode_score(model, x, condition=given, tolerance=1e-3, **options)
    assert calls and all(parameter.grad is None for parameter in model.parameters())
    monkeypatch.setattr(scores, "native_tangents", lambda *arguments, **options: None)
    slow = fastlik.ode_score(model, x, condition=given, tolerance=1e-3, **options)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-6)


def test_changes_are_followed():
    model = model_of()
    x, t, directions, _ = batch()

    def check():
        expected = fastlik.jvp(lambda x: model(x, t), x, directions)
        for parameters in (True, False):
            actual = native_tangents(model, x, t, directions, {}, parameters=parameters)
            same(actual, [value.detach() for value in expected])

    check()
    model.net.out.weight.data.mul_(2)
    check()
    model.net.activation = nn.Tanh()
    check()
    model.net.embedding.frequencies *= 1.1
    check()
    model.net.out.weight.data = model.net.out.weight.data + 0.1
    check()
    model.net.embedding.frequencies = model.net.embedding.frequencies + 0.1
    check()
    model.net.out.weight.requires_grad_(False)
    value, _ = native_tangents(model, x, t, directions, {})
    value.sum().backward()
    assert model.net.out.weight.grad is None and model.net.out.bias.grad is not None
    model.net = fastlik.nn.MLP(2, width=16, depth=2).double()
    check()
    model.net.register_forward_hook(lambda module, given, result: 2 * result)
    assert native_tangents(model, x, t, directions, {}) is None


def test_networks_with_code_of_their_own_are_watched(caplog):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.sign = nn.Linear(2, 2), 1.0

        def forward(self, x, t):
            return self.sign * self.inner(x).tanh()

    model = fastlik.wrap(Own().double(), fastlik.VP(), "noise")
    x, t, directions, _ = batch()
    x[0] = torch.nan

    def check():
        actual = native_tangents(model, x, t, directions, {})
        expected = fastlik.jvp(lambda x: model(x, t), x, directions)
        same([value[..., 1:, :] for value in actual], [value[..., 1:, :] for value in expected])

    check()
    model.net.inner.weight.data.mul_(2)
    check()
    with caplog.at_level(logging.DEBUG, logger="fastlik"):
        model.net.sign = -1.0
        assert native_tangents(model, x, t, directions, {}) is None
    assert "other values than when it was recognised" in caplog.text
    empty = native_tangents(model, x[:0], t[:0], directions[:, :0], {})
    assert empty is None
    model.net.inner = nn.Linear(2, 2).double()
    check()


def test_trying_a_network_in_training_leaves_no_trace(caplog):
    """Running averages and random numbers are as if it had not been tried."""
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).double()

    def call(net, x, t):
        return net(torch.cat((x, t[:, None].to(x)), 1))

    class Concat(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, t):
            return call(self.net, x, t)

    model = fastlik.wrap(Concat(), fastlik.VP(), "noise").train()
    x, t, directions, _ = batch()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(0)
    with caplog.at_level(logging.DEBUG, logger="fastlik"):
        assert native_tangents(model, x, t, directions, {}) is None
    assert "batch_norm" in caplog.text
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_what_the_kernels_do_not_take(caplog):
    x, t, directions, _ = batch()
    model = model_of()
    with caplog.at_level(logging.DEBUG, logger="fastlik"):
        hooked = fastlik.wrap(model_of().net, fastlik.VP(), "noise")
        hooked.net.out.register_forward_hook(lambda module, given, result: None)
        assert native_tangents(hooked, x, t, directions, {}) is None
        assert "there are hooks" in caplog.text
        softmax = fastlik.wrap(nn.Softmax(1), fastlik.VP(), "noise")
        assert native_tangents(softmax, x, t, directions, {}) is None
        assert "TypeError" in caplog.text  # it takes no time
    assert native_tangents(model, x, t, directions.expand(3, -1, -1)[:1].expand(48, -1, -1), {}) is None
    assert native_tangents(model, x.half(), t, directions.half(), {}) is None
    assert native_expansion(model, x.float(), t, directions.float(), {}, second=True) is None
    for more in ({"mixing": x.float()}, {"cotangents": directions[:, :4]}):
        assert native_expansion(model, x, t, directions, {}, **more) is None
    assert native_tangents(model, x, t[0], directions, {}) is None
    few = {"condition": torch.ones(1, 2, dtype=torch.float64)}
    assert native_tangents(model_of(condition_dim=2), x, t, directions, few) is None
    read = fastlik.wrap(model.net, fastlik.VP(), "noise", output=lambda out: 2 * out)
    assert native_tangents(read, x, t, directions, {}) is None
    with torch.autocast("cpu"):
        assert native_tangents(model, x, t, directions, {}) is None
    given = {"condition": torch.ones(9, 2, dtype=torch.float64, requires_grad=True)}
    assert native_tangents(model_of(condition_dim=2), x, t, directions, given) is None
