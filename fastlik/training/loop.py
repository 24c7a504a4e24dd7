"""Training: from data to a model that is ready for likelihood evaluation."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..checks import check_choice, check_count
from ..model import ScoreModel
from ..objectives.weighting import OrderWeight, Weighting
from ..progress import progress_bar
from ..schedule import Schedule, named
from .checkpoint import load
from .config import Options, configuration
from .dataset import Dataset
from .distributed import Group, default_device
from .folder import RunFolder
from .interrupt import Interrupt
from .log import Metrics, read_history
from .network import default_network, score_model
from .random import seed_generator, stream_seed
from .trainer import Trainer


@dataclass(frozen=True)
class Run:
    """A finished run: the EMA model in eval mode, the metric records, the folder or None."""

    model: ScoreModel
    history: list[dict]
    path: Path | None


def train(
    data: Tensor | np.ndarray,
    model: nn.Module | str | os.PathLike | None = None,
    *,
    schedule: str | Schedule = "vp",
    predicts: str = "noise",
    order: int = 1,
    order_weights: tuple[OrderWeight, OrderWeight] = (0.5, 0.1),
    second: str = "auto",
    third: str = "auto",
    probes: int = 1,
    weighting: Weighting = "likelihood",
    time_sampling: str = "importance",
    steps: int = 3000,
    batch_size: int | None = None,
    lr: float = 2e-3,
    ema: float = 0.998,
    warmup: int = 200,
    cooldown: float = 0.0,
    clip: float | None = 1.0,
    bins: int | None = None,
    data_range: tuple[float, float] | None = None,
    dequantize: str | None = None,
    condition: Mapping[str, Tensor | np.ndarray] | None = None,
    out: str | os.PathLike | None = None,
    resume: str | bool = "auto",
    seed: int = 0,
    device: str | torch.device | None = None,
    precision: str = "auto",
    compile: str | bool = "auto",
    parts: int | str = "auto",
    checkpoint_every: int = 1000,
    progress: bool = True,
) -> Run:
    """Train a score model by denoising score matching, weighted for likelihood.

    Args:
        data: (N, *event), float, or integer levels 0 .. bins-1 with ``bins``.
        model: a network called as ``net(x, time, **condition)``, where time is (B,)
            -log_snr / 8 and x and the output have unit scale; or a ready ``fastlik.wrap(...)``,
            with its own schedule and prediction; by default an MLP for events (d,), a UNet for
            (C, H, W).  It is copied, its weights are the initial ones.  The folder of a run starts
            from its averaged weights: second and third order are best begun from a first-order run.
        schedule: a name or a Schedule.
        predicts: "noise", "score", "x0", "v", "velocity" or "edm".
        order: of score matching, 1, 2 or 3 (Lu et al. 2022): the higher ones also match the
            derivatives of the score, which the likelihood of the ODE depends on.
        order_weights: factors of the second- and third-order losses in the sum, numbers or functions
            of t, such as :class:`fastlik.objectives.above_noise`.
        second, third: forms of these losses, see :mod:`fastlik.objectives.high_order`; "auto" takes
            all directions up to 3 dimensions, probes above.
        probes: random directions a row, for the forms that take them; with two or more, "auto" takes
            the unbiased forms.
        weighting: "likelihood" (g^2 / sigma^2), "uniform", or w(t), of the squared error of eps.
        time_sampling: "importance" (uniform in log-SNR) or "uniform" (in t); the expected loss is
            the same.
        steps: updates in all; a finished run is continued by a higher number.
        batch_size: by default 512 for events (d,), 64 for all others.
        lr, warmup: Adam's learning rate after ``warmup`` steps of linear growth.
        cooldown: part of the steps, at the end, over which the learning rate falls linearly to zero; second
            and third order, whose gradients are noisier, gain by it.  It fixes the number of steps.
        ema: decay of the average of the weights.
        clip: limit of the gradient's norm, None for no limit.
        bins, data_range, dequantize: number of levels of discrete data, the range (low, high) that
            they are mapped to (default -1, 1), and "uniform", how.
        condition: tensors (N, ...) by keyword of the network.
        out: folder of the run (config.json, metrics.jsonl, model.safetensors, state.safetensors);
            None keeps all in memory.
        resume: "auto" continues the run that ``out`` holds, exactly as if it had not stopped;
            False refuses a folder that holds one.
        seed: of initial weights, batches, times and noise.  Torch's global generators are left as
            they were.
        device: by default cuda where it is available, else cpu.
        precision: "auto" is float32 (float64 for a float64 network); "bf16" autocasts the network.
        compile: torch.compile of the loss with its derivatives; "auto" only on cuda.  Third order "full"
            and "gradient" cannot be compiled, and above first order neither can networks that torch.export
            does not capture.
        parts: into which the batch is cut, their gradients added up: memory alone depends on it;
            "auto" keeps that of third order on images below 3 times that of first order.
        checkpoint_every: steps between checkpoints.
        progress: whether to show a bar.

    Returns:
        A :class:`Run`.

    Raises:
        ValueError: bad data (see :class:`Dataset`) or options (the valid ones are listed), or
            ``out`` holds a run of another configuration, or damaged files.
        FileNotFoundError: ``model`` names no run.
        FileExistsError: ``resume=False`` and ``out`` holds a run.
        OSError: ``out`` cannot be written to.
        ImportError: ``out`` is given and safetensors is not installed.
        FloatingPointError: a loss or a gradient that is not finite; the last checkpoint stays.
        KeyboardInterrupt: Ctrl-C, after the step is finished and a checkpoint written.
    """
    dataset = Dataset(data, bins, data_range, dequantize, condition)
    if batch_size is None:
        batch_size = 512 if len(dataset.event) == 1 else 64
    if parts == "auto":
        parts = 4 if order == 3 and len(dataset.event) > 1 else 1
    options = Options(
        order=order, order_weights=tuple(order_weights), second=second, third=third, probes=probes,
        weighting=weighting, time_sampling=time_sampling, batch_size=batch_size, lr=lr, ema=ema,
        warmup=warmup, cooldown=cooldown, steps=steps, clip=clip, seed=seed, precision=precision, parts=parts,
    )  # fmt: skip
    check_count("checkpoint_every", checkpoint_every)
    check_choice("resume", resume, ("auto", False))
    check_choice("compile", compile, ("auto", True, False))
    place = default_device() if device is None else torch.device(device)
    generators = [place] if place.type == "cuda" else []
    with torch.random.fork_rng(generators):
        seed_generator(torch.device("cpu"), stream_seed(seed, "weights", 0))
        model = _as_score_model(model, schedule, predicts, dataset)
    model.set_moments(dataset.moments())
    model.quantisation, model.event_shape = dataset.quantisation, dataset.event
    group = Group(place)
    trainer = Trainer(model, dataset, options, group, compile)
    config = configuration(
        options, model, dataset, steps=steps, device=str(place), compile=trainer.compiled, parts=parts,
        checkpoint_every=checkpoint_every,
    )  # fmt: skip
    folder, saved = _open(out, config, resume, group)
    dataset.to(place)
    start, window, history = 0, [], []
    if saved is not None:
        tensors, content = saved
        trainer.load(tensors, out)
        start, window, history = content["step"], content["window"], content["history"]
    if start > steps:
        raise ValueError(f"{out} holds a run of {start} steps, more than steps={steps}")
    if start == steps:
        return Run(trainer.ema.model, history, None if out is None else Path(out))
    if folder is not None:
        folder.record(config)
    metrics = Metrics(folder and folder.metrics, batch_size, history, window)
    _steps(trainer, metrics, folder, start, steps, checkpoint_every, generators, progress)
    return Run(trainer.ema.model, metrics.history, None if out is None else Path(out))


def _open(
    out: str | os.PathLike | None, config: dict, resume: str | bool, group: Group
) -> tuple[RunFolder | None, tuple[dict, dict] | None]:
    """The folder, in the main process only, and the saved state to continue from, in all."""
    if out is None:
        return None, None
    folder, opened = None, None
    if group.main:
        try:
            folder = RunFolder(out)
            opened = folder.open(config, resume)
            if opened is not None:
                opened[1]["history"] = read_history(folder.metrics, opened[1]["step"])
        except Exception as error:  # raised by every process, or the others would wait for this one
            opened = error
    return folder, group.from_main(opened)


def _steps(
    trainer: Trainer,
    metrics: Metrics,
    folder: RunFolder | None,
    start: int,
    steps: int,
    checkpoint_every: int,
    generators: list[torch.device],
    progress: bool,
) -> None:
    """Steps start .. steps - 1; KeyboardInterrupt after a checkpoint where one is asked for."""
    group = trainer.group
    bar = progress_bar(progress and group.main, total=steps, initial=start, desc="training", unit="step")
    stop = False
    with torch.random.fork_rng(generators), Interrupt() as interrupt, bar:
        for step in range(start, steps):
            losses, norm = trainer.step(step)
            done = step + 1
            record = metrics.add(done, trainer.learning_rate(step), losses, norm)
            bar.update()
            if record is not None:
                bar.set_postfix_str(f"loss {record['loss']:.4f}", refresh=False)
            if group.size == 1 or record is not None:  # the processes stop at the same step
                stop = group.any(interrupt.asked)
            if done % checkpoint_every == 0 or done == steps or stop:
                metrics.settle(done)
                if folder is not None:
                    folder.save(trainer.state(), trainer.ema.model, done, metrics.window)
            if stop:
                break
    if stop:
        if group.main:
            print(_how_to_resume(folder, done, steps), file=sys.stderr)
        raise KeyboardInterrupt


def _how_to_resume(folder: RunFolder | None, step: int, steps: int) -> str:
    if folder is None:
        return f"interrupted after step {step} of {steps}; with out=<folder> it could be resumed"
    return (
        f"interrupted after step {step} of {steps}; the checkpoint is in {folder.path}: run the "
        f"same command again to resume"
    )


def _as_score_model(
    model: nn.Module | None, schedule: str | Schedule, predicts: str, dataset: Dataset
) -> ScoreModel:
    """A model of our own to train; what the caller gave is copied, not changed."""
    if isinstance(model, (str, os.PathLike)):
        model = load(model)
    if isinstance(model, ScoreModel):
        if schedule != "vp" and named(schedule) != model.schedule:
            raise ValueError(f"schedule={schedule!r}, but the model has its own {model.schedule}")
        if predicts not in ("noise", model.predicts):
            raise ValueError(f"predicts={predicts!r}, but the model predicts {model.predicts!r}")
        return copy.deepcopy(model)
    if model is None:
        model = default_network(dataset.event, dataset.condition)
    elif isinstance(model, nn.Module):
        model = copy.deepcopy(model)
    else:
        raise TypeError(
            f"model must be a torch module, a fastlik.wrap(...) or the folder of a run, "
            f"got {type(model).__name__}"
        )
    return score_model(model, named(schedule), predicts)
