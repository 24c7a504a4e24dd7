"""The way of ode_nll and sample to the CUDA kernels, on a device whose tensors do not mix with the host's.

The kernels are their own source, executed on the memory behind those tensors.  The network is recognised on
the host, because tensors of the simulated device cannot record what is done to them, and then moved.
"""

from dataclasses import replace

import pytest
import torch

import fastlik
from fastlik.likelihood import fused
from fastlik.ops.mlp import packed_chain, recognise
from fastlik.ops.mlp.packed_chain import PackedChain
from tests.simulated.accelerator import NAME, module_to_device, to_device, waits

X = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
CONDITION = torch.randn(7, 2, generator=torch.Generator().manual_seed(1))


def model_of():
    torch.manual_seed(0)
    net = fastlik.nn.MLP(3, width=20, depth=2, condition_dim=2, time_features=8)
    torch.nn.init.normal_(net.out.weight, std=0.1)
    return fastlik.wrap(net, fastlik.VP(), "noise", time="log_snr", time_scale=-1 / 8).eval()


def moved(program):
    """The program with its numbers on the device."""

    def on_device(tensor):
        return None if tensor is None else to_device(tensor)

    return replace(
        program,
        ops=[replace(op, weight=on_device(op.weight)) for op in program.ops],
        buffers=[replace(buffer, constant=on_device(buffer.constant)) for buffer in program.buffers],
    )


@pytest.fixture
def device_kernels(emulator, monkeypatch):
    """The kernels take tensors of the simulated device."""

    def address(tensor):
        if tensor is None:
            return 0
        assert tensor.device.type == NAME
        return tensor.inner.data_ptr()

    obstacle = fused._obstacle

    def without_device(model, z, *rest):
        return "" if z.device.type == NAME else obstacle(model, z, *rest)

    def recognised(f, dim, conditions, times, dtype, device):
        host = model_of()
        program = recognise(
            lambda x, t, **given: host._evaluate(x, t, given), dim, conditions, times, dtype, X.device
        )
        return moved(program)

    monkeypatch.setattr(fused, "recognise", recognised)
    monkeypatch.setattr(packed_chain, "address", address)
    monkeypatch.setattr(fused, "_obstacle", without_device)
    monkeypatch.setattr(fused, "_by_cuda", lambda z: z.device.type == NAME)


def solve(model, x, condition, **options):
    return fastlik.ode_nll(model, x, condition={"condition": condition}, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"divergence": "hutchinson", "probes": 2},
        {"method": "rk45"},
        {"method": "rk4", "tolerance": 1e-2},
        {"precision": "fp16", "tolerance": 1e-2},
    ],
    ids=str,
)
def test_likelihoods(device_kernels, options):
    host, device = model_of(), module_to_device(model_of())
    full = {name: value for name, value in options.items() if name != "precision"}
    expected = solve(host, X, CONDITION, **full)
    actual = solve(device, to_device(X), to_device(CONDITION), **options)
    assert isinstance(next(iter(fused._CACHE[device].packed.values())), PackedChain)
    tolerance = 2e-2 if "precision" in options else 3e-3
    torch.testing.assert_close(actual.nats.inner, expected.nats, rtol=0, atol=tolerance)
    assert actual.status.inner.tolist() == [1] * 7
    assert actual.latent.device.type == NAME


def test_samples(device_kernels):
    host, device = model_of(), module_to_device(model_of())
    expected = fastlik.sample(host, (7, 3), condition={"condition": CONDITION}, tolerance=1e-5)
    actual = fastlik.sample(device, (7, 3), condition={"condition": to_device(CONDITION)}, tolerance=1e-5)
    torch.testing.assert_close(actual.inner, expected, rtol=0, atol=1e-3)


def test_the_kernels_do_not_wait_for_the_device(device_kernels):
    """So that they can be captured in graphs."""
    device = module_to_device(model_of())
    solve(device, to_device(X), to_device(CONDITION))
    kernel = fused.Fused(
        device,
        fastlik.likelihood.problem.ADAMS_CLOCK,
        next(iter(fused._CACHE[device].packed.values())),
        {"condition": to_device(CONDITION)},
    )
    table = next(value for key, value in fused._CACHE[device].made.items() if key[0] == "table")
    u = table.breaks[0].item(), table.breaks[-1].item()
    z, rows = to_device(X), to_device(torch.arange(7))
    tolerance = fastlik.solvers.adaptive.Tolerance(0.0, 4e-3, 3e-3)
    waits.clear()
    end, _ = kernel.integrate_adams(z, *u, tolerance, None, rows, order=4, first_step=0.02, max_steps=99)
    assert end.status.inner.tolist() == [1] * 7
    assert not waits
