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
from ..objectives.weighting import Weighting
from ..progress import progress_bar
from ..schedule import Schedule, named
from .config import Options, configuration
from .dataset import Dataset
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
    model: nn.Module | None = None,
    *,
    schedule: str | Schedule = "vp",
    predicts: str = "noise",
    order: int = 1,
    weighting: Weighting = "likelihood",
    time_sampling: str = "importance",
    steps: int = 3000,
    batch_size: int | None = None,
    lr: float = 2e-3,
    ema: float = 0.998,
    warmup: int = 200,
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
    checkpoint_every: int = 1000,
    progress: bool = True,
) -> Run:
    """Train a score model by denoising score matching, weighted for likelihood.

    Args:
        data: (N, *event), float, or integer levels 0 .. bins-1 with ``bins``.
        model: a network called as ``net(x, time, **condition)``, where time is (B,)
            -log_snr / 8 and x and the output have unit scale; or a ready ``fastlik.wrap(...)``,
            with its own schedule and prediction; by default an MLP for events (d,), a UNet for
            (C, H, W).  It is copied, its weights are the initial ones.
        schedule: a name or a Schedule.
        predicts: "noise", "score", "x0", "v", "velocity" or "edm".
        order: of score matching; 1 is the order there is.
        weighting: "likelihood" (g^2 / sigma^2), "uniform", or w(t), of the squared error of eps.
        time_sampling: "importance" (uniform in log-SNR) or "uniform" (in t); the expected loss is
            the same.
        steps: updates in all; a finished run is continued by a higher number.
        batch_size: by default 512 for events (d,), 64 for all others.
        lr, warmup: Adam's learning rate after ``warmup`` steps of linear growth.
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
        compile: torch.compile of the network; "auto" only on cuda.
        checkpoint_every: steps between checkpoints.
        progress: whether to show a bar.

    Returns:
        A :class:`Run`.

    Raises:
        ValueError: bad data (see :class:`Dataset`) or options (the valid ones are listed), or
            ``out`` holds a run of another configuration, or damaged files.
        FileExistsError: ``resume=False`` and ``out`` holds a run.
        OSError: ``out`` cannot be written to.
        ImportError: ``out`` is given and safetensors is not installed.
        FloatingPointError: a loss or a gradient that is not finite; the last checkpoint stays.
        KeyboardInterrupt: Ctrl-C, after the step is finished and a checkpoint written.
    """
    dataset = Dataset(data, bins, data_range, dequantize, condition)
    if batch_size is None:
        batch_size = 512 if len(dataset.event) == 1 else 64
    options = Options(order, weighting, time_sampling, batch_size, lr, ema, warmup, clip, seed, precision)
    check_count("steps", steps)
    check_count("checkpoint_every", checkpoint_every)
    check_choice("resume", resume, ("auto", False))
    check_choice("compile", compile, ("auto", True, False))
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    generators = [place] if place.type == "cuda" else []
    with torch.random.fork_rng(generators):
        seed_generator(torch.device("cpu"), stream_seed(seed, "weights", 0))
        model = _as_score_model(model, schedule, predicts, dataset)
    model.set_moments(dataset.moments())
    model.quantisation, model.event_shape = dataset.quantisation, dataset.event
    compiled = place.type == "cuda" if compile == "auto" else compile
    folder, saved = None, None
    if out is not None:
        folder = RunFolder(out)
        config = configuration(
            options, model, dataset, steps=steps, device=str(place), compile=compiled,
            checkpoint_every=checkpoint_every,
        )  # fmt: skip
        saved = folder.open(config, resume)

    trainer = Trainer(model, dataset, options, place)
    dataset.to(place)
    start, window, history = 0, [], []
    if saved is not None:
        tensors, content = saved
        trainer.load(tensors, folder.state)
        start, window = content["step"], content["window"]
        history = read_history(folder.metrics, start)
    if start > steps:
        raise ValueError(f"{out} holds a run of {start} steps, more than steps={steps}")
    if start == steps:
        return Run(trainer.ema.model, history, folder.path)
    if folder is not None:
        folder.record(config)
    if compiled:
        model.net.compile()
    metrics = Metrics(folder and folder.metrics, batch_size, history, window)
    bar = progress_bar(progress, total=steps, initial=start, desc="training", unit="step")
    with torch.random.fork_rng(generators), Interrupt() as interrupt, bar:
        for step in range(start, steps):
            loss, norm = trainer.step(step)
            done = step + 1
            record = metrics.add(done, trainer.learning_rate(step), loss, norm)
            bar.update()
            if record is not None:
                bar.set_postfix_str(f"loss {record['loss']:.4f}", refresh=False)
            if done % checkpoint_every == 0 or done == steps or interrupt.asked:
                metrics.settle(done)
                if folder is not None:
                    folder.save(trainer.state(), trainer.ema.model, done, metrics.window)
            if interrupt.asked:
                break
    if interrupt.asked:
        print(_how_to_resume(folder, done, steps), file=sys.stderr)
        raise KeyboardInterrupt
    return Run(trainer.ema.model, metrics.history, folder and folder.path)


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
        raise TypeError(f"model must be a torch module or a fastlik.wrap(...), got {type(model).__name__}")
    return score_model(model, named(schedule), predicts)
