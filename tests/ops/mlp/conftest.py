"""Every instruction set, and programs of networks of all kinds."""

import pytest
import torch
from torch import nn

import fastlik
from fastlik.ops.dispatch import native_module
from fastlik.ops.mlp import recognise

native = native_module()
TIMES = torch.tensor([0.02, 0.3, 0.77, 1.0], dtype=torch.float64)


@pytest.fixture(params=native.isas() if native else [pytest.param("", marks=pytest.mark.skip("not built"))])
def isa(request):
    """Runs the test with each instruction set that this CPU has."""
    before = native.isa()
    native.select_isa(request.param)
    yield request.param
    native.select_isa(before)


class Residual(nn.Module):
    """Residual blocks with FiLM of a Fourier embedding, LayerNorm, and the output scaled by the time."""

    def __init__(self, dim, width, blocks, norm=True, film=True):
        super().__init__()
        self.register_buffer("frequencies", torch.randn(8))
        self.embed = nn.Sequential(nn.Linear(16, width), nn.SiLU())
        self.first = nn.Linear(dim, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) if norm else nn.Identity() for _ in range(blocks))
        self.films = nn.ModuleList(nn.Linear(width, (1 + film) * width) for _ in range(blocks))
        self.hidden = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(blocks))
        self.back = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(blocks))
        self.last = nn.Linear(width, dim)
        self.film = film

    def forward(self, x, time):
        angles = time[:, None] * self.frequencies[None] * 2 * torch.pi
        embedding = self.embed(torch.cat([angles.sin(), angles.cos()], dim=-1))
        x = self.first(x)
        for norm, film, hidden, back in zip(self.norms, self.films, self.hidden, self.back, strict=True):
            y = norm(x)
            if self.film:
                scale, shift = film(embedding).chunk(2, dim=1)
                y = y * (1 + scale) + shift
            else:
                y = y + film(embedding)
            x = x + back(torch.nn.functional.gelu(hidden(y), approximate="tanh"))
        return self.last(x) / (0.1 + time[:, None] ** 2).sqrt()


class Concat(nn.Module):
    """Everything concatenated, a skip from the input, sin and ELU."""

    def __init__(self, dim, width, context):
        super().__init__()
        self.first = nn.Linear(dim + 1 + context, width)
        self.second = nn.Linear(width + dim, width + 3)
        self.last = nn.Linear(width + 3, dim)
        self.elu = nn.ELU(0.7)

    def forward(self, x, time, context):
        hidden = torch.sin(self.first(torch.cat((x, time.unsqueeze(-1).log(), context), 1)))
        hidden = self.elu(self.second(torch.cat((hidden, x), 1)))
        return self.last(hidden) - 0.5 * x


def _mlp(**options):
    net = fastlik.nn.MLP(**options)
    nn.init.normal_(net.out.weight, std=0.2)
    nn.init.normal_(net.out.bias)
    return net


def _sequential(*activations, widths):
    layers = []
    for inputs, outputs, activation in zip(widths[:-1], widths[1:], (*activations, None), strict=True):
        layers += [nn.Linear(inputs, outputs), *([activation] if activation else [])]
    net = nn.Sequential(*layers)
    return net, lambda x, time: net(torch.cat((x, time[:, None]), 1))


def networks():
    """name -> (f, dim, {condition: width})"""
    torch.manual_seed(0)
    found = {}
    for activation in ("silu", "gelu", "tanh", "softplus"):
        net = _mlp(dim=3, width=21, depth=3, activation=activation, time_features=6)
        found[activation] = net, net, 3, {}
    net = _mlp(dim=2, width=128, depth=4, condition_dim=5)
    found["conditional"] = net, (lambda net: lambda x, t, **c: net(x, t, **c))(net), 2, {"condition": 5}
    net = _mlp(dim=40, width=33, depth=3)
    found["wide"] = net, net, 40, {}
    net = _mlp(dim=70, width=16, depth=3)
    found["wider"] = net, net, 70, {}
    found["one hidden layer"] = *_sequential(nn.Tanh(), widths=(5, 19, 4)), 4, {}
    found["two hidden layers"] = *_sequential(nn.SiLU(), nn.Softplus(2.0), widths=(7, 24, 31, 6)), 6, {}
    found["relu"] = *_sequential(nn.ReLU(), nn.LeakyReLU(0.2), nn.Sigmoid(), widths=(4, 9, 8, 7, 3)), 3, {}
    for name, options in {"film": {}, "additive": {"film": False, "norm": False}}.items():
        net = Residual(3, 18, 2, **options)
        found[name] = net, net, 3, {}
    net = Concat(3, 10, 2)
    found["concat"] = net, net, 3, {"context": 2}
    return found


@pytest.fixture(scope="session")
def network():
    """network(name, dtype): (module, f, dim, conditions)"""

    def make(name, dtype):
        module, f, dim, conditions = networks()[name]
        return module.to(dtype).eval(), f, dim, conditions

    return make


@pytest.fixture(scope="session")
def case(network):
    """case(name, dtype): (f, program, dim, conditions)"""

    def make(name, dtype):
        _, f, dim, conditions = network(name, dtype)
        return f, recognise(f, dim, conditions, TIMES, dtype, torch.device("cpu")), dim, conditions

    return make


@pytest.fixture(scope="session")
def batch():
    """batch(program, rows, dtype): x, time, conditions"""

    def make(program, rows, dtype, seed=1):
        generator = torch.Generator().manual_seed(seed)

        def normal(width):
            return torch.randn(rows, width, generator=generator, dtype=torch.float64).to(dtype)

        time = 0.02 + torch.rand(rows, generator=generator, dtype=torch.float64)
        widths = {name: program.buffers[buffer].width for name, buffer in program.conditions.items()}
        return normal(program.dim), time, {name: normal(width) for name, width in widths.items()}

    return make
