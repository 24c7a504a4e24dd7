"""The metrics of a run: a line of JSON every few steps, and the check that they are finite."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import torch
from torch import Tensor

from .checkpoint import write_text

EVERY = 20
"""Steps to a record; its loss and gradient norm are means over them."""


class Metrics:
    """Records of {step, loss, lr, grad_norm, samples_per_second}; above first order also loss_1, loss_2, ...

    ``step`` counts finished steps.  ``loss_1``, or ``loss`` of first order, is the mean of
    :func:`fastlik.objectives.dsm_loss`: with likelihood weighting twice the nats per dimension, up to
    a constant, otherwise the integral of the weighted error.  ``loss`` is the weighted sum of the
    orders' losses.  ``grad_norm`` is before clipping, of the loss divided by the
    integral of the weight.

    Args:
        path: of the JSONL file that records are appended to, or None.
        history: records of the part of the run that a checkpoint continues.
        window: (gradient norm, loss, each order's loss) of the steps since the last of them.
    """

    def __init__(
        self,
        path: Path | None,
        batch_size: int,
        history: list[dict] | None = None,
        window: list[list[float]] | None = None,
    ) -> None:
        self.history = history or []
        self.window = window or []
        self._path = path
        self._batch_size = batch_size
        self._pending: list[Tensor] = []
        self._timed_steps = 0
        self._start = time.perf_counter()
        if path is not None:
            write_text(path, "".join(map(_line, self.history)))

    def add(self, step: int, lr: float, losses: Tensor, grad_norm: Tensor) -> dict | None:
        """Take the values of a finished step, ``losses`` (1 + order,) the sum and each order's; returns a
        record where one is due."""
        self._pending.append(torch.cat((grad_norm.detach()[None], losses.detach())))
        self._timed_steps += 1
        if step % EVERY:
            return None
        self.settle(step)
        now = time.perf_counter()
        norm, loss, *orders = (math.fsum(column) / len(column) for column in zip(*self.window, strict=True))
        rate = self._timed_steps * self._batch_size / (now - self._start)
        record = {
            "step": step,
            "loss": loss,
            "lr": lr,
            "grad_norm": norm,
            "samples_per_second": round(rate, 1),
        }
        if len(orders) > 1:
            record |= {f"loss_{order}": value for order, value in enumerate(orders, 1)}
        self.window, self._timed_steps, self._start = [], 0, now
        self.history.append(record)
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(_line(record))
        return record

    def settle(self, step: int) -> None:
        """Fetch the values that are still on the device, the last of them of ``step``.

        Raises FloatingPointError where one is not finite, naming the step.
        """
        values = torch.stack(self._pending).tolist() if self._pending else []
        first = step - len(values) + 1
        for number, (norm, loss, *_) in enumerate(values, first):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient norm is {norm}"
                raise FloatingPointError(
                    f"the {what} at step {number}; the checkpoint before it is kept. Lower lr or "
                    f"clip, lengthen warmup, or look for outliers in the data"
                )
        self.window.extend(values)
        self._pending = []


def read_history(path: Path, last_step: int) -> list[dict]:
    """The records of a metrics file up to ``last_step``; a line cut short by a crash ends it."""
    history = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        if record["step"] > last_step:
            break
        history.append(record)
    return history


def _line(record: dict) -> str:
    return json.dumps(record) + "\n"
