"""Training of a dequantiser beside a score model that stays as it is."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..checks import check_count, check_positive
from ..likelihood.inputs import parameter_dtype
from ..likelihood.prior import choose_prior
from ..model import ScoreModel, check_model, evaluating
from ..nn import FlowDequantiser
from ..objectives.dequantisation import dequantisation_loss
from ..progress import progress_bar
from .checkpoint import fill, read_tensors, safetensors, write_tensors
from .dataset import Dataset
from .ema import EMA
from .interrupt import Interrupt
from .log import Metrics
from .random import seed_generator, stream_seed

KIND = "dequantiser"


@dataclass(frozen=True)
class DequantiserRun:
    """The averaged dequantiser in eval mode, the metric records (``loss``: the bound in nats per dimension),
    the file or None."""

    dequantiser: nn.Module
    history: list[dict]
    path: Path | None


def train_dequantiser(
    model: ScoreModel,
    data: Tensor | np.ndarray,
    dequantiser: nn.Module | None = None,
    *,
    steps: int = 2000,
    batch_size: int | None = None,
    lr: float = 2e-3,
    ema: float = 0.99,
    clip: float | None = 1.0,
    bins: int | None = None,
    data_range: tuple[float, float] | None = None,
    condition: Mapping[str, Tensor | np.ndarray] | None = None,
    out: str | os.PathLike | None = None,
    seed: int = 0,
    progress: bool = True,
) -> DequantiserRun:
    """Train the noise in the bins of discrete data, for ``ode_nll(..., dequantize=run.dequantiser)``.

    Minimises the variational bound of the levels' negative log-likelihood, the score model's weights fixed
    (Song, Durkan, Murray, Ermon 2021, NeurIPS; see :func:`fastlik.objectives.dequantisation_loss`).

    Args:
        model: a trained model; it is not changed, and what it is placed on decides where all is.
        data: levels 0 .. bins-1, or the grid of ``bins`` values over the range, (N, *event).
        dequantiser: ``module(centres, noise) -> (u, log_q)`` as for :func:`fastlik.ode_nll`; it is copied,
            its weights are the initial ones.  By default a :class:`fastlik.nn.FlowDequantiser`.
        steps, batch_size, lr, ema, clip: updates, rows of each (by default 512 for events (d,), 64 for
            others), Adam's learning rate, which falls linearly to zero, decay of the average of the weights,
            and limit of the gradient's norm.
        bins, data_range: by default those the model was trained with.
        condition: tensors (N, ...) by keyword of the score network.
        out: file for the result, read by :func:`fastlik.load_dequantiser`; written on Ctrl-C too.  For a
            FlowDequantiser.
        seed: of weights, batches and noise.  Torch's global generators are left as they were.
        progress: whether to show a bar.

    Raises:
        TypeError, ValueError: no ScoreModel, bad data (see :class:`Dataset`) or options, a module of no
            parameters.
        FloatingPointError: a loss or a gradient that is not finite.
        ImportError: ``out`` is given and safetensors is not installed.
    """
    check_model(model)
    if bins is None and model.quantisation is not None:
        bins, data_range = model.quantisation.bins, data_range or model.quantisation.range
    if bins is None:
        raise ValueError("a dequantiser is for discrete data: pass bins=, the number of levels")
    dataset = Dataset(data, bins, data_range, None, condition)
    batch_size = (512 if len(dataset.event) == 1 else 64) if batch_size is None else batch_size
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        check_count(name, value)
    check_count("seed", seed, 0)
    check_positive("lr", lr)
    if not 0 <= ema < 1:
        raise ValueError(f"ema is a decay in [0, 1), got {ema!r}")
    if out is not None:
        safetensors()
        if not isinstance(dequantiser, FlowDequantiser | None):
            raise ValueError("out= keeps a FlowDequantiser; save the weights of another module yourself")
    place = next((p.device for p in model.parameters()), torch.device("cpu"))
    generators = [place] if place.type == "cuda" else []
    with torch.random.fork_rng(generators), evaluating(model), Interrupt() as interrupt:
        if dequantiser is None:
            seed_generator(torch.device("cpu"), stream_seed(seed, "weights", 0))
            dequantiser = FlowDequantiser(dataset.event, data_range=dataset.quantisation.range)
        training = _Training(model, dataset, copy.deepcopy(dequantiser).to(place), lr, ema, clip)
        metrics = Metrics(None, batch_size)
        with progress_bar(progress, total=steps, desc="dequantiser", unit="step") as bar:
            for step in range(steps):
                seed_generator(place, stream_seed(seed, "step", step))
                rate = lr * (1 - step / steps)
                record = metrics.add(step + 1, rate, *training.step(seed, step, batch_size, rate))
                bar.update()
                if record is not None:
                    bar.set_postfix_str(f"loss {record['loss']:.4f}", refresh=False)
                if interrupt.asked:
                    break
        metrics.settle(step + 1)
    trained = training.ema.model
    if out is not None:
        write_tensors(Path(out), KIND, trained.state_dict(), config=trained.config)
    if interrupt.asked:
        raise KeyboardInterrupt
    return DequantiserRun(trained, metrics.history, None if out is None else Path(out))


class _Training:
    """The dequantiser with its average and its optimiser."""

    def __init__(
        self,
        model: ScoreModel,
        dataset: Dataset,
        dequantiser: nn.Module,
        lr: float,
        ema: float,
        clip: float | None,
    ) -> None:
        self.model, self.dataset, self.clip = model, dataset, clip
        self.dequantiser = dequantiser.train().requires_grad_(True)
        self.parameters = list(dequantiser.parameters())
        if not self.parameters:
            raise ValueError("the dequantiser has no parameters to train")
        self.place, size = self.parameters[0].device, dataset.rows[0].numel()
        dataset.to(self.place)
        self.dtype = parameter_dtype(model) or self.parameters[0].dtype
        self.prior = choose_prior("auto", model, model.schedule.t_prior, size, self.place)
        self.ema = EMA(dequantiser, ema)
        self.optimiser = torch.optim.Adam(self.parameters, lr=lr)

    def step(self, seed: int, step: int, batch_size: int, lr: float) -> tuple[Tensor, Tensor]:
        """Update; the bound (1,) before it in nats per dimension, and the gradient's norm."""
        levels, condition = self.dataset.levels(seed, step, batch_size, self.place)
        bound = dequantisation_loss(
            self.model,
            self.dequantiser,
            self.dataset.quantisation,
            levels,
            self.prior,
            self.dtype,
            **condition,
        )
        loss = bound.mean() / levels[0].numel()
        # the score model's own gradients stay as they are
        for parameter, gradient in zip(
            self.parameters, torch.autograd.grad(loss, self.parameters), strict=True
        ):
            parameter.grad = gradient
        limit = float("inf") if self.clip is None else self.clip
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, limit)
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.optimiser.step()
        self.ema.update(self.dequantiser, step)
        return loss.detach()[None], norm


def load_dequantiser(path: str | os.PathLike) -> FlowDequantiser:
    """The dequantiser that ``train_dequantiser(..., out=path)`` wrote, in eval mode, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a truncated or foreign file.
        ImportError: safetensors is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no dequantiser at {path}: give the out= of train_dequantiser")
    tensors, content = read_tensors(path, KIND)
    dequantiser = FlowDequantiser(**content["config"])
    fill(dequantiser, tensors, path)
    return dequantiser.eval().requires_grad_(False)
