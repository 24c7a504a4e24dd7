"""The kernel of plain MLPs on a GPU against the float64 reference on the CPU."""

import pytest
import torch
from torch import nn

import fastlik
from fastlik.ops.dispatch import call_native
from fastlik.ops.mlp import Divergence, Ode, recognise, reference
from fastlik.ops.mlp.chain import PackedChain, chain_of
from fastlik.ops.mlp.grid import runge_kutta
from fastlik.solvers.tableau import RK4

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

ACCURACY = {"fp16": 5e-3, "fp16x2": 1e-5, "fp32": 1e-5}


def ode(u):
    return Ode(0.1 + u, 1 + 0.2 * u.sin(), -0.5 * u, 0.7 + 0.1 * u)


@pytest.mark.parametrize("precision", ACCURACY)
@pytest.mark.parametrize("rows", [0, 1, 9, 1000, 20_000])
@pytest.mark.parametrize(("dim", "width", "depth"), [(2, 64, 3), (2, 128, 4), (13, 100, 2)])
def test_states_and_divergences(dim, width, depth, rows, precision):
    torch.manual_seed(0)
    net = fastlik.nn.MLP(dim, width=width, depth=depth).double()
    nn.init.normal_(net.out.weight, std=0.1)
    times = torch.linspace(0, 1, 5, dtype=torch.float64)
    program = recognise(net, dim, {}, times, torch.float64, torch.device("cpu"))
    table = runge_kutta(ode, times, RK4.a, RK4.b, RK4.c)
    z = torch.randn(rows, dim)
    chain = chain_of(recognise(net.cuda(), dim, {}, times, torch.float64, torch.device("cuda")))
    packed = PackedChain(chain, torch.device("cuda"), precision)
    latent, q, first_bad = packed.integrate_grid(
        z.cuda(), {}, table, Divergence("exact"), torch.arange(rows, device="cuda")
    )
    judged = slice(max(0, rows - 64), rows)  # the last rows of the last block too
    expected = reference.integrate_grid(program, z[judged].double(), {}, table, None, True)
    tolerance = {"rtol": ACCURACY[precision], "atol": ACCURACY[precision]}
    torch.testing.assert_close(latent[judged].cpu().double(), expected[0], **tolerance)
    torch.testing.assert_close(q[judged].cpu(), expected[1], **tolerance)
    assert bool((first_bad == -1).all())


def test_runs_on_the_callers_stream_and_in_graphs():
    net = fastlik.nn.MLP(2, width=64, depth=3).cuda()
    times = torch.linspace(0, 1, 5, dtype=torch.float64)
    chain = chain_of(recognise(net, 2, {}, times, torch.float32, torch.device("cuda")))
    packed = PackedChain(chain, torch.device("cuda"))
    z, rows = torch.randn(100, 2, device="cuda"), torch.arange(100, device="cuda")
    table = runge_kutta(ode, times, RK4.a, RK4.b, RK4.c)
    arguments, results, kept = packed.arguments(z, {}, table, Divergence("exact"), rows)
    eager = packed.integrate_grid(z, {}, table, Divergence("exact"), rows)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results[1].zero_()
        call_native("mlp_chain", z, *arguments)
    graph.replay()
    assert torch.equal(results[0], eager[0]) and torch.equal(results[1], eager[1])
