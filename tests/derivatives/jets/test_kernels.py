"""Networks whose jets go through the fused kernels, against the rules in plain PyTorch."""

import weakref
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastlik
from fastlik.derivatives.jets import kernels as kernels_of_jets
from fastlik.derivatives.jets.jet import Jet
from fastlik.derivatives.jets.layout import ALONG
from fastlik.ops.activation.triton import FUSED as ACTIVATION
from fastlik.ops.attention.triton import FUSED as ATTENTION
from fastlik.ops.gate.triton import FUSED as GATE
from fastlik.ops.normalisation.triton import FUSED as NORMALISATION
from fastlik.ops.residual.triton import FUSED as RESIDUAL

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def kernels(monkeypatch):
    """Which functions of which kernels run, where Triton is asked for."""
    monkeypatch.setenv("FASTLIK_BACKEND", "triton")
    ran = Counter()

    def counted(name, op, function):
        original = op.run

        def run(*args, **options):
            ran[name, function(args)] += 1
            return original(*args, **options)

        monkeypatch.setattr(op, "run", run)

    counted("activation", ACTIVATION, lambda args: args[4])
    counted("normalisation", NORMALISATION, lambda args: args[8])
    counted("gate", GATE, lambda args: args[6])
    counted("residual", RESIDUAL, lambda args: args[2])
    counted("attention", ATTENTION, lambda args: args[6] is not None)
    return ran


def directions(x, count=2):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, *x.shape, generator=generator).to(x)


def assert_same(f, x, monkeypatch, order=1, **options):
    v = directions(x)
    actual = fastlik.jet(f, x, v, order, backend="jets", **options)
    monkeypatch.setenv("FASTLIK_BACKEND", "torch")
    expected = fastlik.jet(f, x, v, order, backend="jets", **options)
    for a, b in zip(actual, expected, strict=True):
        assert (a - b).abs().max() <= 2e-5 * b.abs().max()


ORDERS = [(1, {}), (2, {}), (2, {"collapse": True})]


@pytest.mark.parametrize(("order", "options"), ORDERS)
def test_a_unet_runs_on_few_kernels(kernels, monkeypatch, order, options):
    torch.manual_seed(0)
    net = fastlik.nn.UNet(1, width=8, groups=4, time_features=8, attention=False).to(DEVICE)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    x, t = torch.randn(2, 1, 4, 4, device=DEVICE), torch.rand(2, device=DEVICE)
    with torch.no_grad():
        assert_same(lambda x: net(x, t), x, monkeypatch, order, **options)
    # each norm takes the FiLM and the SiLU behind it along; the time embedding has no derivatives
    assert kernels == {("normalisation", "silu"): 15}


