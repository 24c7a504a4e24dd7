"""Values and derivatives: the reference against torch.func, the kernels against the reference."""

import pytest
import torch

from fastlik.ops.mlp import Packed, divergence, jvp, reference, value

NETWORKS = (
    "silu",
    "gelu",
    "tanh",
    "softplus",
    "conditional",
    "wide",
    "wider",
    "one hidden layer",
    "two hidden layers",
    "relu",
    "film",
    "additive",
    "concat",
)
CLOSED = ("one hidden layer", "two hidden layers")
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-12}


def close(actual, expected, dtype):
    scale = max(1.0, float(expected.detach().abs().max()) if expected.numel() else 1.0)
    tolerance = ROUNDING[dtype] * scale
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", NETWORKS)
def test_reference_is_the_network(name, case, batch):
    f, program, dim, _ = case(name, torch.float64)
    x, time, conditions = batch(program, 5, torch.float64)
    vectors = torch.randn(3, *x.shape, dtype=torch.float64)
    result = reference.evaluate(program, x, time, conditions, vectors)

    def network(x):
        return f(x, time, **conditions)

    close(result.output, network(x), torch.float64)
    products = torch.func.vmap(lambda v: torch.func.jvp(network, (x,), (v,))[1])(vectors)
    close(result.products, products, torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: network(x).sum(0), x)
    trace = jacobian.diagonal(dim1=0, dim2=2).sum(1)
    close(reference.exact_divergence(program, x, time, conditions), trace, torch.float64)
    assert (program.trace is not None) == (name in CLOSED)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NETWORKS)
def test_native_is_the_reference(name, dtype, isa, case, batch):
    _, program, dim, _ = case(name, dtype)
    x, time, conditions = batch(program, 37, dtype)
    vectors = torch.randn(2, *x.shape, dtype=dtype)
    double = {name: values.double() for name, values in conditions.items()}
    rounded = time.to(dtype)
    expected = reference.evaluate(program, x.double(), rounded, double, vectors.double())
    trace = reference.exact_divergence(program, x.double(), rounded, double)

    output, products = jvp(program, x, time, vectors, conditions, backend="native")
    close(output, expected.output, dtype)
    close(products, expected.products, dtype)
    close(value(program, x, time, conditions, backend="native"), expected.output, dtype)
    output, actual = divergence(program, x, time, conditions, backend="native")
    close(output, expected.output, dtype)
    close(actual, trace, dtype)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 13, 95, 97])
def test_a_row_is_the_same_in_any_batch(rows, isa, case, batch):
    _, program, _, _ = case("conditional", torch.float32)
    x, time, conditions = batch(program, 97, torch.float32)
    vectors = torch.randn(3, *x.shape)
    whole = jvp(program, x, time, vectors, conditions, backend="native")
    few = {name: values[:rows] for name, values in conditions.items()}
    part = jvp(program, x[:rows], time[:rows], vectors[:, :rows], few, backend="native")
    assert torch.equal(part[0], whole[0][:rows])
    assert torch.equal(part[1], whole[1][:, :rows])


def test_threads_change_nothing(isa, case, batch):
    _, program, _, _ = case("film", torch.float32)
    x, time, conditions = batch(program, 300, torch.float32)
    expected = divergence(program, x, time, conditions, backend="native")
    torch.set_num_threads(3)
    try:
        actual = divergence(program, x, time, conditions, backend="native")
    finally:
        torch.set_num_threads(1)
    assert torch.equal(actual[0], expected[0]) and torch.equal(actual[1], expected[1])


def test_bad_rows_do_not_harm_their_neighbours(isa, case, batch):
    _, program, _, _ = case("film", torch.float32)
    x, time, conditions = batch(program, 20, torch.float32)
    expected, trace = divergence(program, x, time, conditions, backend="native")
    for bad, fill in ((3, torch.nan), (8, torch.inf), (19, torch.nan)):
        x[bad] = fill
    actual, damaged = divergence(program, x, time, conditions, backend="native")
    fine = torch.ones(20, dtype=torch.bool)
    fine[[3, 8, 19]] = False
    assert torch.equal(actual[fine], expected[fine]) and torch.equal(damaged[fine], trace[fine])
    assert not bool(actual[~fine].isfinite().any())


def test_strides_and_empty_batches(isa, case, batch):
    _, program, _, _ = case("conditional", torch.float64)
    x, time, conditions = batch(program, 8, torch.float64)
    expected, products = jvp(program, x, time, torch.stack((x, 2 * x)), conditions, backend="native")
    strided = x.T.contiguous().T
    spread = {name: values.repeat_interleave(2, 1)[:, ::2] for name, values in conditions.items()}
    vectors = torch.stack((strided, 2 * strided), -1).movedim(-1, 0)
    actual = jvp(program, strided, time.flip(0).flip(0), vectors, spread, backend="native")
    assert torch.equal(actual[0], expected) and torch.equal(actual[1], products)
    nothing = {name: values[:0] for name, values in conditions.items()}
    empty = divergence(program, x[:0], time[:0], nothing, backend="native")
    assert empty[0].shape == (0, 2) and empty[1].shape == (0,)


def test_gradients_take_the_differentiable_way(case, batch):
    _, program, _, _ = case("film", torch.float64)
    x, time, conditions = batch(program, 4, torch.float64)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: divergence(program, x, time, conditions)[1], x)
    with pytest.raises(RuntimeError, match="torch.no_grad"):
        value(program, x, time, conditions, backend="native")


def test_wrong_input_is_refused(case, batch):
    _, program, _, _ = case("conditional", torch.float32)
    x, time, conditions = batch(program, 4, torch.float32)
    with pytest.raises(ValueError, match=r"x must have shape \(B, 2\)"):
        value(program, x[:, :1], time, conditions)
    with pytest.raises(ValueError, match="time must have shape"):
        value(program, x, time[:2], conditions)
    with pytest.raises(ValueError, match="takes the conditions condition, got none"):
        value(program, x, time)
    with pytest.raises(ValueError, match=r"condition 'condition' must have shape \(4, 5\)"):
        value(program, x, time, {"condition": x})
    with pytest.raises(ValueError, match="vectors must be"):
        jvp(program, x, time, x, conditions)
    with pytest.raises(TypeError, match="float32 or float64"):
        value(program, x.half(), time, conditions)


def test_a_program_keeps_its_weights(case, batch):
    f, program, _, _ = case("silu", torch.float32)
    x, time, conditions = batch(program, 4, torch.float32)
    before = value(program, x, time, conditions, backend="native").clone()
    with torch.no_grad():
        f.out.weight.zero_()
    assert torch.equal(value(program, x, time, conditions, backend="native"), before)
    close(value(program, x, time, conditions, backend="torch"), before, torch.float32)
    assert Packed.of(program, torch.float32) is Packed.of(program, torch.float32)
