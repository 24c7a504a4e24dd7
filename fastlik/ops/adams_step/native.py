"""The Adams step in C++: tensors as addresses and sizes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import call_native
from .history import Attempt, Control, History


def predict(rows: History) -> Attempt:
    """``reference.predict``."""
    batch = len(rows.t)
    attempt = Attempt(
        torch.empty_like(rows.steps),
        torch.empty_like(rows.t),
        torch.empty_like(rows.y),
        rows.t.new_empty(batch, 2, rows.order + 1),
    )
    call_native("adams_predict", rows.y, *_state(rows), _addresses(*attempt))
    return attempt


def correct(
    rows: History,
    attempt: Attempt,
    slope: Tensor,
    integrand: Tensor | None,
    sensitivity: Tensor | None,
    control: Control,
) -> None:
    """``reference.correct``."""
    slope, integrand, sensitivity = (
        None if each is None else each.contiguous() for each in (slope, integrand, sensitivity)
    )
    call_native(
        "adams_correct",
        rows.y,
        *_state(rows),
        _addresses(*attempt),
        _addresses(slope, integrand, sensitivity),
        0 if integrand is None else integrand.shape[1],
        tuple(0.0 if each is None else each for each in control),
    )


def _state(rows: History) -> tuple[bool, tuple[int, ...], tuple[int, ...]]:
    size = rows.slopes.shape[2]
    return rows.y.dtype == torch.float64, (len(rows.t), size, rows.order), _addresses(*vars(rows).values())


def _addresses(*tensors: Tensor | None) -> tuple[int, ...]:
    return tuple(0 if each is None else each.data_ptr() for each in tensors)
