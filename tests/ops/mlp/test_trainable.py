"""Gradients of values and derivatives by inputs and parameters: the kernels against jets in float64.

(PyTorch's own layer_norm has a wrong third derivative by its input, 2.13.)
"""

import pytest
import torch
from torch import nn

import fastlik
from fastlik.ops.mlp import Trainable, Unrecognised, reference

ROUNDING = {torch.float32: 2e-5, torch.float64: 1e-11}
TIMES = torch.tensor([0.02, 0.3, 0.77, 1.0], dtype=torch.float64)
NETWORKS = (
    *("silu", "gelu", "tanh", "softplus", "conditional", "wide", "one hidden layer", "two hidden layers"),
    *("relu", "film", "additive", "concat"),
)
# one line of second order each: along a vector, of two, and a sum
SECOND = ([(0, 0)], [(1, 0)], [(0, 2), (1, 1), (2, 2)])
FUNCTIONS = (torch.cos, torch.exp, torch.log, torch.sqrt, torch.reciprocal, torch.square)


def trainable(module, f, dim, conditions, dtype):
    tensors = [*module.parameters(), *module.buffers()]
    return Trainable(f, dim, conditions, TIMES, dtype, tensors)


def inputs(dim, conditions, rows, tangents, dtype):
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    time = 0.02 + torch.rand(rows, generator=generator, dtype=torch.float64).to(dtype)
    given = {name: normal(rows, width) for name, width in conditions.items()}
    return normal(rows, dim), time, given, normal(tangents, rows, dim)


def gradients(evaluate, x, vectors, parameters):
    """(value, products) and the gradients of a scalar of both by x, vectors and parameters."""
    x, vectors = x.detach().requires_grad_(), vectors.detach().requires_grad_()
    value, products = evaluate(x, vectors)
    scalar = value.sin().sum() + (products.sin() * products).sum()
    found = torch.autograd.grad(scalar, (x, vectors, *parameters), materialize_grads=True)
    return value.detach(), products.detach(), *found


def by_jets(f, x, vectors, second):
    """(value, derivatives), as Trainable's."""
    value, products = fastlik.jvp(f, x, vectors, backend="jets")
    mixed = [fastlik.jet(f, x, (vectors[i], vectors[j]), backend="jets")[3] for p in second for i, j in p]
    ends = torch.tensor([0, *map(len, second)]).cumsum(0)
    sums = [sum(mixed[a:b]) for a, b in zip(ends[:-1], ends[1:], strict=True)]
    return value, torch.cat((products, torch.stack(sums)))


def by_autograd(program, x, time, conditions, vectors, second):
    """The same by nested reverse mode through the specification: D^2 F[u, v] by polarisation."""

    def curvature(v):
        return reference.jet(program, x, time, conditions, v[None], 2)[1][1, 0]

    def mixed(u, v):
        return (curvature(u + v) - curvature(u - v)) / 4

    value, products = reference.jet(program, x, time, conditions, vectors, 1)
    sums = [sum(mixed(vectors[i], vectors[j]) for i, j in pairs) for pairs in second]
    return value, torch.cat((products[0], torch.stack(sums)))


def close(actual, expected, dtype):
    for a, b in zip(actual, expected, strict=True):
        scale = max(1.0, float(b.abs().max())) if b.numel() else 1.0
        torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=ROUNDING[dtype] * scale)


