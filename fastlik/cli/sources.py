"""Data by name: the built-in sets, and files."""

from __future__ import annotations

import math
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fastlik import data
from fastlik.testing import GaussianMixture

Split = Literal["train", "test"]

TOYS = {
    "checkerboard": data.checkerboard,
    "mixture1d": data.mixture_1d,
    "ring": data.ring,
    "swissroll": data.swissroll,
}
TOY_ROWS = {"train": 50_000, "test": 10_000}
BUILT_IN = ("digits", *TOYS)
NAMES = f"{', '.join(BUILT_IN)}, or a .npy, .npz (file.npz:KEY) or .csv file"

DIGITS_BINS = 17


def load(name: str, split: Split | None = None) -> Tensor:
    """(N, *event) of a built-in set's split, by default "train", or of a file.

    Raises:
        FileNotFoundError: neither a built-in set nor a file.
        ValueError: a file that cannot be read, or ``split`` with a file.
    """
    if name == "digits":
        train, test = data.digits()
        return test if split == "test" else train
    if name in TOYS:
        split = split or "train"
        return TOYS[name](TOY_ROWS[split], seed=list(TOY_ROWS).index(split))
    if split is not None:
        raise ValueError(f"only built-in data have splits ({', '.join(BUILT_IN)}); leave --split out")
    if not Path(name).suffix:
        close = get_close_matches(name, BUILT_IN, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise FileNotFoundError(f"there are no data {name!r}; {hint}The valid ones: {NAMES}")
    return data.load_array(name)


def portable(name: str) -> str:
    """The name by which the data are found from any folder."""
    return name if name in BUILT_IN else str(Path(name).resolve())


def log_density(name: str | None) -> Callable[[Tensor], Tensor] | None:
    """The exact log density (N, 2) -> (N,), nats, of a built-in set in the plane, where there is one."""
    if name == "ring":
        return GaussianMixture.ring(components=8, radius=2.0, std=0.2).log_density
    return _checkerboard if name == "checkerboard" else None


def _checkerboard(x: Tensor) -> Tensor:
    column, row = ((x + 4) / 2).floor().long().unbind(1)
    inside = ((x >= -4) & (x < 4)).all(1) & ((column + row) % 2 == 0)
    return torch.where(inside, -math.log(32), -math.inf)
