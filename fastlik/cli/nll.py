"""``fastlik nll``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

import fastlik
from fastlik.likelihood.inputs import parameter_dtype

from . import sources
from .command import (
    NOT_CONVERGED,
    Device,
    Json,
    RunPath,
    Seed,
    Settings,
    check_output,
    emit,
    load_model,
)
from .config import arguments, merged, parse_settings

Method = Literal["auto", "adams", "rk45", "tsit5", "rk4", "heun", "euler"]
Dequantizer = Literal["uniform", "truncated_normal"]

# parameters of fastlik.ode_nll that text cannot give
_HIDDEN = ("model", "x", "condition", "rows")


def nll(
    run: RunPath,
    data: Annotated[str, typer.Argument(metavar="DATA", help=f"{sources.NAMES}.")],
    *,
    split: Annotated[sources.Split | None, typer.Option(help="Of built-in data.  [test]")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first rows, this many.")] = None,
    method: Annotated[Method, typer.Option(help="Solver of the ODE.")] = "auto",
    tolerance: Annotated[float, typer.Option(help="Error aimed at, nats per dimension.")] = 1e-3,
    probes: Annotated[int, typer.Option(help="Hutchinson probes a row.")] = 1,
    dequantize: Annotated[
        Dequantizer | None, typer.Option(help="Noise in the bins of discrete data.  [uniform for integers]")
    ] = None,
    bins: Annotated[int | None, typer.Option(help="Levels of discrete data.  [as trained]")] = None,
    data_range: Annotated[
        tuple[float, float] | None, typer.Option(help="What the levels are mapped to.  [as trained]")
    ] = None,
    importance: Annotated[int, typer.Option(help="Dequantisation draws a row.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Also write all rows: result.json or result.npz.")] = None,
    settings: Settings = [],  # noqa: B006  typer copies it
    seed: Seed = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Evaluate the likelihood of data by the ODE.

    Prints the mean negative log-likelihood in bits/dim and in nats, lower is better, +- its standard error.
    Ends with code 3 where rows did not converge; they are null in the JSON and left out of the mean.

    \b
    Examples:
      fastlik nll runs/digits digits --probes 2
      fastlik nll runs/digits digits --limit 100 --tolerance 1e-4 --out nll.json
      fastlik nll runs/images images.npz:test --importance 10 --json > nll.json
      fastlik nll runs/digits digits --set target_stderr=0.5
      fastlik nll runs/board checkerboard --method rk4 --set divergence=exact --set prior=standard
    """
    if out is not None:
        check_output(out, ".json", ".npz")
    options = {
        "method": method, "tolerance": tolerance, "probes": probes, "dequantize": dequantize, "bins": bins,
        "data_range": data_range, "importance": importance, "seed": seed, "progress": True,
    }  # fmt: skip
    options = merged(options, arguments(fastlik.ode_nll, parse_settings(settings), _HIDDEN))
    model = load_model(run, device)
    x = sources.load(data, split or ("test" if data in sources.BUILT_IN else None))[:limit]
    if tuple(x.shape[1:]) != model.event_shape:
        raise ValueError(
            f"{data} holds rows of shape {tuple(x.shape[1:])}; {run} was trained on rows of shape "
            f"{model.event_shape}"
        )
    if x.is_floating_point():
        x = x.to(parameter_dtype(model))
    elif options["dequantize"] is None:
        options["dequantize"] = "uniform"
    x = x.to(next(model.parameters()).device)
    try:
        result = fastlik.ode_nll(model, x, **options)
    except fastlik.EvaluationInterrupted as error:
        _keep(error.partial, len(x), out)
        raise
    if out is not None:
        result.save(out)
    emit(as_json, result.to_dict(), _summary(result, out))
    if not bool(result.converged.all()):
        raise typer.Exit(NOT_CONVERGED)


def _keep(partial: fastlik.NLL, rows: int, out: Path | None) -> None:
    """Save what an interrupted evaluation has."""
    kept = "; with --out they would be kept" if out is None else f" and kept in {partial.save(out)}"
    typer.echo(f"fastlik: interrupted; {len(partial)} of {rows} rows are finished{kept}", err=True)


def _summary(result: fastlik.NLL, out: Path | None) -> str:
    mean, good = result.mean(), result.converged
    failed = len(result) - mean.rows
    lines = [
        f"bits/dim        {mean.bits_per_dim:.4f} +- {mean.bits_per_dim_stderr:.4f}",
        f"nats            {mean.nats:.4f} +- {mean.nats_stderr:.4f}",
        f"rows            {mean.rows} of {result.dimensions} dimensions",
        f"probe noise     {result.stderr[good].mean():.2g} nats a row, within the +- above",
        f"discretisation  {result.discretisation[good].mean():.2g} nats a row, estimated",
        f"evaluations     {result.nfe.double().mean():.0f} of the network a row",
        f"failed rows     {failed}",
    ]
    if out is not None:
        lines.append(f"all rows        {out}")
    return "\n".join(lines)
