"""The command line in this process, and a small run to try the commands on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("typer")
pytest.importorskip("safetensors")

from typer.testing import CliRunner

from fastlik.cli.app import app

ROOT = Path(__file__).parents[2]
SMALL = ["--batch-size", "16", "--set", "model.width=8", "--set", "model.depth=1", "--device", "cpu"]


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="fastlik")


@pytest.fixture
def cli():
    """cli("train", ...) -> exit_code, stdout, stderr."""
    return invoke


@pytest.fixture
def start():
    """start("train", ...) -> a process of its own."""

    def start(*arguments):
        code = "from fastlik.cli import main; main()"
        return subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )

    return start


@pytest.fixture
def small():
    """Options of a training that takes a second."""
    return SMALL


@pytest.fixture(scope="session")
def ring_run(tmp_path_factory):
    """The folder of a short run on the ring, not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "ring"
    result = invoke("train", "ring", "--steps", "20", "--out", folder, *SMALL)
    assert result.exit_code == 0, result.stderr
    return folder


@pytest.fixture(scope="session")
def image_run(tmp_path_factory):
    """The folder of a short run on levels 0 .. 4 of 4 x 4 pixels, which the file test.npy holds too."""
    import numpy as np

    folder = tmp_path_factory.mktemp("images")
    levels = np.random.default_rng(0).integers(5, size=(12, 1, 4, 4))
    np.save(folder / "test.npy", levels)
    options = [
        "--bins",
        "5",
        "--steps",
        "20",
        "--batch-size",
        "8",
        "--set",
        "model.width=8",
        "--device",
        "cpu",
    ]
    result = invoke("train", folder / "test.npy", *options, "--out", folder / "run")
    assert result.exit_code == 0, result.stderr
    return folder