class Block(nn.Module):
    """A transformer's block: modulated norm, attention, norm, gelu."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(32, elementwise_affine=False)
        self.second = nn.LayerNorm(32)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down = nn.Linear(32, 48), nn.Linear(48, 32)

    def forward(self, x, condition):
        scale, shift = condition.chunk(2, 1)
        hidden = self.norm(x) * (1 + scale[:, None]) + shift[:, None]
        q, k, v = self.qkv(hidden).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
        hidden = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(hidden.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.second(x)), approximate="tanh"))


def transformer():
    torch.manual_seed(1)
    block = Block().to(DEVICE)
    x, condition = torch.randn(2, 5, 32, device=DEVICE), torch.randn(2, 64, device=DEVICE)
    return block, x, lambda x: block(x, condition)


@pytest.mark.parametrize(("order", "options"), ORDERS)
def test_a_transformer_runs_on_few_kernels(kernels, monkeypatch, order, options):
    _, x, f = transformer()
    with torch.no_grad():
        assert_same(f, x, monkeypatch, order, **options)
    assert kernels == {
        ("normalisation", "identity"): 2,
        ("attention", order == 2): 1,
        ("activation", "gelu_tanh"): 1,
    }


@pytest.mark.parametrize(("order", "options"), ORDERS)
def test_parameters_get_their_gradients(kernels, monkeypatch, order, options):
    block, x, f = transformer()
    results = []
    for backend in ("triton", "torch"):
        monkeypatch.setenv("FASTLIK_BACKEND", backend)
        block.zero_grad()
        jet = fastlik.jet(f, x, directions(x), order, backend="jets", **options)
        sum(each.square().sum() for each in jet).backward()
        results.append([parameter.grad.clone() for parameter in block.parameters()])
    for actual, expected in zip(*results, strict=True):
        assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert sum(kernels.values()) == 4


def test_a_deferred_norm_is_what_was_written_last(kernels):
    """In-place functions, several uses, factors that do not fit the pass, constants of another dtype."""

    def f(x):
        h = F.group_norm(x, 2)
        kept = h * 2.0 + h * torch.linspace(0, 1, 3, device=x.device)
        F.silu(h, inplace=True)
        h = h * torch.arange(4.0, device=x.device)[:, None] + 1
        return kept + F.silu(F.group_norm(h, 1).mul_(3.0).add_(x))

    x = torch.randn(2, 4, 3, device=DEVICE)
    v = directions(x)
    expected = fastlik.jet(f, x.double(), v.double(), 1, backend="torch")
    for a, b in zip(fastlik.jet(f, x, v, 1, backend="jets"), expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


def written(x):
    """A norm and an activation of what is then written to, in a tensor of its own and through a view."""
    a, b = x.sin(), x.cos()
    top = b[:, :2]
    h, gated = F.group_norm(a, 2), F.silu(b)
    a.mul_(3.0)
    top.mul_(2.0)
    return h * a + gated * b


def written_out(x):
    a, b = x.sin(), x.cos()
    return F.group_norm(a, 2) * 3 * a + F.silu(b) * torch.cat((2 * b[:, :2], b[:, 2:]), 1)


def gates(x):
    """SwiGLU, GEGLU by halves, a plain product, one that broadcasts, squares, a constant factor."""
    a, b = torch.cat((x, x.sin()), 1).chunk(2, 1)
    total = F.silu(a) * b + x.cos() * F.gelu(b) + a * b.tanh() * a[:, :1]
    return total + F.silu(x) * F.silu(x) + F.softplus(b) * a + F.silu(a) * 2.0


@pytest.mark.parametrize(("order", "options"), ORDERS)
@pytest.mark.parametrize(("f", "truth", "count"), [(written, written_out, 0), (gates, gates, 2)])
def test_what_is_deferred_is_what_was_written(kernels, f, truth, count, order, options):
    x = torch.randn(2, 4, 3, device=DEVICE)
    v = directions(x)
    expected = fastlik.jet(truth, x.double(), v.double(), order, backend="torch", **options)
    with torch.no_grad():
        actual = fastlik.jet(f, x, v, order, backend="jets", **options)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)
    assert kernels["gate", "silu"] == count


def test_gates_get_their_gradients(kernels):
    x = torch.randn(2, 4, 3, device=DEVICE).requires_grad_()
    truth = x.detach().double().requires_grad_()
    for each, backend in ((x, "jets"), (truth, "torch")):
        results = fastlik.jet(gates, each, directions(each.detach()), 2, backend=backend)
        sum(result.square().sum() for result in results).backward()
    torch.testing.assert_close(x.grad.double(), truth.grad, rtol=1e-4, atol=1e-4)
    assert kernels["gate", "gelu"] == 1


@pytest.mark.parametrize(("order", "options"), ORDERS)
def test_a_bias_joins_the_activation(monkeypatch, order, options):
    torch.manual_seed(0)
    head = [nn.Conv2d(2, 3, 3, padding=1), nn.SiLU(), nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(8, 6)]
    net = nn.Sequential(*head, nn.GELU(), nn.Linear(6, 8), nn.Unflatten(1, (2, 2, 2))).to(DEVICE)
    x = torch.randn(3, 2, 2, 2, device=DEVICE)
    biases, original = [], ACTIVATION.run
    monkeypatch.setattr(
        ACTIVATION, "run", lambda *args, **options: biases.append(args[3]) or original(*args, **options)
    )
    results, gradients = [], []
    for backend in ("triton", "torch"):
        monkeypatch.setenv("FASTLIK_BACKEND", backend)
        jet = fastlik.jet(net, x, directions(x), order, backend="jets", **options)
        results.append(jet)
        loss = sum(each.square().sum() for each in jet)
        gradients.append(torch.autograd.grad(loss, list(net.parameters())))
    assert [len(bias) for bias in biases] == [3, 6]
    for actual, expected in (*zip(*results, strict=True), *zip(*gradients, strict=True)):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def residuals(x):
    """Sums with a scale as in NCSN++, without one, and one that is written to before it is used."""
    h = F.linear(x.sin(), torch.linspace(-1, 1, 9, device=x.device).view(3, 3))
    total = (h + h.tanh()) / 2**0.5
    total = 0.5 * (total + h.sin())
    kept = total + h
    h.mul_(2.0)
    return kept * kept + (total - h) * 3.0


def residuals_written_out(x):
    h = F.linear(x.sin(), torch.linspace(-1, 1, 9, dtype=x.dtype).view(3, 3).to(x.device))
    total = 0.5 * ((h + h.tanh()) / 2**0.5 + h.sin())
    return (total + h) ** 2 + (total - 2 * h) * 3.0


@pytest.mark.parametrize(("order", "options"), ORDERS)
def test_residual_sums_take_their_scale_along(kernels, order, options):
    x = torch.randn(2, 4, 3, device=DEVICE)
    v = directions(x)
    truth = fastlik.jet(residuals_written_out, x.double(), v.double(), order, backend="torch", **options)
    with torch.no_grad():
        actual = fastlik.jet(residuals, x, v, order, backend="jets", **options)
    for a, b in zip(actual, truth, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)
    assert {scale: n for (op, scale), n in kernels.items() if op == "residual"} == {1 / 2**0.5: 1, 0.5: 1}


def used_twice(x):
    """What has joined an activation is used again, before and after it."""
    weight = torch.linspace(-1, 1, 9, dtype=x.dtype, device=x.device).view(3, 3)
    h, g = F.linear(x, weight, weight[0]), F.linear(x.sin(), weight, weight[1])
    first, second = F.silu(h), F.silu(g)
    return (h + first) * (second + g) + F.silu(h) * first


@pytest.mark.parametrize("recorded", [False, True])
def test_what_was_joined_can_be_used_again(kernels, recorded):
    x = torch.randn(2, 4, 3, device=DEVICE)
    v = directions(x)
    truth = fastlik.jet(used_twice, x.double(), v.double(), 2, backend="torch")
    with torch.set_grad_enabled(recorded):
        actual = fastlik.jet(used_twice, x, v, 2, backend="jets")
    for a, b in zip(actual, truth, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


def test_a_layer_without_gradients_does_not_get_them_from_what_follows(kernels):
    net, x = nn.Linear(3, 3).to(DEVICE), torch.randn(2, 3, device=DEVICE)
    norm = nn.GroupNorm(1, 3).to(DEVICE)

    def f(x):
        with torch.no_grad():
            h, g = net(x), norm(x[..., None])
        return F.silu(h) + F.silu(g)[..., 0] * net.weight.sum()

    value, _ = fastlik.jvp(f, x.clone().requires_grad_(), directions(x), backend="jets")
    grads = torch.autograd.grad(
        value.sum(), [net.weight, net.bias, norm.weight, norm.bias], materialize_grads=True
    )
    assert grads[0].abs().sum() > 0 and not any(grad.any() for grad in grads[1:])


def test_what_was_read_is_freed(monkeypatch):
    monkeypatch.setenv("FASTLIK_BACKEND", "triton")
    x = torch.randn(2, 3, device=DEVICE)
    with torch.no_grad():
        jet = kernels_of_jets.activation(Jet(ALONG[1], x * 1, (directions(x),)), "silu")
    read = weakref.ref(jet.example)
    assert jet.primal.shape == (2, 3)
    assert read() is None


def test_the_compiler_takes_a_transformer(monkeypatch):
    monkeypatch.setenv("FASTLIK_BACKEND", "triton")
    _, x, f = transformer()
    nodes = []

    def backend(graph, inputs):
        nodes.extend(str(node.target) for node in graph.graph.nodes)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    def jet(x, v):
        return fastlik.jet(f, x, v, collapse=True, backend="jets")

    with torch.no_grad():
        expected = jet(x, directions(x))
        actual = torch.compile(jet, backend=backend, fullgraph=True)(x, directions(x))
    ours = Counter(node.split(".")[1] for node in nodes if node.startswith("fastlik."))
    assert ours == {"normalise": 2, "attention": 1, "activation": 1}
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
