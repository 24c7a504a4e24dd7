"""What a solver integrates, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

from .status import Status


class System(Protocol):
    """dy/dt of a batch of independent rows, with integrals dq/dt that ride along.

    Times are float64 (B,): every row has its own.  ``node`` (B,) int64 counts a row's steps, so that
    random probes can be drawn anew for each step and still belong to the row alone.
    """

    def __call__(self, t: Tensor, y: Tensor, node: Tensor) -> tuple[Tensor, Tensor | None]:
        """(dy/dt like y, dq/dt (B, K) float64 or None)."""

    def take(self, index: Tensor) -> System:
        """The system of the rows ``index`` alone."""

    def sensitivity(self, t: Tensor, y: Tensor, dy: Tensor) -> Tensor | None:
        """How the final answer changes with y at time t, like y; None where it is not known."""


@dataclass
class Integration:
    """The state of each row where its integration ended, and how it got there.

    y (B, *event), q (B, K) float64 or None; status (B,) int32 codes of :class:`Status`; t (B,) the
    time reached; nfe, steps, rejected (B,) int64; defect (B,) float64: the accumulated estimate of the
    answer's local errors, zero without an error estimate; defect_square (B,) float64: the sum of their
    squares, or None where the solver has not got it.
    """

    y: Tensor
    q: Tensor | None
    status: Tensor
    t: Tensor
    nfe: Tensor
    steps: Tensor
    rejected: Tensor
    defect: Tensor
    defect_square: Tensor | None = None

    @classmethod
    def start(cls, y: Tensor, q: Tensor | None, t: Tensor) -> Integration:
        """Before the first step at times t (B,) float64; owns its tensors."""
        count = torch.zeros(len(y), dtype=torch.int64, device=y.device)
        return cls(
            y=y.clone(memory_format=torch.contiguous_format),
            q=None if q is None else q.clone(),
            status=count.int(),
            t=t.clone(),
            nfe=count.clone(),
            steps=count.clone(),
            rejected=count.clone(),
            defect=torch.zeros(len(y), dtype=torch.float64, device=y.device),
        )

    @property
    def running(self) -> Tensor:
        """(B,) bool: rows still on their way."""
        return self.status == Status.RUNNING

    def take(self, index: Tensor) -> Integration:
        return Integration(*(None if v is None else v[index] for v in self._values()))

    def put(self, index: Tensor, rows: Integration) -> None:
        """Write ``rows`` over the rows ``index``."""
        for mine, theirs in zip(self._values(), rows._values(), strict=True):
            if mine is not None:
                mine[index] = theirs

    def _values(self) -> list[Tensor | None]:
        return [getattr(self, field.name) for field in fields(self)]


def not_past(end: Tensor, h: Tensor, t: Tensor) -> Tensor:
    """t, or ``end`` where rounding has carried t past it in the direction of h; all (B,)."""
    return torch.where(h >= 0, torch.minimum(t, end), torch.maximum(t, end))
