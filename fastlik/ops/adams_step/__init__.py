"""One step of Adams' predictor-corrector method, with a step size, a verdict and a clock for each row.

``predict`` says where each row's right-hand side is to be evaluated, ``correct`` ends the attempt with what
it gave: new state, error, acceptance and next step size in one pass over memory.
"""

from __future__ import annotations

from torch import Tensor

from ..dispatch import choose
from . import native, reference
from .history import Attempt, Control, History

__all__ = ["Attempt", "Control", "History", "correct", "predict"]


def predict(rows: History, backend: str = "auto") -> Attempt:
    """The next attempt: at t + h the polynomial through the last slopes, integrated from t on.

    Rows that are not RUNNING stay where they are.  Counts the evaluation of those that are.
    backend: "auto", "native" or "torch".
    """
    return _run(rows, backend).predict(rows)


def correct(
    rows: History,
    attempt: Attempt,
    slope: Tensor,
    integrand: Tensor | None,
    sensitivity: Tensor | None,
    control: Control,
    backend: str = "auto",
) -> None:
    """End the attempt of every RUNNING row, in place.

    The polynomial through the new slope as well corrects the state; the gap between the two is the error, in
    units of ``control``'s tolerances the largest of the state's (root mean square over the event), of the
    answer's, <sensitivity, gap>, and of the last integrand's own gap.  At most 1: the row moves on, its slope
    is remembered, defect and defect_square take the answer's error; DONE at t_end, DISCONTINUOUS where the
    slope jumps.  Either way h is chosen anew; where it is below the resolution of t the row ends as
    UNDERFLOW, or NON_FINITE if its error is not finite.

    Args:
        slope: at the attempt, shaped like y; converted to its dtype, as networks may have their own.
        integrand: (B, C) or None; steps follow the last column, all must be finite.
        sensitivity: shaped like y, derivative of the answer by the state, or None.
        backend: "auto", "native" or "torch".
    """
    slope = slope.to(rows.y.dtype)
    integrand = None if integrand is None else integrand.double()
    sensitivity = None if sensitivity is None else sensitivity.to(rows.y.dtype)
    _run(rows, backend).correct(rows, attempt, slope, integrand, sensitivity, control)


def _run(rows: History, backend: str):  # noqa: ANN202  (one of the two modules)
    return native if choose("adams_step", backend, rows.y) == "native" else reference
