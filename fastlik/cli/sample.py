"""``fastlik sample``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import typer
from torch import Tensor

import fastlik

from .command import (
    NOT_CONVERGED,
    Device,
    Json,
    RunPath,
    Seed,
    check_output,
    emit,
    load_model,
    run_folder,
    value_range,
)

Method = Literal["auto", "adams", "rk45", "tsit5", "sde"]


def sample(
    run: RunPath,
    n: Annotated[int, typer.Option("-n", min=1, help="How many.")] = 64,
    method: Annotated[Method, typer.Option(help="adams, rk45, tsit5: ODE; sde: reverse SDE.")] = "auto",
    tolerance: Annotated[float, typer.Option(help="Of the ODE, nats per dimension.")] = 1e-3,
    steps: Annotated[int, typer.Option(help="Of the SDE.")] = 256,
    out: Annotated[
        Path | None, typer.Option(help="samples.npz, or samples.png to look at.  [RUN/samples.npz]")
    ] = None,
    seed: Seed = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Draw samples from a trained model.

    A .npz file holds the array "samples": integer levels where the model was trained on discrete data.  A
    .png shows images as a grid and vectors by their first two coordinates.

    \b
    Examples:
      fastlik sample runs/digits -n 64 --out digits.png
      fastlik sample runs/digits -n 1000 --method sde --steps 500 --out digits.npz
      fastlik sample runs/board -n 5000 --seed 1 --json
    """
    out = out or run_folder(run) / "samples.npz"
    check_output(out, ".npz", ".png")
    model = load_model(run, device)
    samples = fastlik.sample(model, n, method=method, tolerance=tolerance, steps=steps, seed=seed).cpu()
    good = samples.flatten(1).isfinite().all(1)
    failed = (~good).nonzero().flatten().tolist()
    _write(out, samples[good], model)
    result = {"samples": str(out), "shape": [n - len(failed), *model.event_shape], "failed_rows": failed}
    emit(as_json, result, f"{out}: {n - len(failed)} samples of shape {model.event_shape}")
    if failed:
        raise typer.Exit(NOT_CONVERGED)


def _write(out: Path, samples: Tensor, model: fastlik.ScoreModel) -> None:
    if out.suffix == ".npz":
        if model.quantisation is not None:
            samples = model.quantisation.nearest(samples)
        np.savez(out, samples=samples.numpy())
        return
    from fastlik import plot

    images = samples.dim() == 4
    figure = plot.image_grid(samples, value_range(model)) if images else plot.scatter(samples)
    figure.savefig(out)
