"""One training step, and everything that the next one depends on."""

from __future__ import annotations

import contextlib
import warnings

import torch
from torch import Tensor

from ..derivatives.jets import NoDerivative
from ..model import ScoreModel
from ..objectives.high_order import choose_forms
from ..objectives.loss import Draws, draw
from ..objectives.time_sampling import weight_integral
from .checkpoint import fill, fill_optimiser, optimiser_tensors
from .config import Options
from .dataset import Dataset
from .distributed import Group
from .ema import EMA
from .objective import Objective
from .random import seed_generator, stream_seed


class Trainer:
    """Weights, their average and the optimiser's state; the step's number determines all the rest.

    The model given is trained in place.  Where none of its parameters requires a gradient, as in a
    model from an earlier run, all are trained.

    Raises ValueError where there is none, and for a loss that cannot be compiled where that is asked for.
    """

    def __init__(
        self,
        model: ScoreModel,
        dataset: Dataset,
        options: Options,
        group: Group,
        compile: str | bool = False,
    ) -> None:
        device = group.device
        self.model = model.to(device).train()
        if not any(p.requires_grad for p in self.model.parameters()):
            self.model.requires_grad_(True)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        if not self.parameters:
            raise ValueError("the model has no parameters to train")
        self.dtype = self.parameters[0].dtype
        self.device = device
        self.dataset = dataset
        self.options = options
        self.group = group
        size = dataset.rows[0].numel()
        self.forms = choose_forms(options.order, options.second, options.third, size, options.probes)
        objective = Objective(self.model, self.forms, options.order_weights)
        self.compiled = self._compile(objective, compile)
        self.objective = group.wrap(objective)
        self.ema = EMA(self.model, options.ema)
        self.optimiser = torch.optim.Adam(self.parameters, lr=options.lr, fused=True)
        self.loss_scale = 1 / weight_integral(options.weighting, model.schedule)

    def _compile(self, objective: Objective, choice: str | bool) -> bool:
        """Compile the objective, by "auto" where that pays and works; whether it was."""
        if choice is False or (choice == "auto" and (self.device.type != "cuda" or self.forms.reverses)):
            return False
        if self.forms.reverses:
            raise ValueError(
                f"third={self.forms.third!r} takes a reverse pass inside the loss, which torch.compile "
                f'refuses: choose compile=False, or third="auto"'
            )
        try:
            objective.compile_for(*self.dataset.batch(0, 0, 2, self.device, self.dtype))
        except NoDerivative as reason:
            if choice is True:
                raise ValueError(f"network not compilable, choose compile=False: {reason}") from reason
            warnings.warn(f"training is not compiled: {reason}", stacklevel=2)
            return False
        return True

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then constant, and with ``cooldown`` a linear fall to zero at the end.

        For first order on images the average of the weights does what a decay would: on digits after
        1,000 steps, the held-out bound is 1.903 bits/dim, with a cosine decay 1.916.
        """
        options = self.options
        left = 1.0
        if options.cooldown:
            left = min(1.0, (options.steps - step) / (options.cooldown * options.steps))
        return options.lr * left * min(1.0, (step + 1) / max(options.warmup, 1))

    def step(self, step: int) -> tuple[Tensor, Tensor]:
        """Update on batch ``step``; the losses before it and the gradient's norm, on the device.

        The losses (1 + order,) are what is minimised, and each order's.

        Seeds torch's global generator from (seed, step), so that dropout is covered.  Gradients
        are of the loss divided by the integral of its weight, a weighted mean of squared errors of
        eps, so that the clipping norm means the same for every schedule and weighting.
        """
        options = self.options
        seed_generator(self.device, stream_seed(options.seed, "step", step))
        x0, condition = self.dataset.batch(options.seed, step, options.batch_size, self.device, self.dtype)
        draws = draw(self.model, x0, options.weighting, options.time_sampling, self.forms, options.probes)
        if not self.group.main:  # the same draws everywhere, but not the same dropout
            seed_generator(self.device, stream_seed(options.seed, f"rank {self.group.rank}", step))
        self.optimiser.zero_grad()
        losses = self._backward(x0, draws, condition)
        limit = float("inf") if options.clip is None else options.clip
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, limit)
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate(step)
        self.optimiser.step()
        self.ema.update(self.model, step)
        return losses, norm

    def _backward(self, x0: Tensor, draws: Draws, condition: dict[str, Tensor]) -> Tensor:
        """Gradients of the mean loss, accumulated over parts of the batch; the losses (1 + order,)."""
        batch = len(x0)
        mine = self.group.rows(batch)
        parts = _split(mine, self.options.parts)
        losses = 0.0
        for part in parts:
            last = part is parts[-1]
            waiting = contextlib.nullcontext() if last or self.group.size == 1 else self.objective.no_sync()
            rows = {name: values[part] for name, values in condition.items()}
            with waiting:
                with torch.autocast(self.device.type, torch.bfloat16, self.options.precision == "bf16"):
                    sums = self.objective(x0[part], draws.rows(part), rows)
                # gradients are averaged over the processes
                means = sums * (self.group.size / batch)
                (self.loss_scale * means[0]).backward()
            losses = losses + means.detach()
        return self.group.mean(losses)

    def state(self) -> dict[str, Tensor]:
        """Weights, averaged weights and optimiser, flat."""
        parts = {
            "raw": self.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "optimiser": optimiser_tensors(self.optimiser),
        }
        return {f"{part}.{k}": v for part, tensors in parts.items() for k, v in tensors.items()}

    def load(self, tensors: dict[str, Tensor], path: object) -> None:
        """Inverse of :meth:`state`; ``path`` is for the message of a ValueError."""
        parts: dict[str, dict[str, Tensor]] = {"raw": {}, "ema": {}, "optimiser": {}}
        for name, value in tensors.items():
            part, key = name.split(".", 1)
            parts[part][key] = value
        fill(self.model, parts["raw"], path)
        fill(self.ema.model, parts["ema"], path)
        fill_optimiser(self.optimiser, parts["optimiser"])


def _split(rows: slice, parts: int) -> list[slice]:
    """Consecutive parts of a slice, of sizes as equal as possible, none of them empty."""
    count = rows.stop - rows.start
    parts = max(1, min(parts, count))
    edges = [rows.start + i * count // parts for i in range(parts + 1)]
    return [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]
