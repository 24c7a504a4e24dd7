"""The install: no torch at build time, with and without a compiler."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from sysconfig import get_path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
# pip and setuptools also run without the tools of the machine: this PATH has none of them
NO_COMPILER = {"PATH": "/nonexistent", "CXX": "", "CUDA_HOME": "/nonexistent"}


@pytest.fixture
def project(tmp_path):
    """A clean copy of what the build reads."""
    if not (ROOT / "setup.py").exists():
        pytest.skip("not a source checkout")
    folder = tmp_path / "a folder with spaces"
    folder.mkdir()
    for name in ("pyproject.toml", "setup.py", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, folder)
    built = shutil.ignore_patterns("*.so", "_build_info.json", "__pycache__")
    for name in ("csrc", "fastlik"):
        shutil.copytree(ROOT / name, folder / name, ignore=built)
    return folder


def build_wheel(project, **environment):
    """pip's outcome and the wheel, built where ``import torch`` fails."""
    no_torch = project.parent / "no_torch"
    no_torch.mkdir()
    (no_torch / "torch.py").write_text("raise ImportError('torch was imported by the build')")
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-build-isolation", "--no-deps"]
    run = subprocess.run(
        [*command, "--wheel-dir", str(project.parent / "wheels"), str(project)],
        env=os.environ | {"PYTHONPATH": str(no_torch)} | environment,
        capture_output=True,
        text=True,
    )
    return run, next(project.parent.glob("wheels/fastlik-*.whl"), None)


def native_facts(wheel):
    """What ``backends()`` says about "native" in an unpacked wheel."""
    folder = wheel.parent / "unpacked"
    ZipFile(wheel).extractall(folder)
    code = "from fastlik.ops.dispatch import backends; print(backends()['native'])"
    # -S: an editable install of this checkout would lend its native module to the wheel
    path = os.pathsep.join({get_path("purelib"), get_path("platlib")})
    run = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return run.stdout


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="no compiler")
def test_with_a_compiler(project):
    run, wheel = build_wheel(project, CUDA_HOME="/nonexistent", FASTLIK_REQUIRE_NATIVE="1")
    assert run.returncode == 0, run.stdout + run.stderr
    names = ZipFile(wheel).namelist()
    assert "fastlik/py.typed" in names
    assert any(name.startswith("fastlik/_native") for name in names)
    assert not any(name.startswith(("csrc", "tests")) for name in names)
    facts = native_facts(wheel)
    assert "'available': True" in facts and "no CUDA compiler found" in facts


def test_without_a_compiler(project):
    run, wheel = build_wheel(project, **NO_COMPILER)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "no native module (no C++ compiler found" in run.stdout + run.stderr
    assert not any(name.startswith("fastlik/_native") for name in ZipFile(wheel).namelist())
    facts = native_facts(wheel)
    assert "'available': False" in facts and "no C++ compiler found" in facts


def test_a_required_native_module_that_cannot_be_built_is_an_error(project):
    run, wheel = build_wheel(project, FASTLIK_REQUIRE_NATIVE="1", **NO_COMPILER)
    assert run.returncode != 0 and wheel is None
    assert "FASTLIK_REQUIRE_NATIVE=1, but no C++ compiler found" in run.stdout + run.stderr
