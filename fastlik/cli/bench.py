"""``fastlik bench``."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

import fastlik

from .command import FAILED, Device, Json, choose_device


def bench(
    selection: Annotated[
        list[str], typer.Argument(metavar="[PYTEST_OPTIONS]...", help="Passed on to pytest.")
    ] = [],  # noqa: B006  typer copies it
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Run the benchmarks of a source checkout.

    They measure time and error of fastlik and of its peers, side by side.  The workloads are
    fixed, so there is no --seed.  --device cpu hides the GPUs.

    `fastlik bench work-precision` draws error against network evaluations for every method and peer, as a
    table and a picture: --workload NAME ..., --method PART ..., --out FOLDER.

    \b
    Examples:
      fastlik bench
      fastlik bench -k mlp
      fastlik bench --json > benchmarks.json
      fastlik bench work-precision --workload edm_digits --out build
    """
    root = Path(fastlik.__file__).parents[1]
    if not (root / "benchmarks").is_dir():
        raise FileNotFoundError(
            "the benchmarks are part of the source checkout, not of the installed package: clone the "
            "repository and install it with `pip install -e .[bench,test]`"
        )
    visible = {} if choose_device(device).type == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
    if selection[:1] == ["work-precision"]:
        options = [*selection[1:], *(["--json"] if as_json else [])]
        command = [sys.executable, "-m", "benchmarks.work_precision", *options]
        environment = os.environ | visible | {"PYTHONPATH": str(root)}
        raise typer.Exit(FAILED if subprocess.run(command, env=environment).returncode else 0)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pytest", "benchmarks/", "--benchmark-only", *selection]
        if as_json:
            command.append(f"--benchmark-json={report}")
        outcome = subprocess.run(
            command, cwd=root, env=os.environ | visible, stdout=sys.stderr if as_json else None
        )
        if as_json and report.exists():
            typer.echo(report.read_text())
    if outcome.returncode:
        raise typer.Exit(FAILED)
