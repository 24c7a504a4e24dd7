"""The CUDA kernels of plain MLPs, their own source, executed on the CPU (csrc/cuda/emulation.h)."""

import importlib.util
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from fastlik.ops.mlp import packed_chain as chain

CSRC = Path(__file__).parents[1] / "csrc"


@pytest.fixture(scope="session")
def emulated_module(tmp_path_factory):
    """The module that runs them."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    pybind11 = pytest.importorskip("pybind11")
    target = tmp_path_factory.mktemp("emulated") / "emulated_chain.so"
    includes = [CSRC, CSRC / "include", pybind11.get_include(), sysconfig.get_path("include")]
    command = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-o", str(target)]
    command += [f"-I{path}" for path in includes]
    source = CSRC.parent / "tests" / "ops" / "mlp" / "emulated_chain.cpp"
    run = subprocess.run([*command, str(source)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    spec = importlib.util.spec_from_file_location("emulated_chain", target)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def emulator(emulated_module, monkeypatch):
    """CPU tensors go to the CUDA kernels; one processor, blocks of two groups."""

    def call(function, tensor, *arguments):
        assert getattr(emulated_module, f"{function}_cuda")(*arguments, 0) == 0

    monkeypatch.setattr(chain, "call_native", call)
    monkeypatch.setattr(chain, "native_module", lambda: emulated_module)
    monkeypatch.setattr(chain, "_device", lambda device: chain._Device(1, 160_000))
    emulated_module.set_groups(2)
    return emulated_module
