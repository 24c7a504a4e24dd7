"""What a likelihood evaluation returns."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..checks import describe_rows
from ..solvers.status import Status, all_done

Result = TypeVar("Result")


class ConvergenceWarning(UserWarning):
    """Some rows have no likelihood; they are NaN and flagged in ``NLL.status``."""


class EvaluationInterrupted(KeyboardInterrupt):
    """Ctrl-C during an evaluation; ``partial`` is the result (:class:`NLL`) of the rows already finished."""

    def __init__(self, partial: object, rows: int) -> None:
        super().__init__(
            f"interrupted after {len(partial)} of {rows} rows; the exception's .partial holds their results"
        )
        self.partial = partial


class Mean(NamedTuple):
    """A data-set mean with its standard error; negative log-likelihood, lower is better."""

    nats: float
    nats_stderr: float
    bits_per_dim: float
    bits_per_dim_stderr: float
    rows: int

    def __str__(self) -> str:
        return (
            f"{self.bits_per_dim:.4f} +- {self.bits_per_dim_stderr:.4f} bits/dim "
            f"({self.nats:.4f} +- {self.nats_stderr:.4f} nats, {self.rows} rows)"
        )


@dataclass
class NLL:
    """Negative log-likelihoods of B rows (lower is better).

    Attributes:
        nats: (B,) float64; NaN where the row failed.  Discrete data: -log P of the levels.
        stderr: (B,) float64 nats, standard error from probes and other random draws; 0 where nothing
            is random, NaN where the draws are too few to tell.
        discretisation: (B,) float64 nats, estimated error of the ODE solution.
        latent: (B, *event) the state at the prior's end.
        nfe: (B,) int64 evaluations of the network (each with its tangents, where it has any).
        trace_evaluations: (B,) int64, how many of them carried a divergence.
        status: (B,) int64 codes of :class:`fastlik.solvers.status.Status`; DONE is a good row.
        stopped_at: (B,) float64 time of the schedule that the row reached.
        protocol: every convention behind the numbers.
    """

    nats: Tensor
    stderr: Tensor
    discretisation: Tensor
    latent: Tensor
    nfe: Tensor
    trace_evaluations: Tensor
    status: Tensor
    stopped_at: Tensor
    protocol: dict = field(default_factory=dict)

    @property
    def dimensions(self) -> int:
        """Numbers per event."""
        return math.prod(self.latent.shape[1:])

    @property
    def bits_per_dim(self) -> Tensor:
        """(B,) nats / (d ln 2)."""
        return self.nats / (self.dimensions * math.log(2))

    @property
    def converged(self) -> Tensor:
        """(B,) bool: rows whose number can be used."""
        return self.status == Status.DONE

    def __len__(self) -> int:
        return len(self.nats)

    def mean(self) -> Mean:
        """Mean over the rows with the standard error of the data-set mean.

        The spread over rows already holds the noise of probes and dequantisation draws.  Rows that did
        not converge are left out, with a warning.  NaN for no rows; the standard error needs two.
        """
        good = self.nats[self.converged]
        failed = len(self) - len(good)
        if failed:
            warnings.warn(
                f"{failed} of {len(self)} rows did not converge and are not in the mean",
                ConvergenceWarning,
                stacklevel=2,
            )
        nats = good.mean().item() if len(good) else math.nan
        error = (good.std() / math.sqrt(len(good))).item() if len(good) > 1 else math.nan
        unit = self.dimensions * math.log(2)
        return Mean(nats, error, nats / unit, error / unit, len(good))

    def to_dict(self) -> dict:
        """JSON-able: per-row lists (without the latent), the mean, and the protocol."""
        mean = self.mean()
        rows = {
            name: getattr(self, name).tolist()
            for name in (
                *("nats", "bits_per_dim", "stderr", "discretisation"),
                *("nfe", "trace_evaluations", "status", "stopped_at"),
            )
        }
        return _without_nan({"mean": mean._asdict(), **rows, "protocol": self.protocol})

    def save(self, path: str | Path) -> Path:
        """Write ``path``: .json (no latent) or .npz (every tensor; the protocol as JSON text).

        Raises ValueError for another suffix, OSError where the file cannot be written.
        """
        path = Path(path)
        if path.suffix == ".json":
            path.write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")
        elif path.suffix == ".npz":
            arrays = {
                name: value.detach().cpu().numpy()
                for name, value in vars(self).items()
                if isinstance(value, Tensor)
            }
            np.savez(path, protocol=np.array(json.dumps(self.protocol)), **arrays)
        else:
            raise ValueError(f"cannot save to {path.name!r}: the suffix must be .json or .npz")
        return path


def concatenate(parts: list[Result]) -> Result:
    """The rows of all parts in order; what is not a tensor (B, ...) is the first's."""
    if len(parts) == 1:
        return parts[0]
    tensors = {
        name: torch.cat([getattr(part, name) for part in parts])
        for name, value in vars(parts[0]).items()
        if isinstance(value, Tensor)
    }
    return replace(parts[0], **tensors)


def warn_of_failures(status: Tensor, stopped_at: Tensor | None, what: str) -> None:
    """One ConvergenceWarning that names the rows that did not end well, why, and at which times, if known."""
    if all_done(status):
        return
    failed = (status != Status.DONE).nonzero().flatten().tolist()
    reasons = []
    for code in Status:
        rows = [row for row in failed if int(status[row]) == code]
        if rows:
            reasons.append(f"{describe_rows(rows)}: {code.description}{_times(stopped_at, rows)}")
    warnings.warn(
        f"{len(failed)} of {len(status)} rows {what}: {'; '.join(reasons)}", ConvergenceWarning, stacklevel=3
    )


def _times(stopped_at: Tensor | None, rows: list[int]) -> str:
    if stopped_at is None:
        return ""
    times = sorted({f"{t:.4g}" for t in stopped_at[rows].aminmax()}, key=float)
    return f" at t = {' .. '.join(times)}"


def _without_nan(value: object) -> object:
    """JSON has no NaN: null says the same."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return value
