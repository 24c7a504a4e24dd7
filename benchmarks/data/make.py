"""Make the benchmarks' networks, inputs and reference answers:

    python -m benchmarks.data.make [NAME ...]

A network that is there already is kept; remove its model.safetensors to train it anew.
The references are integrated in float64 by scipy's DOP853 at a tight tolerance and confirmed by
``fastlik.ode_nll`` at its own tight tolerance; both figures are printed.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from scipy.integrate import solve_ivp
from torch import Tensor, nn

import fastlik
from benchmarks import workloads
from benchmarks.flow import Flow, NoiseOf, standard_nll
from benchmarks.ring import RingScore
from fastlik.derivatives.probes import Stream, probe, uniform
from fastlik.likelihood.dequantise import Quantisation
from fastlik.testing import GaussianMixture

HERE = Path(__file__).parent
LEVELS = 17


def network(name: str, data: Tensor, net: object = None, **options: object) -> fastlik.ScoreModel:
    """The trained model, kept as the two files of its run folder that ``fastlik.load`` reads."""
    if not (HERE / name / "model.safetensors").exists():
        with tempfile.TemporaryDirectory() as folder:
            fastlik.train(data, schedule="vp", out=folder, **options)
            (HERE / name).mkdir(exist_ok=True)
            for file in ("config.json", "model.safetensors"):
                shutil.copy(Path(folder) / file, HERE / name / file)
    return fastlik.load(HERE / name, net=net)


def integrate(net: nn.Module, x: Tensor, vectors: Tensor, tolerance: float) -> Tensor:
    """-log p (B,) in nats: DOP853 over log(sigma / alpha), trace = sum over vectors (K, *x) of v'Jv."""
    (velocity, span), shape = Flow(net.double()).clocked("log_sigma"), x.shape

    def slope(u: float, state: np.ndarray) -> np.ndarray:
        z = torch.from_numpy(state[: x.numel()]).reshape(shape).requires_grad_()
        with torch.enable_grad():
            dz = velocity(torch.tensor(u, dtype=torch.float64), z)
            (products,) = torch.autograd.grad(dz, z, vectors, is_grads_batched=True)
        change = (products * vectors).flatten(2).sum((0, 2))
        return np.concatenate([dz.detach().flatten().numpy(), change.numpy()])

    start = np.concatenate([x.double().flatten().numpy(), np.zeros(len(x))])
    end = solve_ivp(slope, span, start, method="DOP853", rtol=tolerance, atol=tolerance)
    final = torch.from_numpy(end.y[:, -1])
    return standard_nll(final[: x.numel()].reshape(shape), final[x.numel() :])


def save_reference(
    name: str,
    net: nn.Module,
    x: Tensor,
    model: fastlik.ScoreModel | None = None,
    *,
    exact_rows: int | None = None,
    exact_tolerance: float = 1e-8,
) -> None:
    """x, one Rademacher probe a row, and -log p by exact trace and with that probe.

    ``model`` is the one that ``net`` is the noise prediction of, if not net itself.
    """
    rows = torch.arange(len(x))
    signs = probe("rademacher", 0, rows, 0, 0, x.double())
    size = x[0].numel()
    head = x[:exact_rows]
    tensors = {"x": x, "probe": signs.float()}
    net = net.double()
    if model is None:
        model = fastlik.wrap(net, fastlik.VP(), "noise", time="log_snr", time_scale=-1 / 8)
    basis = torch.eye(size, dtype=torch.float64).reshape(size, 1, *x.shape[1:]).expand(-1, *head.shape)
    for kind, part, vectors, tolerance, options in (
        ("frozen", x, signs[None], 1e-8, {"divergence": "hutchinson", "probe_mode": "frozen"}),
        ("exact", head, basis, exact_tolerance, {"divergence": "exact"}),
    ):
        answer = integrate(net, part, vectors, tolerance)
        ours = fastlik.ode_nll(
            model, part.double(), prior="standard", tolerance=100 * tolerance, **options
        ).nats
        gap = (ours - answer).abs() / size
        print(f"{name} {kind}: fastlik differs by {gap.mean():.1e} nats/dim, at most {gap.max():.1e}")
        tensors[kind] = answer
    path = HERE / name / "reference.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)


def ring() -> None:
    save_reference("ring", RingScore(GaussianMixture.ring()), points())


def mlp() -> None:
    data = GaussianMixture.ring().sample(50_000).float()
    net = network("mlp", data, steps=4000, batch_size=256).net
    save_reference("mlp", net, points())


def unet() -> None:
    train, test = fastlik.data.digits()
    options = {"bins": LEVELS, "dequantize": "uniform", "steps": 3000}
    net = network("unet", train, model=fastlik.nn.UNet(1, width=16), **options).net
    save_reference("unet", net, dequantised(test[:16]).float(), exact_rows=8, exact_tolerance=1e-6)


def dequantised(images: Tensor) -> Tensor:
    """Digits with uniform noise, float64."""
    noise = uniform(0, Stream.DEQUANTISE, torch.arange(len(images)), 0, 0, 64).reshape(images.shape)
    return Quantisation(LEVELS, -1.0, 1.0).continuous(images, noise)


def digits_as_vectors() -> tuple[Tensor, Tensor]:
    """(N, 64) dequantised: for training, and sixteen for the test."""
    train, test = (dequantised(images).flatten(1) for images in fastlik.data.digits())
    return train, test[:16]


def oracle(name: str, rows: int) -> None:
    data = workloads.mixture(name)
    model = data.model(fastlik.VP())
    save_reference(name, NoiseOf(model), data.sample(rows, 1), model)


def mixture2() -> None:
    oracle("mixture2", 64)


def mixture16() -> None:
    oracle("mixture16", 16)


def mixture64() -> None:
    oracle("mixture64", 8)


def edm_ring() -> None:
    data = GaussianMixture.ring().sample(50_000).float()
    model = network("edm_ring", data, predicts="edm", steps=4000, batch_size=256).double()
    save_reference("edm_ring", NoiseOf(model), points()[:64], model)


def edm_digits() -> None:
    train, test = digits_as_vectors()
    model = network("edm_digits", train.float(), predicts="edm", steps=6000, batch_size=256).double()
    save_reference("edm_digits", NoiseOf(model), test, model)


def ddpm_digits() -> None:
    train, test = digits_as_vectors()
    made = {"model": workloads.ddpm_model(), "net": workloads.ddpm_model()}
    model = network("ddpm_digits", train.float(), steps=6000, batch_size=256, **made).double()
    save_reference("ddpm_digits", NoiseOf(model), test, model)


def points() -> Tensor:
    """The test points of both 2-D workloads."""
    return GaussianMixture.ring().sample(512, seed=1).float()


if __name__ == "__main__":
    for make in (ring, mlp, unet, mixture2, mixture16, mixture64, edm_ring, edm_digits, ddpm_digits):
        if not sys.argv[1:] or make.__name__ in sys.argv[1:]:
            make()
