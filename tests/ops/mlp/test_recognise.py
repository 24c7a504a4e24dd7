"""What is recognised, and what is refused with which reason."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import fastlik
from fastlik.ops.mlp import Unrecognised, recognise, value

TIMES = torch.tensor([0.02, 0.3, 0.77, 1.0], dtype=torch.float64)


def program_of(f, dim=3, conditions=None, dtype=torch.float32):
    return recognise(f, dim, conditions or {}, TIMES, dtype, torch.device("cpu"))


def check(f, dim=3, conditions=None):
    """The recognised program is the network, at times and points it was not compared at."""
    program = program_of(f, dim, conditions, torch.float64)
    x = torch.randn(6, dim, dtype=torch.float64)
    time = torch.rand(6, dtype=torch.float64) + 0.01
    given = {name: torch.randn(6, width, dtype=torch.float64) for name, width in (conditions or {}).items()}
    with torch.no_grad():
        expected = f(x, time, **given)
    torch.testing.assert_close(value(program, x, time, given), expected, rtol=1e-10, atol=1e-10)
    return program


def linear(inputs, outputs):
    return nn.Linear(inputs, outputs, dtype=torch.float64)


def test_ways_to_write_a_time_embedding():
    first, last = linear(3, 8), linear(8, 3)
    frequencies = torch.rand(4, dtype=torch.float64)
    into = linear(8, 8)

    def ddpm(x, t):
        arguments = t[:, None] * frequencies[None, :]
        embedding = torch.cat([torch.cos(arguments), torch.sin(arguments)], dim=-1)
        return last(torch.tanh(first(x) + into(embedding)))

    def fourier(x, t):
        projected = t.unsqueeze(-1) * frequencies.view(1, -1) * 2 * torch.pi
        return last(torch.tanh(first(x) + into(torch.cat((projected.sin(), projected.cos()), -1))))

    def polynomial(x, t):
        t = t.reshape(-1, 1)
        embedding = torch.cat((t, t**2, 1 / t, t.sqrt(), t.exp(), -t, 1 - t, torch.rsqrt(t + 1)), 1)
        return last(torch.tanh(torch.addmm(first.bias, x, first.weight.T) + into(embedding)))

    for f in (ddpm, fourier, polynomial):
        check(f)


def test_ways_to_write_a_layer():
    torch.manual_seed(0)
    a, b = linear(3, 6), linear(6, 3)
    gamma = torch.rand(6, dtype=torch.float64)
    check(lambda x, t: x @ a.weight.T[:, :3] + t[:, None])
    check(lambda x, t: b(torch.nn.functional.relu(a(x)) * gamma) - x / 2)
    check(lambda x, t: b(a(x)[:, 0:6].square().add(1).log() + gamma) * t[..., None])
    check(lambda x, t: torch.cat((a(x)[:, :2], a(x)[:, -1:]), 1))
    check(lambda x, t: torch.addcmul(x, x, t[:, None].expand(-1, 3), value=0.3))
    check(lambda x, t: x * a(x)[:, 1:4] * a(x)[:, 5:])
    check(lambda x, t: torch.cat([torch.ones_like(x[:, :1]) * t[:, None], x], 1)[:, 1:] * 2)


def test_parametrised_weights_and_evaluation_mode():
    net = nn.Sequential(weight_norm(linear(3, 9)), nn.Dropout(0.5), nn.GELU(), linear(9, 3)).eval()
    program = check(lambda x, t: net(x) + t[:, None] * 0)
    assert program.trace is not None
    with pytest.raises(Unrecognised, match="dropout: in training mode"):
        program_of(lambda x, t: net.train()(x), dtype=torch.float64)


def test_conditions():
    net = fastlik.nn.MLP(3, width=12, depth=2, condition_dim=4).double()
    nn.init.normal_(net.out.weight)
    check(lambda x, t, condition: net(x, t, condition), conditions={"condition": 4})
    check(lambda x, t, a, b: x * a[:, :1] + b.tanh() * t[:, None], conditions={"a": 2, "b": 3})


def test_layers_stay_few():
    """Elementwise operations work in place, and what is no longer needed makes room."""
    net = fastlik.nn.MLP(2, width=16, depth=6)
    nn.init.normal_(net.out.weight)
    program = program_of(net, 2)
    of_state = [buffer for buffer in program.buffers if buffer.depends == 4]
    assert len(of_state) == 4  # x, two hidden layers in turn, the output
    assert [op.code for op in program.ops if op.depends == 4] == ["linear", "function"] * 6 + ["linear"]


def refused(f, match, dim=3, dtype=torch.float32):
    with pytest.raises(Unrecognised, match=match):
        program_of(f, dim, dtype=dtype)


def test_refusals_say_why():
    a = nn.Linear(3, 3)
    convolution = nn.Conv1d(1, 1, 3, padding=1)
    refused(lambda x, t: convolution(x[:, None])[:, 0], "the index|conv1d")
    refused(lambda x, t: torch.softmax(a(x), 1), "softmax is not one of the kernels'")
    refused(lambda x, t: a(x) if t.max() > 0.5 else x, "max is not one")
    refused(lambda x, t: a(x) if bool(t[:1]) else x, "the index")
    refused(lambda x, t: a(x) * t.tolist()[0], r"reads a value of a tensor \(tolist\)")
    refused(lambda x, t: a(x) * t.mean(), "mean is not one")
    refused(lambda x, t: a(x.double().float()), "a change of precision to torch.float64")
    refused(lambda x, t: a(x.detach()), "of a value that depends on x")
    refused(lambda x, t: a(x) + x.flip(0), "flip is not one")
    refused(lambda x, t: t[:, None].expand(-1, 3), "does not depend on x")
    refused(lambda x, t: nn.functional.softplus(x, threshold=5), "a threshold other than 20")
    refused(lambda x, t: a(x) + torch.arange(11.0)[:, None], "a constant of shape")
    refused(lambda x, t: x**3, "the exponent 3")
    refused(lambda x, t: x * t, r"values of shape \(rows,\) and \(rows, features\)", dim=11)
    refused(lambda x, t: nn.functional.layer_norm(x, x.shape), "over")
    refused(lambda x, t: torch.cat((x, x), 0), "along dimension 0")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        refused(lambda x, t: a(x), "autocast is on")
    refused(lambda x, t: x * 2, "more than 1024", dim=2000)
    wide = nn.Linear(3, 5000)
    refused(lambda x, t: wide(x)[:, :3], "a layer of 5000 features")


def test_a_network_that_is_not_what_it_seemed_is_refused():
    a = nn.Linear(3, 3)
    refused(lambda x, t: a(x) * (2 if len(x) == 11 else 3), "its own result differs")


def test_errors_of_the_network_itself_pass_through():
    net = fastlik.nn.MLP(2)
    with pytest.raises(ValueError, match="this MLP takes x of shape"):
        program_of(net, 3)


def test_recognition_leaves_the_random_state_alone():
    before = torch.random.get_rng_state()
    program_of(lambda x, t: x * 2)
    assert torch.equal(torch.random.get_rng_state(), before)
