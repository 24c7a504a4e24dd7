"""Higher derivatives along directions: the kernels against nested autograd in float64."""

import pytest
import torch

import fastlik
from fastlik.ops.mlp import graph, jet, jvp
from fastlik.ops.mlp.graph import STATE
from fastlik.ops.mlp.program import FUNCTIONS, compile_graph

NETWORKS = (
    *("silu", "gelu", "tanh", "softplus", "conditional", "wide", "one hidden layer", "two hidden layers"),
    *("relu", "film", "additive", "concat"),
)
POLES, WAVES = ("log", "sqrt", "reciprocal"), ("sin", "cos", "exp", "square")
ROUNDING = {torch.float32: 3e-5, torch.float64: 1e-11}


def close(actual, expected, dtype):
    for order, (a, b) in enumerate(zip(actual, expected, strict=True)):
        scale = max(1.0, float(b.detach().abs().max())) if b.numel() else 1.0
        torch.testing.assert_close(
            a.double(), b.double(), rtol=0, atol=ROUNDING[dtype] * scale, msg=f"order {order}"
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NETWORKS)
def test_native_is_the_reference(name, dtype, case, batch):
    """37 rows of every kind of network, more directions than go together in the widest."""
    _, program, dim, _ = case(name, dtype)
    x, time, conditions = batch(program, 37, dtype)
    directions = torch.randn(18 if dim == 3 else 2, *x.shape, dtype=dtype)
    double = {name: values.double() for name, values in conditions.items()}
    arguments = x.double(), time.to(dtype), directions.double()
    expected = jet(program, *arguments, 3, double, backend="torch")
    for order in (1, 2, 3):
        actual = jet(program, x, time, directions, order, conditions, backend="native")
        assert len(actual) == 1 + order
        close(actual, expected[: 1 + order], dtype)


def chain(name):
    """x -> function(x + 0.1 x^2) of three features, all of them positive."""
    node = graph.entry("state", 3, STATE)
    tenth = graph.constant(torch.full((3,), 0.1, dtype=torch.float64))
    inner = graph.add(node, graph.multiply(graph.function("square", node), tenth))
    return compile_graph(graph.function(name, inner, 0.7), 3, {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function(name, dtype, isa):
    program = chain(name)
    points = torch.tensor([0.02, 0.3, 0.9, 1.7, 2.6, 4.0], dtype=torch.float64)
    if name not in POLES:
        points = torch.cat((points, -points, torch.tensor([-9.0, 6.0, 11.0], dtype=torch.float64)))
    x = torch.stack((points, points.flip(0), 1.1 * points), 1).to(dtype)
    v = torch.tensor([[1.0, -0.5, 0.3]], dtype=dtype).expand_as(x)
    time = torch.zeros(len(x), dtype=torch.float64)
    expected = jet(program, x.double(), time, v.double(), 3, backend="torch")
    close(jet(program, x, time, v, 3, backend="native"), expected, dtype)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in POLES and name not in WAVES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_tails_are_straight(name, dtype, isa):
    program = compile_graph(graph.function(name, graph.entry("state", 5, STATE), 0.7), 5, {})
    x = torch.tensor([[-1e18, -300.0, 200.0, 1e4, 1e18]], dtype=dtype)
    _, _, second, third = jet(program, x, torch.zeros(1), torch.ones_like(x), 3, backend="native")
    assert float(second.abs().max()) < 1e-6 and float(third.abs().max()) < 1e-6


def test_the_conventions_are_those_of_jets(case, batch):
    f, program, _, _ = case("gelu", torch.float64)
    x, time, _ = batch(program, 5, torch.float64)
    v = torch.randn(4, *x.shape, dtype=torch.float64)
    with torch.no_grad():
        for directions in (v, v[0]):
            expected = fastlik.jet(lambda x: f(x, time), x, directions, 3)
            close(jet(program, x, time, directions, 3), expected, torch.float64)
    first = jvp(program, x, time, v, backend="native")
    close(jet(program, x, time, v, 1), first, torch.float64)


def test_strides_empty_batches_and_no_directions(case, batch):
    _, program, _, _ = case("conditional", torch.float64)
    x, time, conditions = batch(program, 8, torch.float64)
    expected = jet(program, x, time, torch.stack((x, 2 * x)), 2, conditions, backend="native")
    strided = x.T.contiguous().T
    spread = {name: values.repeat_interleave(2, 1)[:, ::2] for name, values in conditions.items()}
    vectors = torch.stack((strided, 2 * strided), -1).movedim(-1, 0)
    actual = jet(program, strided, time.flip(0).flip(0), vectors, 2, spread, backend="native")
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    nothing = {name: values[:0] for name, values in conditions.items()}
    for backend in ("native", "torch"):
        empty = jet(program, x[:0], time[:0], vectors[:, :0], 3, nothing, backend=backend)
        assert [tuple(each.shape) for each in empty] == [(0, 2), *[(2, 0, 2)] * 3]
        alone = jet(program, x, time, vectors[:0], 2, conditions, backend=backend)
        close(alone[:1], expected[:1], torch.float64)
        assert [tuple(each.shape) for each in alone[1:]] == [(0, 8, 2)] * 2


def test_rows_are_the_same_in_any_batch_and_with_any_number_of_threads(isa, case, batch):
    _, program, _, _ = case("film", torch.float32)
    x, time, _ = batch(program, 97, torch.float32)
    x[5] = torch.nan
    v = torch.randn(3, *x.shape)
    whole = jet(program, x, time, v, 3, backend="native")
    part = jet(program, x[6:13], time[6:13], v[:, 6:13], 3, backend="native")
    torch.set_num_threads(3)
    try:
        threaded = jet(program, x, time, v, 3, backend="native")
    finally:
        torch.set_num_threads(1)
    for a, b, c in zip(whole, part, threaded, strict=True):
        assert torch.equal(a[..., 6:13, :], b)
        assert torch.equal(a.nan_to_num(), c.nan_to_num())
        assert a.isfinite().all(-1).logical_not().nonzero()[:, -1].unique().tolist() == [5]


def test_gradients_take_the_differentiable_way(case, batch):
    _, program, _, _ = case("silu", torch.float64)
    x, time, _ = batch(program, 2, torch.float64)
    v = torch.randn_like(x)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: jet(program, x, time, v)[2], x)


def test_wrong_input_is_refused(case, batch):
    _, program, _, _ = case("silu", torch.float32)
    x, time, _ = batch(program, 4, torch.float32)
    with pytest.raises(ValueError, match="order must be 1, 2 or 3, got 4"):
        jet(program, x, time, x, 4)
    with pytest.raises(ValueError, match="vectors must be"):
        jet(program, x, time, x[:2], 2)
