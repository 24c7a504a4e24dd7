"""What the commands share: options, the model, output, and the report of a failure."""

from __future__ import annotations

import functools
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import fastlik

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON; all else goes to stderr.")]
Seed = Annotated[int, typer.Option(help="Seed of all random draws.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...  [cuda where there is one]")]
RunPath = Annotated[
    Path, typer.Argument(metavar="RUN", help="Run folder of `fastlik train`, or the model.safetensors in it.")
]
Settings = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Any other argument of the Python function, as TOML.  Repeatable."
    ),
]

DONE, FAILED, NOT_CONVERGED, INTERRUPTED = 0, 1, 3, 130

_EXPECTED = (ValueError, TypeError, OSError, ImportError, ArithmeticError)


def reported(command: Callable[..., None]) -> Callable[..., None]:
    """The command with failures as one line on stderr and an exit code, warnings as lines too.

    Wrong usage (``typer.BadParameter``, code 2) and ``typer.Exit`` pass through; with FASTLIK_DEBUG=1
    so does everything else but Ctrl-C.
    """

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                command(*arguments, **options)
            except (typer.Exit, typer.BadParameter):
                raise
            except KeyboardInterrupt:
                raise typer.Exit(INTERRUPTED) from None
            except Exception as error:
                if os.environ.get("FASTLIK_DEBUG") == "1":
                    raise
                typer.echo(f"fastlik: {_describe(error)}", err=True)
                raise typer.Exit(FAILED) from None

    return run


def _describe(error: Exception) -> str:
    if isinstance(error, _EXPECTED):
        return str(error)
    return f"{type(error).__name__}: {error} (FASTLIK_DEBUG=1 shows where)"


def _show_warning(message: Warning | str, *_: Any) -> None:
    typer.echo(f"fastlik: warning: {message}", err=True)


def emit(as_json: bool, result: dict, text: str) -> None:
    """Print ``result`` as JSON, or ``text``."""
    typer.echo(json.dumps(result, indent=1, allow_nan=False) if as_json else text)


def choose_device(name: str | None) -> torch.device:
    """The device of that name, by default cuda where there is one; ValueError where it is not there."""
    available = torch.cuda.is_available()
    try:
        device = torch.device(name or ("cuda" if available else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"--device {name}: no such device; try cpu or cuda") from error
    if device.type == "cuda" and not available:
        raise ValueError(f"--device {name}: PyTorch sees no GPU; `fastlik doctor` shows what it sees")
    return device


def load_model(path: Path, device: str | None) -> fastlik.ScoreModel:
    """The model of a run on the device."""
    return fastlik.load(path).to(choose_device(device))


def run_folder(path: Path) -> Path:
    """The folder of a run that is named by its folder or its checkpoint."""
    return path if path.is_dir() else path.parent


def value_range(model: fastlik.ScoreModel) -> tuple[float, float] | None:
    """(low, high) of the discrete data that a model was trained on."""
    return model.quantisation and model.quantisation.range


def check_output(path: Path, *suffixes: str) -> None:
    """Make the folder of an output file, and find out before any work whether it can be written to.

    Raises typer.BadParameter for another suffix, OSError where nothing can be written.
    """
    if path.suffix not in suffixes:
        raise typer.BadParameter(f"{path.name!r} must end in {' or '.join(suffixes)}", param_hint="--out")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OSError(f"cannot write {path} ({error.strerror}): choose another --out") from error