@pytest.mark.parametrize("tangents", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_autograd(name, dtype, tangents, isa, network):
    """100 rows: tiles that are full and one that is not."""
    module, f, dim, conditions = network(name, dtype)
    compiled = trainable(module, f, dim, conditions, dtype)
    x, time, given, vectors = inputs(dim, conditions, 100, tangents, dtype)
    actual = gradients(lambda x, v: compiled(x, time, given, v), x, vectors, module.parameters())
    module.double()
    time, given = time.double(), {name: value.double() for name, value in given.items()}

    def reference(x, v):
        return fastlik.jvp(lambda x: f(x, time, **given), x, v, backend="jets")

    def alone(x, v):
        return f(x, time, **given), v

    expected = reference if tangents else alone
    close(actual, gradients(expected, x.double(), vectors.double(), module.parameters()), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_second_derivatives(name, dtype, isa, network):
    module, f, dim, conditions = network(name, dtype)
    compiled = trainable(module, f, dim, conditions, dtype)
    x, time, given, vectors = inputs(dim, conditions, 37, 3, dtype)
    actual = gradients(lambda x, v: compiled(x, time, given, v, SECOND), x, vectors, module.parameters())
    module.double()
    time, given = time.double(), {name: value.double() for name, value in given.items()}

    def reference(x, v):
        return by_jets(lambda x: f(x, time, **given), x, v, SECOND)

    close(actual, gradients(reference, x.double(), vectors.double(), module.parameters()), dtype)


@pytest.mark.parametrize("name", ["silu", "relu", "film", "concat", "conditional"])
def test_second_derivatives_are_those_of_the_specification(name, network):
    module, f, dim, conditions = network(name, torch.float64)
    compiled = trainable(module, f, dim, conditions, torch.float64)
    x, time, given, vectors = inputs(dim, conditions, 5, 3, torch.float64)
    ways = (
        lambda x, v: compiled(x, time, given, v, SECOND),
        lambda x, v: by_autograd(compiled.program, x, time, given, v, SECOND),
    )
    close(*(gradients(way, x, vectors, module.parameters()) for way in ways), torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_functions_that_are_no_activations(function, dtype, isa):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(3, 7), nn.Linear(7, 3)

        def forward(self, x, t):
            return self.last(function(1 + self.first(x).square()))

    torch.manual_seed(0)
    net = Net().to(dtype)
    compiled = trainable(net, net, 3, {}, dtype)
    x, time, _, vectors = inputs(3, {}, 9, 3, dtype)
    x, vectors = 0.5 * x, 0.5 * vectors
    actual = gradients(lambda x, v: compiled(x, time, {}, v, SECOND), x, vectors, net.parameters())
    net.double()
    expected = gradients(
        lambda x, v: by_jets(lambda x: net(x, time), x, v, SECOND),
        x.double(),
        vectors.double(),
        net.parameters(),
    )
    close(actual, expected, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_a_reverse_pass(name, dtype, network):
    """Of <c, J v> by x, differentiated by everything that it depends on."""
    module, f, dim, conditions = network(name, dtype)
    compiled = trainable(module, f, dim, conditions, dtype)
    x, time, given, both = inputs(dim, conditions, 37, 4, dtype)

    def pulled(x, both):
        value, products, gradient = compiled.pulled(x, time, given, both[:2], both[2:])
        return value, torch.cat((products, gradient[None]))

    actual = gradients(pulled, x, both, module.parameters())
    module.double()
    time, given = time.double(), {name: value.double() for name, value in given.items()}

    def reference(x, both):
        value, products = fastlik.jvp(lambda x: f(x, time, **given), x, both[:2], backend="jets")
        scalar = (both[2:] * products).sum()
        (gradient,) = torch.autograd.grad(scalar, x, create_graph=True, materialize_grads=True)
        return value, torch.cat((products, gradient[None]))

    close(actual, gradients(reference, x.double(), both.double(), module.parameters()), dtype)


def test_threads_and_strides(network):
    module, f, dim, conditions = network("conditional", torch.float64)
    compiled = trainable(module, f, dim, conditions, torch.float64)
    x, time, given, vectors = inputs(dim, conditions, 300, 3, torch.float64)

    def evaluate(x, v):
        value, derivatives = compiled(x, time, given, v, SECOND)
        _, _, gradient = compiled.pulled(x, time, given, v[:1], v[1:2])
        return value, torch.cat((derivatives, gradient[None]))

    expected = gradients(evaluate, x, vectors, module.parameters())
    torch.set_num_threads(3)
    try:
        x, vectors = x.T.contiguous().T, vectors.transpose(0, 2).contiguous().transpose(0, 2)
        actual = gradients(evaluate, x, vectors, module.parameters())
    finally:
        torch.set_num_threads(1)
    close(actual, expected, torch.float64)


def test_empty_batches(network):
    module, f, dim, conditions = network("film", torch.float64)
    compiled = trainable(module, f, dim, conditions, torch.float64)
    x, time, given, vectors = inputs(dim, conditions, 0, 3, torch.float64)
    found = gradients(lambda x, v: compiled(x, time, given, v, SECOND), x, vectors, module.parameters())
    assert found[0].shape == (0, 3) and found[1].shape == (6, 0, 3)
    assert not any(gradient.any() for gradient in found[4:])
    gradient = compiled.pulled(x, time, given, vectors, vectors)[2]
    assert gradient.shape == (0, 3)
    gradient.sum().backward()
    assert not any(p.grad.any() for p in module.parameters())


def test_lines_of_second_order_are_of_vectors_that_there_are(network):
    module, f, dim, conditions = network("silu", torch.float64)
    compiled = trainable(module, f, dim, conditions, torch.float64)
    x, time, given, vectors = inputs(dim, conditions, 4, 2, torch.float64)
    _, derivatives = compiled(x, time, given, vectors, [[]])
    assert not derivatives[2].any()
    for pair in ((0, 2), (-1, 0)):
        with pytest.raises(ValueError, match="lines that there are not"):
            compiled(x, time, given, vectors, [[pair]])


def test_parameters_are_followed(network):
    """An optimiser's steps, and parameters that stop being trained."""
    module, f, dim, conditions = network("silu", torch.float64)
    module.embedding.requires_grad_(False)
    module.out.bias.requires_grad_(False)
    compiled = trainable(module, f, dim, conditions, torch.float64)
    x, time, _, vectors = inputs(dim, conditions, 20, 1, torch.float64)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(trained, 0.1)
    for _ in range(3):
        value, products = compiled(x, time, {}, vectors)
        expected = fastlik.jvp(lambda x: f(x, time), x, vectors, backend="jets")
        close((value.detach(), products.detach()), [e.detach() for e in expected], torch.float64)
        optimiser.zero_grad()
        (value.square().mean() + products.square().mean()).backward()
        optimiser.step()
    assert module.out.bias.grad is None and compiled.follows()
    module.out.bias.requires_grad_()
    assert not compiled.follows()
    module.out.bias.requires_grad_(False)
    module.hidden[1].weight.data = module.hidden[1].weight.data.T
    assert not compiled.follows()


def test_parameters_must_not_change_before_the_backward_pass(network):
    module, f, dim, conditions = network("tanh", torch.float64)
    compiled = trainable(module, f, dim, conditions, torch.float64)
    x, time, _, vectors = inputs(dim, conditions, 4, 1, torch.float64)
    results = [
        compiled(x, time, {}, vectors)[0],
        compiled(x, time, {}, vectors, [[(0, 0)]])[1],
        compiled.pulled(x, time, {}, vectors, vectors)[2],
    ]
    with torch.no_grad():
        module.out.weight.mul_(2)
    for result in results:
        with pytest.raises(RuntimeError, match="a parameter was changed"):
            result.sum().backward()


def test_shared_and_sliced_parameters():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 3, dtype=torch.float64))
            self.scale = nn.Parameter(torch.ones(6, dtype=torch.float64))
            self.unused = nn.Parameter(torch.ones(6, dtype=torch.float64))

        def forward(self, x, t):
            return self.scale * (x @ self.weight.T).tanh() @ self.weight

    torch.manual_seed(0)
    net = Tied()
    compiled = Trainable(net, 3, {}, TIMES, torch.float64, list(net.parameters()))
    x, time, _, vectors = inputs(3, {}, 7, 2, torch.float64)
    actual = gradients(lambda x, v: compiled(x, time, {}, v), x, vectors, net.parameters())
    expected = gradients(
        lambda x, v: fastlik.jvp(lambda x: net(x, time), x, v, backend="jets"), x, vectors, net.parameters()
    )
    close(actual, expected, torch.float64)
    compiled(x, time, {}, vectors)[0].sum().backward()
    assert net.scale.grad is not None and net.unused.grad is None


def test_weights_that_are_computed_are_refused():
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 5)), nn.Tanh(), nn.Linear(5, 3))
    with pytest.raises(Unrecognised, match="computed from parameters"):
        Trainable(lambda x, t: net(x), 3, {}, TIMES, torch.float32, list(net.parameters()))


def test_reverse_products(network):
    """value + VJP: the trace of v' J v by either mode."""
    module, f, dim, conditions = network("film", torch.float64)
    compiled = trainable(module, f, dim, conditions, torch.float64)
    x, time, _, vectors = inputs(dim, conditions, 20, 1, torch.float64)
    x.requires_grad_()
    value, _ = compiled(x, time, {}, vectors[:0])
    (product,) = torch.autograd.grad(value, x, vectors[0])
    _, forward = compiled(x, time, {}, vectors)
    close([(product * vectors[0]).sum(1)], [(forward[0] * vectors[0]).sum(1).detach()], torch.float64)
