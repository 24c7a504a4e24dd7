"""The configuration of a run: its options, checked, and what config.json records."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

from ..checks import check_choice, check_count, check_positive
from ..model import ScoreModel
from ..objectives.high_order import ORDERS, choose_forms
from ..objectives.time_sampling import TIME_SAMPLINGS
from ..objectives.weighting import WEIGHTINGS, OrderWeight, Weighting, order_weight
from .dataset import Dataset
from .network import describe_model

PRECISIONS = ("auto", "float32", "bf16")


@dataclass(frozen=True)
class Options:
    """What decides the numbers of a run, beside its data and its model.

    Raises ValueError for an unknown value (the valid ones are listed) or a number out of range.
    """

    order: int
    order_weights: tuple[OrderWeight, OrderWeight]
    second: str
    third: str
    probes: int
    weighting: Weighting
    time_sampling: str
    batch_size: int
    lr: float
    ema: float
    warmup: int
    cooldown: float
    steps: int
    clip: float | None
    seed: int
    precision: str
    parts: int

    def __post_init__(self) -> None:
        check_choice("order", self.order, ORDERS)
        for name in ("probes", "parts"):
            check_count(name, getattr(self, name))
        choose_forms(self.order, self.second, self.third, 1, self.probes)
        if len(self.order_weights) != 2:
            raise ValueError(f"order_weights are two, of second and third order, got {self.order_weights!r}")
        for factor in self.order_weights:
            if callable(factor):
                order_weight(factor, torch.full((2,), 0.5, dtype=torch.float64))
            elif not 0 <= factor < float("inf"):
                raise ValueError(f"order_weights are functions of t or numbers >= 0, got {factor!r}")
        if not callable(self.weighting):
            check_choice("weighting", self.weighting, WEIGHTINGS)
        check_choice("time_sampling", self.time_sampling, TIME_SAMPLINGS)
        check_choice("precision", self.precision, PRECISIONS)
        check_positive("lr", self.lr)
        if self.clip is not None:
            check_positive("clip", self.clip)
        check_count("batch_size", self.batch_size, 1)
        check_count("warmup", self.warmup, 0)
        check_count("seed", self.seed, 0)
        check_count("steps", self.steps)
        if not 0 <= self.cooldown <= 1:
            raise ValueError(f"cooldown is a part of the steps, in [0, 1], got {self.cooldown!r}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is a decay in [0, 1), got {self.ema!r}")

    def describe(self) -> dict:
        """JSON-able; a weighting function by its name, "auto" by what it stands for."""
        described = asdict(self)
        del described["parts"]  # rounding aside, it changes no number
        if not self.cooldown:  # then a run may be continued to any number of steps
            del described["cooldown"], described["steps"]
        if self.order == 1:  # what then means nothing
            for name in ("order_weights", "second", "third", "probes"):
                del described[name]
        else:
            described["order_weights"] = [_name(factor) for factor in self.order_weights]
        described["weighting"] = _name(self.weighting)
        if self.precision == "auto":
            described["precision"] = "float32"
        return described


def _name(value: object) -> object:
    """A function by its name, or by its representation where that says more; anything else as it is."""
    if not callable(value):
        return value
    return f"function {getattr(value, '__name__', None) or repr(value)}"


def configuration(options: Options, model: ScoreModel, dataset: Dataset, **run: object) -> dict:
    """What config.json records.  A run is resumed if all but the section "run" is equal."""
    try:
        own = version("fastlik")
    except PackageNotFoundError:  # a source tree that is not installed
        own = "unknown"
    versions = {"fastlik": own, "torch": torch.__version__, "python": platform.python_version()}
    return {
        "fastlik": "run",
        "model": describe_model(model),
        "training": options.describe(),
        "data": dataset.describe(),
        "run": {**run, "versions": versions},
    }
