"""The solution between a solver's steps, from the slopes that the steps have evaluated anyway."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..ops.rk_step import combine
from ..ops.rk_step.reference import per_row


@dataclass(frozen=True)
class Step:
    """One attempted step of the rows ``rows`` (b,) int64 of a batch, from t to t_new (b,) float64.

    A row whose attempt was rejected has t_new = t.  h (b,) float64, y and y_new (b, *event), first
    (b, *event) and later (S-1, b, *event) the slopes at the stages, dense their weights in a
    :class:`Tableau`.
    """

    rows: Tensor
    t: Tensor
    t_new: Tensor
    h: Tensor
    y: Tensor
    y_new: Tensor
    first: Tensor
    later: Tensor
    dense: tuple[tuple[float, ...], ...]
    backend: str

    def polynomial(self) -> Tensor:
        """(D, b, *event): y(t + theta h) = y + sum_j theta^(j+1) polynomial[j]."""
        first = per_row(self.h.to(self.y.dtype), self.y) * self.first
        columns = zip(*self.dense, strict=True)
        return torch.stack(
            [combine(w * first, self.later, later, self.h, backend=self.backend) for w, *later in columns]
        )

    def at(self, t: Tensor, row: Tensor) -> Tensor:
        """(n, *event) at times t (n,) within the steps of the rows at positions ``row`` (n,)."""
        value = _evaluate(self.y[row], self.polynomial()[:, row], (t - self.t[row]) / self.h[row])
        return torch.where(per_row(t == self.t_new[row], value), self.y_new[row], value)


class Recorder(Protocol):
    """Watches an integration.  ``pending`` and ``add`` are called once per attempt, and read nothing
    from the device: the solver reads the total with what it has to know anyway."""

    def pending(self, step: Step) -> Tensor:
        """(b,) int64: how many entries each row's step adds."""

    def add(self, step: Step, pending: Tensor, total: int) -> None:
        """Record the step; called where ``total``, the sum of ``pending``, is not 0."""


class Samples:
    """The states y (T, B, *event) at times (T,) or (B, T), filled in as the steps pass them.

    NaN at the times that a row never reached.
    """

    def __init__(self, times: Tensor, y0: Tensor) -> None:
        self.times, self.direction = times, _direction(times).expand(len(y0)).contiguous()
        self.sorted = times * _direction(times)[..., None]
        at_start = (times == times[..., :1]).expand(len(y0), -1).T
        self.y = torch.where(at_start.reshape(*at_start.shape, *(1,) * (y0.dim() - 1)), y0, torch.nan)
        self.next = at_start.sum(0)

    def pending(self, step: Step) -> Tensor:
        goal = step.t_new * self.direction[step.rows]
        if self.times.dim() == 1:
            reached = torch.searchsorted(self.sorted, goal, right=True)
        else:
            reached = torch.searchsorted(self.sorted[step.rows], goal[:, None], right=True).squeeze(1)
        return reached - self.next[step.rows]

    def add(self, step: Step, pending: Tensor, total: int) -> None:
        last = pending.cumsum(0)
        entry = torch.arange(total, device=last.device)
        position = torch.searchsorted(last, entry, right=True)
        row = step.rows[position]
        column = self.next[row] + entry - (last - pending)[position]
        t = self.times[column] if self.times.dim() == 1 else self.times[row, column]
        self.y[column, row] = step.at(t, position)
        self.next[step.rows] += pending


class Path:
    """Every step that was taken: 1 + D states each, D the degree of the method's dense output."""

    def __init__(self, t0: Tensor, t1: Tensor, y0: Tensor, degree: int) -> None:
        self.direction, self.reached = _direction(torch.stack((t0, t1), 1)), t0.clone()
        # a constant piece for rows that never take a step
        self.rows, self.t, self.h = [torch.arange(len(t0), device=t0.device)], [t0], [torch.ones_like(t0)]
        self.y, self.polynomial = [y0], [y0.new_zeros(degree, *y0.shape)]

    def pending(self, step: Step) -> Tensor:
        return (step.t_new != step.t).long()

    def add(self, step: Step, pending: Tensor, total: int) -> None:
        taken = torch.nonzero_static(pending, size=total).flatten()
        self.rows.append(step.rows[taken])
        self.t.append(step.t[taken])
        self.h.append(step.h[taken])
        self.y.append(step.y[taken])
        self.polynomial.append(step.polynomial()[:, taken])
        self.reached[step.rows] = step.t_new

    def interpolant(self) -> Interpolant:
        """The solution as recorded so far."""
        rows = torch.cat(self.rows)
        order = rows.argsort(stable=True)
        count = rows.bincount(minlength=len(self.reached))
        first = count.cumsum(0) - count
        t, rows = torch.cat(self.t)[order], rows[order]
        starts = t.new_full((len(count), int(count.max()) if len(count) else 1), torch.inf)
        starts[rows, torch.arange(len(rows), device=t.device) - first[rows]] = t * self.direction[rows]
        return Interpolant(
            self.direction,
            self.reached,
            starts,
            first,
            t,
            torch.cat(self.h)[order],
            torch.cat(self.y)[order],
            torch.cat(self.polynomial, 1)[:, order],
        )


@dataclass(frozen=True)
class Interpolant:
    """A solution as a function of time: piecewise polynomials, each row with its own pieces.

    direction, reached (B,); starts (B, N) start of each row's pieces in its direction of time; first
    (B,) where a row's pieces begin among all, whose t, h are (n,), y (n, *event), polynomial
    (D, n, *event).
    """

    direction: Tensor
    reached: Tensor
    starts: Tensor
    first: Tensor
    t: Tensor
    h: Tensor
    y: Tensor
    polynomial: Tensor

    def __call__(self, t: Tensor | float) -> Tensor:
        """(T, B, *event) at t (T,) or (B, T), in any order; (B, *event) at a single time.

        NaN at times outside what a row's integration has covered.
        """
        t = torch.as_tensor(t, dtype=torch.float64, device=self.t.device)
        batch = len(self.reached)
        if t.dim() > 2 or (t.dim() == 2 and len(t) != batch):
            raise ValueError(f"t must be a number or have shape (T,) or ({batch}, T), got {tuple(t.shape)}")
        times = (t if t.dim() == 2 else t.expand(batch, -1) if t.dim() else t.expand(batch, 1)).T.contiguous()
        ahead = times * self.direction
        piece = torch.searchsorted(self.starts, ahead.T.contiguous(), right=True).T - 1
        inside = (piece >= 0) & (ahead <= self.reached * self.direction)
        index = (self.first + piece.clamp(min=0)).flatten()
        theta = (times.flatten() - self.t[index]) / self.h[index]
        value = _evaluate(self.y[index], self.polynomial[:, index], theta)
        value = value.masked_fill(~per_row(inside.flatten(), value), torch.nan)
        value = value.unflatten(0, times.shape)
        return value if t.dim() else value[0]


def _evaluate(y: Tensor, polynomial: Tensor, theta: Tensor) -> Tensor:
    """y (n, *event) + sum_j theta^(j+1) polynomial[j], theta (n,); each element by itself, so that a
    row's value does not depend on the others."""
    theta = per_row(theta.to(y.dtype), y)
    value = polynomial[-1]
    for coefficient in reversed(polynomial[:-1]):
        value = coefficient + theta * value
    return y + theta * value


def _direction(times: Tensor) -> Tensor:
    """+1 or -1 for times (..., T) that increase or decrease; +1 where they do neither."""
    return torch.where(times[..., -1] < times[..., 0], -1.0, 1.0).double()
