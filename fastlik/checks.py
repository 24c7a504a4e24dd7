"""Checks of what a caller passes in: one clear sentence each, with the remedy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def check_choice(name: str, value: object, valid: Iterable[object]) -> None:
    """Raise ValueError unless ``value`` is one of ``valid``; the message lists them."""
    valid = list(valid)
    if value not in valid:
        raise ValueError(f"{name}={value!r} is unknown; the valid values are {', '.join(map(repr, valid))}")


def check_positive(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` is a finite number above zero."""
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be a finite number above 0, got {value!r}")


def check_count(name: str, value: object, least: int = 1) -> None:
    """Raise ValueError unless ``value`` is an integer of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def check_batch(x: Tensor, name: str = "x", *, integers: bool = False) -> None:
    """Raise TypeError / ValueError unless ``x`` is a finite float32 / float64 tensor (B, *event);
    ``integers`` admits integer dtypes as well."""
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{name} must be a torch tensor of shape (B, *event), got {type(x).__name__}; "
            f"convert it with torch.as_tensor"
        )
    if x.dim() < 2:
        raise ValueError(
            f"{name} must have shape (B, *event), got {tuple(x.shape)}; "
            f"one-dimensional data has shape (B, 1), one sample is x[None]"
        )
    if x[:1].numel() == 0 and x.shape[0] > 0:
        raise ValueError(f"{name} has an empty event, shape {tuple(x.shape)}")
    if integers and not x.is_floating_point() and not x.is_complex():
        return
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"{name} must be float32 or float64, got {x.dtype}; low precision belongs to the "
            f"network, not to the state of the ODE: pass {name}.float()"
        )
    # the sum is quick; it is also not finite where large numbers overflow
    if not math.isfinite(x.detach().sum()):
        rows = (~x.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
        if rows:
            raise ValueError(f"{name} holds NaN or infinity in {describe_rows(rows)}; remove or repair them")


def describe_rows(rows: Sequence[int], limit: int = 8) -> str:
    """ "row 3" or "rows 1, 2, 5, ... (27 in all)" for messages."""
    shown = ", ".join(str(row) for row in rows[:limit])
    if len(rows) == 1:
        return f"row {shown}"
    return f"rows {shown}" + (f", ... ({len(rows)} in all)" if len(rows) > limit else "")
