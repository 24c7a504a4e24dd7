"""``fastlik train``."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from torch import nn

import fastlik
from fastlik.checks import check_choice
from fastlik.nn import MLP, DiT, UNet
from fastlik.schedule import named
from fastlik.training.checkpoint import CONFIG, write_text
from fastlik.training.folder import RunFolder

from . import sources
from .command import Device, Json, Settings, choose_device, emit
from .config import Table, arguments, merged, parse_settings, read_toml, to_toml

RECORD = "train.toml"
"""The effective configuration of a run, which ``--config`` takes."""

Schedule = Literal["vp", "subvp", "ve", "cosine", "edm", "rectifiedflow", "logsnr"]
Prediction = Literal["noise", "score", "x0", "v", "velocity", "edm"]
Weighting = Literal["likelihood", "uniform"]
TimeSampling = Literal["importance", "uniform"]

# parameters of fastlik.train that text cannot give, or that are arguments here
_HIDDEN = ("data", "condition", "out")
# what belongs to one call and not to the run
_PASSING = ("resume", "device", "progress")
# by the number of an event's dimensions; the first is the default
_NETWORKS = {1: {"mlp": MLP}, 3: {"unet": UNet, "dit": DiT}}


def _default(name: str) -> str:
    """For the help; the options themselves are None where not given, so that --config can decide."""
    return f"  [{inspect.signature(fastlik.train).parameters[name].default}]"


def train(
    data: Annotated[str | None, typer.Argument(metavar="DATA", help=f"{sources.NAMES}.")] = None,
    *,
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    config: Annotated[
        Path | None, typer.Option(help="TOML file of arguments, such as the train.toml of a run.")
    ] = None,
    schedule: Annotated[Schedule | None, typer.Option(help=f"Noise schedule.{_default('schedule')}")] = None,
    predicts: Annotated[
        Prediction | None, typer.Option(help=f"What the network predicts.{_default('predicts')}")
    ] = None,
    order: Annotated[
        int | None, typer.Option(min=1, max=3, help=f"Of score matching: 1, 2 or 3.{_default('order')}")
    ] = None,
    init: Annotated[
        Path | None, typer.Option(help="Folder of a run whose averaged weights this one starts from.")
    ] = None,
    weighting: Annotated[
        Weighting | None, typer.Option(help=f"Of the loss over time.{_default('weighting')}")
    ] = None,
    time_sampling: Annotated[
        TimeSampling | None, typer.Option(help=f"Of the loss.{_default('time_sampling')}")
    ] = None,
    steps: Annotated[int | None, typer.Option(help=f"Updates in all.{_default('steps')}")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows an update.  [64 images, 512 vectors]")] = None,
    lr: Annotated[float | None, typer.Option(help=f"Adam's learning rate.{_default('lr')}")] = None,
    bins: Annotated[int | None, typer.Option(help="Levels of discrete data (256 for 8-bit images).")] = None,
    data_range: Annotated[
        tuple[float, float] | None, typer.Option(help="What the levels are mapped to.  [-1 1]")
    ] = None,
    settings: Settings = [],  # noqa: B006  typer copies it
    seed: Annotated[
        int | None, typer.Option(help=f"Of weights, batches, times and noise.{_default('seed')}")
    ] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Train a score model for likelihood.

    The same command again resumes an interrupted run; more --steps continue a finished one.  Values come
    from options and --set, then --config, then the defaults of fastlik.train.  The tables "model" (of
    fastlik.nn; for images its name is "unet" or "dit") and "schedule" hold the arguments of the network and
    of the noise schedule.

    \b
    Examples:
      fastlik train digits --out runs/digits
      fastlik train images.npz:train --bins 256 --steps 50000 --out runs/images
      fastlik train checkerboard --schedule ve --set lr=2e-3 --set model.width=256 --out runs/board
      fastlik train mixture1d --schedule ve --out runs/first
      fastlik train mixture1d --order 2 --init runs/first --out runs/second
      fastlik train swissroll --set schedule.name=ve --set schedule.sigma_max=10 --out runs/roll
      fastlik train --config runs/digits/train.toml --seed 1 --out runs/digits-1
    """
    options = {
        "schedule": schedule, "predicts": predicts, "order": order, "model": init and str(init),
        "weighting": weighting, "time_sampling": time_sampling,
        "steps": steps, "batch_size": batch_size, "lr": lr, "bins": bins, "data_range": data_range,
        "seed": seed, "device": device,
    }  # fmt: skip
    given = merged(
        read_toml(config) if config else {},
        parse_settings(settings),
        {key: value for key, value in options.items() if value is not None},
    )
    data = data or given.get("data")
    if data is None:
        raise typer.BadParameter(f"missing: {sources.NAMES}", param_hint="DATA")
    if data == "digits":
        given.setdefault("bins", sources.DIGITS_BINS)
    effective = _effective({key: value for key, value in given.items() if key != "data"})
    choose_device(effective["device"])
    rows = sources.load(data)
    record = to_toml({"data": sources.portable(data), **_recorded(effective)})

    folder = RunFolder(out).path
    if not (folder / CONFIG).exists():
        write_text(folder / RECORD, record)
    run = fastlik.train(rows, out=out, **_built(effective, tuple(rows.shape[1:])))
    write_text(folder / RECORD, record)  # a continued run has more steps

    steps, loss = effective["steps"], run.history[-1]["loss"] if run.history else None
    result = {"run": str(out), "steps": steps, "loss": loss, "config": _recorded(effective)}
    emit(as_json, result, f"{out}: {steps} steps" + ("" if loss is None else f", loss {loss:.4f}"))


def _defaults() -> Table:
    """Of the parameters of fastlik.train that text can give."""
    parameters = inspect.signature(fastlik.train).parameters
    return {name: p.default for name, p in parameters.items() if name not in _HIDDEN}


def _effective(given: Table) -> Table:
    """All arguments of fastlik.train, the given ones checked; "model" and "schedule" may be tables."""
    tables = {key: given[key] for key in ("model", "schedule") if isinstance(given.get(key), dict)}
    plain = {key: value for key, value in given.items() if key not in tables}
    return {**_defaults(), **arguments(fastlik.train, plain, _HIDDEN), **tables}


def _recorded(effective: Table) -> Table:
    """What makes the run what it is; None is told from a default that is None by being written."""
    defaults = _defaults()
    return {
        key: value
        for key, value in effective.items()
        if key not in _PASSING and not (value is None and defaults[key] is None)
    }


def _built(effective: Table, event: tuple[int, ...]) -> Table:
    """With tables replaced by what they describe."""
    built = dict(effective)
    if isinstance(built["model"], dict):
        built["model"] = _network(built["model"], event, built["seed"])
    if isinstance(built["schedule"], dict):
        built["schedule"] = named(**{"name": "vp", **built["schedule"]})
    return built


def _network(table: Table, event: tuple[int, ...], seed: int) -> nn.Module:
    """The kind of network that the table names, or the default for such events, of its sizes."""
    if len(event) not in _NETWORKS:
        raise ValueError(f"there is no network for events of shape {event}: data are (N, d) or (N, C, H, W)")
    kinds, sizes = _NETWORKS[len(event)], dict(table)
    name = sizes.pop("name", next(iter(kinds)))
    check_choice("model.name", name, kinds)
    torch.manual_seed(seed)
    return kinds[name](event[0], **arguments(kinds[name], sizes))
