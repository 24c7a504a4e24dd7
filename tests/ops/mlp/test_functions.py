"""The vectorised elementwise functions against PyTorch's in float64."""

import pytest
import torch

from fastlik.ops.mlp import graph, jvp, reference, value
from fastlik.ops.mlp.program import FUNCTIONS, compile_graph

PARAMETERS = {"softplus": 1.5, "elu": 0.8, "leaky_relu": 0.1}
POSITIVE = ("log", "sqrt")
# units in the last place of the largest of |f| and |x f'|: half a unit of error in x is unavoidable
ULP = 4
NEGLIGIBLE = 1e-30


def program(name):
    """x -> f(x), for 5 features."""
    x = graph.entry("state", 5, graph.STATE)
    return compile_graph(graph.function(name, x, PARAMETERS.get(name, 0.0)), 5, {})


def points(name, dtype):
    """Ordinary, tiny and huge arguments, (B, 5)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, generator=generator, dtype=torch.float64)
    x = torch.cat((3 * x, 1e-4 * x, 20 * x, torch.linspace(-60, 60, 4000, dtype=torch.float64)))
    if name in POSITIVE:
        x = x.abs() + 1e-3
    if name == "reciprocal":
        x = x[x.abs() > 1e-6][:15000]
    return x[: len(x) // 5 * 5].reshape(-1, 5).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_value_and_slope(name, dtype, isa):
    x = points(name, dtype)
    time = torch.zeros(len(x), dtype=torch.float64)
    actual, (slope,) = jvp(program(name), x, time, torch.ones_like(x)[None], backend="native")
    expected, expected_slope = reference.FUNCTIONS[name](x.double(), PARAMETERS.get(name, 0.0))
    unit = ULP * torch.finfo(dtype).eps
    scale = torch.maximum(expected.abs(), (x * expected_slope).abs())
    assert bool(((actual - expected).abs() <= unit * scale + NEGLIGIBLE).all())
    scale = expected_slope.abs()
    if name == "exp":
        scale = scale * x.abs().clamp(min=1)
    elif name not in ("reciprocal", "log", "sqrt", "square"):
        scale = scale.clamp(min=1)  # slopes that pass through 0
    assert bool(((slope - expected_slope).abs() <= 2 * unit * scale).all())


@pytest.mark.parametrize("name", ["sin", "cos"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_arguments_of_the_trigonometric_functions(name, dtype, isa):
    x = torch.tensor([[1e3, -8e3, 1e5, 3e7, 1e9]], dtype=dtype)
    actual = value(program(name), x, torch.zeros(1, dtype=torch.float64), backend="native")
    expected = getattr(x.double(), name)()
    assert float((actual - expected).abs().max()) < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("name", ["sin", "cos"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_arguments_do_not_change_those_beside_them(name, dtype, isa):
    """To the last bit: what lies beyond the end of a line may be anything."""
    x = torch.linspace(-9, 9, 400, dtype=dtype).reshape(-1, 5)
    time = torch.zeros(len(x), dtype=torch.float64)
    alone = value(program(name), x, time, backend="native")
    x[:, 2] = 1e8
    beside = value(program(name), x, time, backend="native")
    assert torch.equal(alone[:, [0, 1, 3, 4]], beside[:, [0, 1, 3, 4]])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nan_stays_nan(name, isa):
    x = torch.full((1, 5), torch.nan)
    output, products = jvp(program(name), x, torch.zeros(1), torch.ones(1, 1, 5), backend="native")
    assert bool(output.isnan().all())


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - {"log", "sqrt", "exp", "square"}))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_tails(name, dtype, isa):
    """No overflow on the way where the function itself is finite."""
    x = torch.tensor([[-1e18, -300.0, 200.0, 1e4, 1e18]], dtype=dtype)
    output, products = jvp(program(name), x, torch.zeros(1), torch.ones(1, 1, 5).to(dtype), backend="native")
    expected, slope = reference.FUNCTIONS[name](x.double(), PARAMETERS.get(name, 0.0))
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=NEGLIGIBLE)
    torch.testing.assert_close(products[0].double(), slope, rtol=1e-5, atol=1e-5)
