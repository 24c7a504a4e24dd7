"""``fastlik doctor``."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import typer

import fastlik
from fastlik.testing import GaussianMixture

from .command import FAILED, Device, Json, Seed, choose_device, emit

COMPILERS = ("g++", "clang++", "nvcc", "ninja")
EXTRAS = {
    "safetensors": "train", "tqdm": "train", "typer": "cli", "matplotlib": "plot", "scikit-learn": "data",
    "scipy": "bench", "torchdiffeq": "bench", "pytest-benchmark": "bench",
}  # fmt: skip
SELF_TEST_ERROR = 1e-5
"""Nats; the self-test asks for 1e-6 nats per dimension in three dimensions."""


def doctor(seed: Seed = 0, device: Device = None, as_json: Json = False) -> None:
    """Show what is installed, built and chosen here.

    Compares a likelihood with its closed form by every backend.  Ends with code 1 where something
    that should work does not.

    \b
    Examples:
      fastlik doctor
      fastlik doctor --device cuda
      fastlik doctor --json > doctor.json
    """
    backends = fastlik.backends()
    place = choose_device(device)
    testable = ["torch"]
    if backends["native"]["available"] and (place.type == "cpu" or "cuda_archs" in backends["native"]):
        testable.append("native")
    tests = {name: _self_test(name, seed, place) for name in testable}
    broken = [name for name, test in tests.items() if not test["passed"]]
    # a build that was made and cannot be loaded is a fault; one that was never made is not
    if not backends["native"]["available"] and "compiler" in backends["native"]:
        broken.append("native")
    report = {
        "versions": _versions(),
        "cpu": {"threads": torch.get_num_threads(), "cores": os.cpu_count(), "machine": platform.machine()},
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "backends": backends,
        "compilers": {name: _first_line(name) for name in COMPILERS},
        "packages": {name: _version(name) for name in EXTRAS},
        "self_test": tests,
        "ok": not broken,
    }
    emit(as_json, report, _text(report))
    if broken:
        typer.echo(f"fastlik: broken: {', '.join(broken)}", err=True)
        raise typer.Exit(FAILED)


def _self_test(backend: str, seed: int, device: torch.device) -> dict[str, Any]:
    """The likelihood of a Gaussian by a backend, against the closed form; float64."""
    covariance = [[1.0, 0.3, 0.0], [0.3, 0.5, 0.1], [0.0, 0.1, 0.2]]
    gaussian = GaussianMixture([1.0], [[0.5, -1.0, 0.2]], [covariance])
    schedule = fastlik.VP()
    model = gaussian.model(schedule, moments=True).to(device)
    x = gaussian.sample(8, seed)
    t = schedule.t_data
    exact = -gaussian.log_density(x, schedule.alpha(t), schedule.sigma(t))
    try:
        result = fastlik.ode_nll(model, x.to(device), tolerance=1e-6, backend=backend)
    except Exception as error:  # whatever it is, it is what the doctor looks for
        return {"passed": False, "why": f"{type(error).__name__}: {error}"}
    error = (result.nats.cpu() - exact).abs().max().item()
    passed = error <= SELF_TEST_ERROR  # False for NaN
    return {"passed": passed, "error_nats": error if passed else str(error), "why": ""}


def _versions() -> dict[str, str | None]:
    return {
        "fastlik": fastlik.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "platform": platform.platform(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _first_line(program: str) -> str | None:
    """What ``program --version`` says of itself, or None where it is not on PATH."""
    path = shutil.which(program)
    if path is None:
        return None
    outcome = subprocess.run([path, "--version"], capture_output=True, text=True)
    lines = [line for line in outcome.stdout.splitlines() if any(map(str.isdigit, line))]
    # nvcc begins with a copyright
    return next((line for line in lines if "Copyright" not in line and "Built" not in line), path).strip()


def _text(report: dict[str, Any]) -> str:
    cpu, native = report["cpu"], report["backends"]["native"]
    isa = f", {native['isa']} of {', '.join(native['isas'])} chosen" if "isa" in native else ""
    sections = {
        "versions": {name: value or "none" for name, value in report["versions"].items()},
        "hardware": {
            "cpu": f"{cpu['machine']}, {cpu['threads']} threads on {cpu['cores']} cores{isa}",
            "gpu": ", ".join(report["gpus"]) or "none",
        },
        "backends": {name: _backend(facts) for name, facts in report["backends"].items()},
        "compilers": {name: line or "not on PATH" for name, line in report["compilers"].items()},
        "packages": {
            name: found or f"missing: pip install fastlik[{EXTRAS[name]}]"
            for name, found in report["packages"].items()
        },
        "self-test": {
            name: f"ok, {test['error_nats']:.1e} nats from the closed form"
            if test["passed"]
            else f"FAILED: {test['why'] or test['error_nats']}"
            for name, test in report["self_test"].items()
        },
    }
    lines = []
    for title, rows in sections.items():
        lines += ["", title, *(f"  {name:<18}{text}" for name, text in rows.items())]
    return "\n".join(lines[1:])


def _backend(facts: dict[str, Any]) -> str:
    if not facts["available"]:
        return f"no: {facts['why']}"
    if "compiler" not in facts:
        return "yes"
    cuda = f"CUDA for {', '.join(facts['cuda_archs'])}" if "cuda_archs" in facts else "no CUDA"
    why = f" ({facts['why_no_cuda']})" if "why_no_cuda" in facts else ""
    return f"yes, by {facts['compiler']}; {cuda}{why}"
