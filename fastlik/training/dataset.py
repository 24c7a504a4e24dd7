"""The training data: checked once, dequantised afresh at every step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor

from ..checks import check_batch, check_choice
from ..likelihood.dequantise import Quantisation
from .random import batch_rows

COVARIANCE_LIMIT = 1024
"""Events of more coordinates than this get variances instead of a covariance."""

_DEVICE_BYTES = 2**30  # data up to this size live on the training device
_ROWS = 4096  # rows at a time where float64 copies are made


class Dataset:
    """N rows of shape ``event`` with the per-row conditions, as levels where they are discrete.

    Args:
        data: tensor or array (N, *event); integers, or the grid of ``bins`` values over the range,
            where ``bins`` is given, otherwise finite floating numbers.
        bins: number of levels of discrete data.
        data_range: (low, high) of discrete data, by default (-1, 1).
        dequantize: "uniform", the default where ``bins`` is given.
        condition: tensors or arrays (N, ...) by keyword of the network.

    Raises:
        TypeError: data that are no array.
        ValueError: no rows, NaN or infinity (the rows are named), integers without ``bins``,
            values outside the range, a condition with another number of rows.
    """

    def __init__(
        self,
        data: Tensor | np.ndarray,
        bins: int | None = None,
        data_range: tuple[float, float] | None = None,
        dequantize: str | None = None,
        condition: Mapping[str, Tensor | np.ndarray] | None = None,
    ) -> None:
        rows = _tensor(data, "data")
        if rows.dim() < 2 or len(rows) == 0:
            raise ValueError(
                f"data must have shape (N, *event) with N >= 1, got {tuple(rows.shape)}; "
                f"one-dimensional data has shape (N, 1)"
            )
        self.quantisation = _quantisation(rows, bins, data_range, dequantize)
        if self.quantisation is not None:
            levels = self.quantisation.levels(rows)
            self.rows = levels.to(torch.uint8) if bins <= 256 else levels
        else:
            self.rows = rows if rows.dtype == torch.float64 else rows.float()
            check_batch(self.rows, "data")
        self.condition = {k: _tensor(v, k) for k, v in (condition or {}).items()}
        for name, values in self.condition.items():
            if values.shape[:1] != rows.shape[:1]:
                raise ValueError(
                    f"condition {name!r} has shape {tuple(values.shape)}, but the data has {len(rows)} rows"
                )

    @property
    def event(self) -> tuple[int, ...]:
        return tuple(self.rows.shape[1:])

    def describe(self) -> dict:
        """JSON-able: shape, content hash and quantisation."""
        quantisation = self.quantisation and asdict(self.quantisation)
        return {
            "shape": list(self.rows.shape),
            "dtype": str(self.rows.dtype).removeprefix("torch."),
            "sha256": _sha256(self.rows),
            "quantisation": quantisation,
            "dequantize": quantisation and "uniform",
            "condition": {k: _sha256(v) for k, v in self.condition.items()},
        }

    def to(self, device: torch.device) -> None:
        """Move the rows to the device where they fit beside a model."""
        tensors = [self.rows, *self.condition.values()]
        if sum(x.numel() * x.element_size() for x in tensors) <= _DEVICE_BYTES:
            self.rows = self.rows.to(device)
            self.condition = {k: v.to(device) for k, v in self.condition.items()}

    def batch(
        self, seed: int, step: int, size: int, device: torch.device, dtype: torch.dtype
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """x_0 (size, *event) of a step and its conditions; dequantisation draws from the global
        generator, the choice of rows depends on (seed, step) alone."""
        x0, condition = self.levels(seed, step, size, device)
        if self.quantisation is None:
            x0 = x0.to(dtype)
        else:
            u = torch.rand(x0.shape, dtype=dtype, device=device)
            x0 = self.quantisation.continuous(x0, u)
        return x0, condition

    def levels(
        self, seed: int, step: int, size: int, device: torch.device
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The rows (size, *event) of a step as they are kept, levels where the data are discrete, and their
        conditions."""
        index = batch_rows(seed, step, size, len(self.rows)).to(self.rows.device)
        condition = {k: v[index].to(device, non_blocking=True) for k, v in self.condition.items()}
        return self.rows[index].to(device, non_blocking=True), condition

    def moments(self) -> tuple[Tensor, Tensor]:
        """float64 mean (*event) and covariance (d, d), or variances (*event) of wide events.

        Of the dequantised variable: uniform noise adds bin_width^2 / 12 to each variance.
        """
        d = self.rows[0].numel()
        wide = d > COVARIANCE_LIMIT
        mean = sum(chunk.sum(0) for chunk in self._chunks()) / len(self.rows)
        spread = torch.zeros(d if wide else (d, d), dtype=torch.float64)
        for chunk in self._chunks():
            centred = chunk - mean
            spread += centred.square().sum(0) if wide else centred.T @ centred
        spread /= len(self.rows)
        if self.quantisation is not None:
            diagonal = spread if wide else spread.diagonal()
            diagonal += self.quantisation.bin_width**2 / 12
        return mean.reshape(self.event), spread.reshape(self.event) if wide else spread

    def _chunks(self) -> Iterator[Tensor]:
        """The rows as float64 (n, d), bin centres where they are discrete."""
        for chunk in self.rows.split(_ROWS):
            chunk = chunk.cpu().flatten(1).double()
            if self.quantisation is not None:
                chunk = self.quantisation.continuous(chunk, torch.full_like(chunk, 0.5))
            yield chunk


def _tensor(values: object, name: str) -> Tensor:
    if isinstance(values, np.ndarray):
        if values.dtype.kind not in "biuf":
            raise TypeError(f"{name} is an array of {values.dtype}, not of real numbers")
        values = torch.as_tensor(values)
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} must be a torch tensor or a numpy array, got {type(values).__name__}")
    return values.detach()


def _quantisation(
    rows: Tensor,
    bins: int | None,
    data_range: tuple[float, float] | None,
    dequantize: str | None,
) -> Quantisation | None:
    if bins is not None:
        check_choice("dequantize", dequantize, (None, "uniform"))
        return Quantisation(bins, *(data_range or (-1.0, 1.0)))
    if not rows.is_floating_point():
        raise ValueError(
            f"data is {rows.dtype}: discrete data needs dequantisation to have a density; pass "
            f"bins=<number of levels> (256 for 8-bit images), or convert data that are truly "
            f"continuous with .float()"
        )
    if data_range is not None or dequantize is not None:
        raise ValueError("data_range and dequantize describe discrete data: pass bins= as well")
    return None


def _sha256(values: Tensor) -> str:
    content = values.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(content.numpy()).hexdigest()
