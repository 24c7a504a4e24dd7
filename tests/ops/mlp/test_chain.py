"""The CUDA kernels of MLPs, their source executed on the CPU, against the float64 reference."""

import pytest
import torch
from torch import nn

import fastlik
from fastlik.derivatives.probes import probe
from fastlik.ops.mlp import Divergence, Ode, Unrecognised, recognise, reference
from fastlik.ops.mlp.chain import chain_of
from fastlik.ops.mlp.graph import STATE
from fastlik.ops.mlp.grid import adams_bashforth, runge_kutta
from fastlik.ops.mlp.packed_chain import PackedChain, _Device
from fastlik.solvers.tableau import EULER, HEUN

# of conftest.py
NETWORKS = (
    *("silu", "gelu", "tanh", "softplus", "conditional", "wide", "wider", "one hidden layer"),
    *("two hidden layers", "relu", "film", "additive", "concat"),
)
TIMES = torch.linspace(0.1, 1, 5, dtype=torch.float64)
# largest difference of states and divergences of order 1
ACCURACY = {"fp16": 5e-3, "fp16x2": 1e-5, "fp32": 1e-5}
EXACT, CLOSED = Divergence("exact"), Divergence("closed form")


def ode(u):
    return Ode(0.1 + u, 1 + 0.2 * u.sin(), -0.5 * u, 0.7 + 0.1 * u)


def grid(steps):
    return torch.linspace(0, 1, steps + 1, dtype=torch.float64)


def thinned(steps):
    weight = torch.full((steps + 1, 2), 1 / steps, dtype=torch.float64)
    weight[1::2, 0] = 0
    weight[1, 1] = 0
    return weight


HEUN_TABLE = runge_kutta(ode, grid(2), HEUN.a, HEUN.b, HEUN.c)
ADAMS_TABLE = adams_bashforth(ode, grid(3), 2, thinned(3))


def program_of(dim=2, dtype=torch.float64, **options):
    torch.manual_seed(0)
    net = fastlik.nn.MLP(dim, **{"width": 30, "depth": 3, "time_features": 6, **options}).to(dtype)
    nn.init.normal_(net.out.weight, std=0.3)
    nn.init.normal_(net.out.bias)
    widths = {"condition": net.config["condition_dim"]} if net.config["condition_dim"] else {}
    return recognise(lambda x, t, **c: net(x, t, **c), dim, widths, TIMES, dtype, torch.device("cpu"))


def integrate(program, z, conditions, table, divergence, rows, precision="fp16x2"):
    packed = PackedChain(chain_of(program), torch.device("cpu"), precision)
    return packed.integrate_grid(z, conditions, table, divergence, rows)


