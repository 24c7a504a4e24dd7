"""``fastlik plot``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import fastlik
from fastlik.training.folder import METRICS
from fastlik.training.log import read_history

from . import sources
from .command import Device, Json, RunPath, Seed, emit, load_model, run_folder, value_range
from .config import read_toml
from .train import RECORD

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot(
    run: RunPath,
    n: Annotated[int, typer.Option("-n", min=1, help="Images in the sample grid.")] = 64,
    seed: Seed = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Draw a run, as PNG files in its folder.

    training_curve.png; samples.png of images; density.png of data in the plane, beside the true density of
    checkerboard and ring; nll_histogram.png where the folder holds the nll.json of `fastlik nll --out`.

    \b
    Examples:
      fastlik plot runs/digits
      fastlik nll runs/digits digits --out runs/digits/nll.json && fastlik plot runs/digits -n 100
    """
    model, folder = load_model(run, device), run_folder(run)
    files = []
    for name, figure in _figures(model, folder, n, seed):
        path = folder / f"{name}.png"
        figure.savefig(path)
        files.append(str(path))
    emit(as_json, {"files": files}, "\n".join(files))


def _figures(model: fastlik.ScoreModel, folder: Path, n: int, seed: int) -> Iterator[tuple[str, Figure]]:
    from fastlik import plot as draw

    history = read_history(folder / METRICS, last_step=sys.maxsize)
    if history:
        yield "training_curve", draw.training_curve(history)
    if len(model.event_shape) == 3:
        yield "samples", draw.image_grid(fastlik.sample(model, n, seed=seed), value_range(model))
    if model.event_shape == (2,):
        record = folder / RECORD
        name = read_toml(record).get("data") if record.exists() else None
        yield "density", draw.density_heatmap(model, truth=sources.log_density(name))
    if (folder / "nll.json").exists():
        yield "nll_histogram", draw.nll_histogram(json.loads((folder / "nll.json").read_text()))
