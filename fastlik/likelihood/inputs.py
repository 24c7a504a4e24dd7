"""What a likelihood is asked of, checked and completed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import checks
from ..derivatives import divergence as divergences
from ..derivatives.probes import PROBES
from ..model import ScoreModel, check_model, coefficients
from ..ops.dispatch import BACKENDS
from ..schedule import Schedule, remembered
from .dequantise import Quantisation, integer_error
from .dequantiser import Dequantiser, choose_dequantiser
from .flow import take_rows
from .problem import METHODS, PRECISIONS

PROBE_MODES = ("fresh", "frozen")
DEQUANTISERS = (None, "uniform")
# where the evaluation starts from points of the process, not from data without its noise
ODE_DEQUANTISERS = (*DEQUANTISERS, "truncated_normal")


def choose_quantisation(
    model: ScoreModel,
    dequantize: str | nn.Module | None,
    bins: int | None,
    data_range: tuple[float, float] | None,
) -> Quantisation | None:
    """What the caller says of bins and range, completed by what the model was trained with."""
    trained = model.quantisation
    if bins is None and (dequantize is not None or data_range is not None):
        if trained is None:
            given = "data_range" if dequantize is None else "dequantize="
            raise ValueError(f"{given} needs bins=, the number of levels (256 for 8-bit images)")
        bins = trained.bins
    if bins is None:
        return None
    return Quantisation(bins, *(data_range or (trained.range if trained else (-1.0, 1.0))))


def check_options(
    model: object,
    method: str,
    divergence: str,
    probe: str,
    probe_mode: str,
    mode: str,
    dequantize: str | nn.Module | None,
    prior: object,
    backend: str,
    precision: str,
) -> None:
    check_model(model)
    checks.check_choice("backend", backend, BACKENDS)
    checks.check_choice("method", method, ("auto", *METHODS))
    checks.check_choice("precision", precision, PRECISIONS)
    if precision == "fp16" and method not in ("auto", "adams"):
        raise ValueError(f'precision="fp16" goes with method="adams", not with {method!r}')
    checks.check_choice("divergence", divergence, divergences.METHODS)
    checks.check_choice("probe", probe, PROBES)
    checks.check_choice("probe_mode", probe_mode, PROBE_MODES)
    checks.check_choice("mode", mode, divergences.MODES)
    if not isinstance(dequantize, nn.Module):
        checks.check_choice("dequantize", dequantize, ODE_DEQUANTISERS)


def check_target(target: object, method: str) -> None:
    """Raise unless ``target`` is None, a positive number of nats, or ("mean", a positive number)."""
    if target is None:
        return
    value = target[1] if isinstance(target, tuple) and len(target) == 2 and target[0] == "mean" else target
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(
            f'target_stderr must be a number of nats for each row or ("mean", nats), got {target!r}'
        )
    checks.check_positive("target_stderr", value)
    if method not in ("auto", "adams"):
        raise ValueError(f'target_stderr adds probes to method="adams", not to {method!r}')


def row_target(target: float | tuple[str, float] | None, rows: int) -> float | None:
    """The standard error for each row: that of a mean of ``rows`` independent ones is sqrt(rows) less."""
    if isinstance(target, tuple):
        return target[1] * max(1, rows) ** 0.5
    return target


def check_data(
    x: Tensor, dequantize: str | nn.Module | None, quantisation: Quantisation | None, importance: int
) -> Tensor:
    if dequantize is None:
        if isinstance(x, Tensor) and not x.is_floating_point():
            raise integer_error(x.dtype)
        checks.check_batch(x)
        if quantisation is not None:
            quantisation.check_range(x)
        if importance > 1:
            raise ValueError("importance averages dequantisation draws: it needs dequantize=")
    else:
        checks.check_batch(x, integers=True)
        quantisation.levels(x)
    return x


def check_placement(model: ScoreModel, x: Tensor) -> None:
    """Raise where the network cannot take ``x``: another floating dtype, or another device."""
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    if parameter is None:
        return
    if x.is_floating_point() and x.dtype != parameter.dtype:
        raise TypeError(
            f"x is {x.dtype} but the network is {parameter.dtype}: pass x.to({parameter.dtype}), "
            f"or convert the model with model.to({x.dtype})"
        )
    if x.device != parameter.device:
        raise ValueError(f"x is on {x.device} but the network is on {parameter.device}: move one of them")


def state_dtype(x: Tensor, model: ScoreModel) -> torch.dtype:
    """The precision of the ODE's state: that of x, or for levels that of the network."""
    return x.dtype if x.is_floating_point() else parameter_dtype(model) or torch.float32