def check(program, rows, table, divergence, precision="fp16x2"):
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(rows, program.dim, generator=generator)
    conditions = {
        name: torch.randn(rows, program.buffers[buffer].width, generator=generator)
        for name, buffer in program.conditions.items()
    }
    ids = torch.arange(rows) * 1_000_003 + 2**33

    def probes(node):
        node = node if divergence.fresh else 0
        draws = range(divergence.first_draw, divergence.first_draw + divergence.probes)
        return torch.stack(
            [probe("rademacher", divergence.seed, ids, draw, node, z.double()) for draw in draws]
        )

    double = {name: values.double() for name, values in conditions.items()}
    expected, q = reference.integrate_grid(
        program,
        z.double(),
        double,
        table,
        probes if divergence.mode == "probes" else None,
        divergence in (EXACT, CLOSED),
    )
    actual = integrate(program, z, conditions, table, divergence, ids, precision)
    tolerance = ACCURACY[precision]
    torch.testing.assert_close(actual[0].double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(actual[1], q, rtol=tolerance, atol=tolerance)
    assert bool((actual[2] == -1).all())


@pytest.mark.parametrize("precision", ACCURACY)
@pytest.mark.parametrize("width", [30, 128])
def test_precisions(emulator, precision, width):
    program = program_of(width=width, depth=2 if width == 128 else 3)
    check(program, 3, HEUN_TABLE, EXACT, precision)


@pytest.mark.parametrize(
    "divergence",
    [
        Divergence("none"),
        EXACT,
        Divergence("probes", 3, seed=2**40 + 7, first_draw=2),
        Divergence("probes", 1, fresh=False),
    ],
    ids=lambda divergence: divergence.mode,
)
@pytest.mark.parametrize("precision", ["fp16x2", "fp32"])
def test_traces_and_decoupled_quadratures(emulator, divergence, precision):
    check(program_of(dim=13), 5, ADAMS_TABLE, divergence, precision)


@pytest.mark.parametrize(
    ("dim", "width", "depth"), [(1, 200, 1), (17, 64, 8), (64, 256, 2), (256, 32, 2), (3, 512, 2)]
)
def test_sizes(emulator, dim, width, depth):
    check(program_of(dim=dim, width=width, depth=depth), 3, HEUN_TABLE, Divergence("probes", 1))


@pytest.mark.parametrize(("rows", "groups"), [(1, 2), (8, 2), (9, 2), (33, 2), (67, 4)])
@pytest.mark.parametrize("precision", ["fp16x2", "fp32"])
def test_several_warps_and_blocks(emulator, rows, groups, precision):
    emulator.set_groups(groups)
    check(program_of(depth=1), rows, HEUN_TABLE, EXACT, precision)


@pytest.mark.parametrize(
    "activation", ["gelu", "gelu_tanh", "tanh", "softplus", "elu", "relu", "sin", "sigmoid"]
)
def test_activations(emulator, activation):
    torch.manual_seed(0)
    functions = {
        "gelu": nn.GELU(),
        "gelu_tanh": nn.GELU("tanh"),
        "tanh": nn.Tanh(),
        "softplus": nn.Softplus(),
        "elu": nn.ELU(0.8),
        "relu": nn.ReLU(),
        "sigmoid": nn.Sigmoid(),
    }
    f = functions.get(activation, torch.sin)
    layers = nn.ModuleList(nn.Linear(*sizes) for sizes in ((4, 11), (11, 23), (23, 3))).double()

    def network(x, t):
        x = torch.cat((x, t[:, None]), 1)
        for layer in layers[:-1]:
            x = f(layer(x))
        return layers[-1](x)

    program = recognise(network, 3, {}, TIMES, torch.float64, torch.device("cpu"))
    for divergence in (EXACT, CLOSED):
        check(program, 4, HEUN_TABLE, divergence)


def test_conditions(emulator):
    check(program_of(condition_dim=4), 5, HEUN_TABLE, EXACT)


@pytest.mark.parametrize("precision", ACCURACY)
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize(("dim", "width", "condition"), [(3, 48, 2), (17, 100, 0), (64, 256, 5)])
def test_closed_form_of_the_trace(emulator, dim, width, condition, depth, precision):
    program = program_of(dim=dim, width=width, depth=depth, condition_dim=condition)
    assert chain_of(program).trace_chunks == (1 if depth == 1 else -(-width // 32))
    check(program, 5, HEUN_TABLE, CLOSED, precision)


def test_without_a_closed_form_there_are_tangents(emulator):
    program = program_of(depth=3)
    assert chain_of(program).trace is None
    check(program, 5, HEUN_TABLE, CLOSED)


def test_closed_form_at_some_nodes_alone(emulator):
    emulator.set_groups(4)
    check(program_of(dim=13, depth=2), 67, ADAMS_TABLE, CLOSED)


@pytest.mark.parametrize("divergence", [EXACT, CLOSED], ids=lambda divergence: divergence.mode)
@pytest.mark.parametrize("scale", [1e6, 1e-6, 0.0])
def test_weights_beyond_the_range_of_fp16(emulator, scale, divergence):
    """The trace is judged by its own size."""
    torch.manual_seed(0)
    net = fastlik.nn.MLP(20, width=40, depth=2).double()
    nn.init.normal_(net.out.weight, std=scale)
    program = recognise(net, 20, {}, TIMES, torch.float64, torch.device("cpu"))
    table = runge_kutta(lambda u: ode(u)._replace(of_state=0 * u), grid(1), EULER.a, EULER.b, EULER.c)
    z = torch.randn(5, 20)
    expected = reference.integrate_grid(program, z.double(), {}, table, None, True)
    actual = integrate(program, z, {}, table, divergence, torch.arange(5))
    torch.testing.assert_close(actual[0].double(), expected[0], rtol=1e-5, atol=1e-5 * scale + 1e-7)
    torch.testing.assert_close(actual[1], expected[1], rtol=1e-5, atol=1e-5 * scale)


def test_closed_form_with_a_sum_in_the_place_of_an_activation(emulator):
    """A network as wide as its output: what follows the activations may take over their memory."""
    torch.manual_seed(0)
    first, second, last = (nn.Linear(20, 20).double() for _ in range(3))
    of_condition = nn.Linear(4, 20).double()

    def network(x, t, condition):
        return last(second(first(x).tanh()).tanh()) + t[:, None] + of_condition(condition)

    program = recognise(network, 20, {"condition": 4}, TIMES, torch.float64, torch.device("cpu"))
    written = [op.out.buffer for op in program.ops if op.depends & STATE]
    assert len(set(written)) < len(written)
    check(program, 5, HEUN_TABLE, CLOSED)


@pytest.mark.parametrize("divergence", [EXACT, CLOSED], ids=lambda divergence: divergence.mode)
def test_bad_rows_are_flagged_alone(emulator, divergence):
    program = program_of(depth=2)
    z = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(10)
    clean = integrate(program, z, {}, HEUN_TABLE, divergence, rows)
    z[3], z[9] = torch.nan, torch.inf
    for precision in ("fp16x2", "fp32"):
        latent, q, first_bad = integrate(program, z, {}, HEUN_TABLE, divergence, rows, precision)
        assert first_bad[[3, 9]].tolist() == [1, 1]
        fine = torch.ones(10, dtype=torch.bool)
        fine[[3, 9]] = False
        assert bool((first_bad[fine] == -1).all())
        if precision == "fp16x2":
            assert torch.equal(latent[fine], clean[0][fine]) and torch.equal(q[fine], clean[1][fine])
        assert bool(latent[fine].isfinite().all())


def test_layers_too_wide_for_the_device_are_refused(emulator, monkeypatch):
    chain = chain_of(program_of(width=512))
    PackedChain(chain, torch.device("cpu"))
    monkeypatch.setattr("fastlik.ops.mlp.packed_chain._device", lambda device: _Device(1, 99_000))
    PackedChain(chain, torch.device("cpu"), "fp16")
    with pytest.raises(Unrecognised, match="layers of 512 units take 1.* bytes"):
        PackedChain(chain, torch.device("cpu"))


@pytest.mark.parametrize("name", NETWORKS)
def test_architectures(emulator, case, name):
    """Residual blocks, FiLM, LayerNorm, concatenations, conditions, mixed activations."""
    _, program, _, _ = case(name, torch.float64)
    check(program, 5, HEUN_TABLE, Divergence("probes", 1))


def test_parts_of_lines(emulator):
    torch.manual_seed(0)
    sizes = ((3, 48), (48, 32), (16, 16), (32, 3), (48, 16))
    first, second, third, last, late = (nn.Linear(*size).double() for size in sizes)

    def network(x, t):
        y = first(x)
        left, right = second(y.tanh()).chunk(2, 1)
        z = torch.cat((third(left.sin()) + right, late(y) * t[:, None] + y[:, 32:]), 1)
        return last(torch.nn.functional.silu(z))

    program = recognise(network, 3, {}, TIMES, torch.float64, torch.device("cpu"))
    check(program, 5, HEUN_TABLE, EXACT)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_residual_blocks_in_other_precisions(emulator, case, precision):
    _, program, _, _ = case("film", torch.float64)
    check(program, 5, HEUN_TABLE, EXACT, precision)


def test_what_the_kernel_does_not_take_is_refused():
    def refused(network, match, dim=3):
        program = recognise(network, dim, {}, TIMES, torch.float32, torch.device("cpu"))
        with pytest.raises(Unrecognised, match=match):
            chain_of(program)

    a, b, wide = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 600)
    back, part = nn.Linear(600, 3), nn.Linear(2, 3)
    refused(lambda x, t: a(x).tanh() * b(x), "products of two values")
    refused(lambda x, t: a(x.exp()), "no exp of the state")
    refused(lambda x, t: a(x) + part(b(x).tanh()[:, 1:]), "multiples of 16")
    refused(lambda x, t: a(x) + b(x)[:, :1], "no single feature")
    refused(lambda x, t: back(wide(x).tanh()), "512 units")
    with pytest.raises(Unrecognised, match="256 dimensions"):
        chain_of(program_of(dim=257))