def check_rows(rows: Tensor | None, x: Tensor) -> Tensor:
    if rows is None:
        return torch.arange(len(x), device=x.device)
    rows = torch.as_tensor(rows, device=x.device)
    if rows.shape != x.shape[:1] or rows.is_floating_point() or rows.is_complex():
        raise ValueError(
            f"rows must be {len(x)} integer ids, one for each row of x, got shape {tuple(rows.shape)} "
            f"{rows.dtype}"
        )
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < 2**48:
        raise ValueError("rows must lie in [0, 2^48): they key the random draws")
    return rows.long()


def time_ends(schedule: Schedule, t_min: float | None, t_max: float | None) -> tuple[float, float]:
    """(t_data, t_prior), checked to lie within the schedule."""
    low = schedule.t_min if t_min is None else float(t_min)
    high = schedule.t_max if t_max is None else float(t_max)
    if not schedule.t_min <= low < high <= schedule.t_max:
        raise ValueError(
            f"t_min={low:.6g}, t_max={high:.6g} must be an interval within the schedule's "
            f"[{schedule.t_min:.6g}, {schedule.t_max:.6g}]"
        )
    return (low, high) if schedule.t_data <= schedule.t_prior else (high, low)


def time_span(model: ScoreModel, t_min: float | None, t_max: float | None) -> tuple[float, float]:
    """(t_data, t_prior), checked: the prediction must determine the ODE at both ends."""
    schedule = model.schedule
    ends = time_ends(schedule, t_min, t_max)
    for t in ends:
        if not _determined(schedule, model.predicts, model.sigma_data, t):
            raise ValueError(
                f"a prediction of {model.predicts!r} does not determine the ODE at t={t:.6g}, where alpha or "
                f"sigma is 0: shorten the interval with t_min= / t_max= (for example by 1e-3), or use a "
                f'"velocity" or "v" network'
            )
    return ends


@remembered
def _determined(schedule: Schedule, predicts: str, sigma_data: float, t: float) -> bool:
    """Whether the ODE's slope at time t follows from a prediction."""
    affine = coefficients("v", predicts, schedule, torch.tensor(t, dtype=torch.float64), sigma_data)
    return all(math.isfinite(value.item()) for value in affine)


def parameter_dtype(model: ScoreModel) -> torch.dtype | None:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), None)


@dataclass(frozen=True)
class Data:
    """Rows whose density is wanted, checked: x (B, *event) with ids ``rows`` (B,) int64, and conditions.

    ``dequantiser``: where x holds levels, to which every draw adds noise of its own.
    """

    model: ScoreModel
    x: Tensor
    rows: Tensor
    condition: dict
    quantisation: Quantisation | None
    dequantiser: Dequantiser | None

    @classmethod
    def checked(
        cls,
        model: ScoreModel,
        x: Tensor,
        rows: Tensor | None,
        condition: dict | None,
        dequantize: str | nn.Module | None = None,
        bins: int | None = None,
        data_range: tuple[float, float] | None = None,
    ) -> Data:
        """Raises TypeError or ValueError for input that has no density as given."""
        check_model(model)
        if not isinstance(dequantize, nn.Module):
            checks.check_choice("dequantize", dequantize, DEQUANTISERS)
        quantisation = choose_quantisation(model, dequantize, bins, data_range)
        x = check_data(x, dequantize, quantisation, 1)
        check_placement(model, x)
        schedule, dtype = model.schedule, state_dtype(x, model)
        dequantiser = choose_dequantiser(dequantize, quantisation, schedule, schedule.t_data, dtype, 1)
        return cls(model, x, check_rows(rows, x), dict(condition or {}), quantisation, dequantiser)

    @property
    def size(self) -> int:
        """Numbers per event."""
        return math.prod(self.x.shape[1:])

    def conditions(self, position: Tensor) -> dict:
        """The network's keyword arguments for the rows at ``position`` (N,)."""
        return {name: take_rows(value, position, len(self.x)) for name, value in self.condition.items()}

    def points(self, position: Tensor, number: Tensor | int, seed: int) -> tuple[Tensor, Tensor]:
        """Continuous data (N, *event) of the rows at ``position`` (N,) for their draws ``number``, and what
        the nats of their levels are more than theirs: log q (N,) float64, 0 where there are no bins."""
        x = self.x[position]
        if self.dequantiser is None:
            log_volume = 0.0 if self.quantisation is None else self.size * self.quantisation.log_bin_width
            return x, x.new_full((len(x),), -log_volume, dtype=torch.float64)
        points, log_q = self.dequantiser(x, self.rows[position], 0, seed, number)
        return points.to(state_dtype(x, self.model)), log_q
