"""The augmented ODE of a likelihood: the state with its log-density, as a solver's System.

With z = x / s(t), s = sqrt(alpha^2 + sigma^2), and the angle phi = arctan(sigma / alpha),

    dz/dphi = v(z, phi),   log p(x) = log p(x_prior) + d log(s_prior / s_data) + int tr dv/dz dphi

(Chen et al. 2018, eq. 8; Song et al. 2021, ICLR, eq. 39).  State and trace share one network evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..derivatives.divergence import exact_trace, trace_parts, traces
from ..derivatives.probes import Draws
from ..model import ScoreModel, per_row
from ..solvers.clock import Clock


@dataclass(frozen=True)
class Trace:
    """How the divergence is taken: exactly, or by ``probes`` probes of a kind, keyed by ``seed`` and
    numbered from ``first_draw``."""

    exact: bool
    probes: int
    kind: str
    fresh: bool
    seed: int
    mode: str
    first_draw: int = 0
    backend: str = "auto"

    @property
    def columns(self) -> int:
        """Integrals carried along: one per probe, so that their spread gives the standard error."""
        return 1 if self.exact else self.probes


class LikelihoodFlow:
    """z and its log-density over the clock u, for some rows of a batch (a solver's System).

    Without a ``trace`` it is the state alone.  With ``companion``, the integrand of Hutchinson's estimates
    has two more columns: their noise, as :func:`probe_noise` gives it with the features, and one that changes
    as the trace does, without noise: what steps and error estimates follow.
    """

    def __init__(
        self,
        model: ScoreModel,
        clock: Clock,
        trace: Trace | None,
        rows: Tensor,
        condition: dict,
        companion: bool = False,
    ) -> None:
        self.model, self.clock, self.trace = model, clock, trace
        self.rows, self.condition = rows, condition
        self.companion = companion
        self._node: Tensor | None = None
        self._version: int | None = None
        self._draws: Draws | None = None
        self._vectors: Tensor | None = None

    def take(self, index: Tensor) -> LikelihoodFlow:
        condition = {name: take_rows(v, index, len(self.rows)) for name, v in self.condition.items()}
        return LikelihoodFlow(self.model, self.clock, self.trace, self.rows[index], condition, self.companion)

    def __call__(self, u: Tensor, z: Tensor, node: Tensor) -> tuple[Tensor | None, ...]:
        angle, rate = self.clock.angle(u), self.clock.rate(u)
        field, trace = self._field(angle, z), self.trace
        if trace is None:
            return per_row(rate, z) * field(z), None
        if trace.exact:
            v, integrand = exact_trace(field, z, trace.mode, trace.backend)
            return per_row(rate, z) * v, (rate * integrand)[:, None]
        vectors = self._probes(z, node)
        if not self.companion:
            v, integrand = traces(field, z, vectors, trace.mode, trace.backend, draws=self._draws)
            return per_row(rate, z) * v, rate[:, None] * integrand
        v, parts = trace_parts(field, z, vectors, trace.mode, trace.backend)
        integrand = rate[:, None] * parts.sum(2).T
        parts = rate[:, None] * parts
        smooth = rate * _companion(angle, z, v)
        noise, features = probe_noise(parts, trace.kind)
        integrand = torch.cat((integrand, noise[:, None], smooth[:, None]), 1)
        return per_row(rate, z) * v, integrand, features

    def divergences(self, u: Tensor, z: Tensor, node: Tensor, draws: range | None) -> tuple[Tensor, Tensor]:
        """Integrands (B, n) by the probes numbered ``draws`` and the variance (B,) of their mean, or exact
        ones (B, 1) and zeros for None."""
        angle, rate = self.clock.angle(u), self.clock.rate(u)
        field, trace = self._field(angle, z), self.trace
        if draws is None:
            _, value = exact_trace(field, z, trace.mode, trace.backend)
            return (rate * value)[:, None], torch.zeros_like(rate)
        vectors = self._drawn(node, draws).vectors(z)
        _, parts = trace_parts(field, z, vectors, trace.mode, trace.backend)
        parts = rate[:, None] * parts
        return parts.sum(2).T, probe_noise(parts, trace.kind)[0]

    def _field(self, angle: Tensor, z: Tensor) -> Callable[[Tensor], Tensor]:
        return self.model.field(angle, z, self.condition)

    def sensitivity(self, u: Tensor, z: Tensor, slope: Tensor) -> Tensor:
        """grad_z log p, by the model's own score: -eps_hat / sin(phi) = -z - v / tan(phi)."""
        angle = self.clock.angle(u)
        # at phi = 0 the score has no limit in terms of v; there the state no longer moves either
        gain = 1 / (self.clock.rate(u) * angle.tan().clamp(min=1e-12))
        return -z - per_row(gain, z) * slope

    def _probes(self, z: Tensor, node: Tensor) -> Tensor:
        """The probes (K, *z.shape) of each row's present step, kept from stage to stage.

        The stages of a step share one tensor of numbers, which nothing writes to between them: comparing
        its values would wait for the device.
        """
        # tensors of inference mode do not say how often they were written to
        version = None if node.is_inference() else node._version
        same = self._node is node and version is not None and self._version == version
        if self._vectors is None or (self.trace.fresh and not same):
            self._draws = self._drawn(node, range(self.trace.probes))
            self._vectors = self._draws.vectors(z)
            self._node, self._version = node, version
        return self._vectors

    def _drawn(self, node: Tensor, numbers: range) -> Draws:
        trace = self.trace
        node = node if trace.fresh else torch.zeros_like(node)
        first = trace.first_draw
        numbers = range(first + numbers.start, first + numbers.stop)
        return Draws(trace.kind, trace.seed, self.rows, numbers, node)


def probe_noise(parts: Tensor, kind: str) -> tuple[Tensor, Tensor | None]:
    """The variance (B,) of the mean over K probes of v'Jv, and features for K = 1, from v_i (Jv)_i (K, B, d).

    For a Rademacher probe v_i (Jv)_i = J_ii + e_i with E |e|^2 = sum_{i != j} J_ij^2, twice of which is the
    variance of v'Jv for a symmetric J (and an upper bound for any).  For a Gaussian probe the square is
    |J|_F^2 + 2 sum_i J_ii^2, and the variance twice |J|_F^2.  Products of different probes hold the diagonal
    alone and remove it: of probes at one node, or for K = 1 of neighbouring nodes, whose features the solver
    multiplies; then the variance holds the whole square still.
    """
    probes, _, size = parts.shape
    diagonals = 2.0 if kind == "gaussian" else 1.0
    if kind == "rademacher":  # a multiple of the identity makes no noise
        parts = (parts - parts.mean(2, keepdim=True)) * (size / max(1, size - 1)) ** 0.5
    square = parts.square().sum((0, 2)) / probes
    if probes == 1:
        return 2 * square, diagonals**0.5 * parts[0]
    crossed = (parts.sum(0).square().sum(1) - probes * square) / (probes * (probes - 1))
    return (2 * (square - diagonals * crossed) / probes).clamp(min=0), None


def _companion(angle: Tensor, z: Tensor, v: Tensor) -> Tensor:
    """2 z . v + |v|^2 / tan(phi), (B,) float64: as large and as smooth in phi as the trace, without noise.

    With eps = sin(phi) z + cos(phi) v, Stein's identity E tr d eps / dz = E |eps|^2 / sin(phi) makes the two
    equal on average where E |z|^2 = d.
    """
    z, v = z.double().flatten(1), v.double().flatten(1)
    return 2 * (z * v).sum(1) + v.square().sum(1) / angle.tan().clamp(min=1e-12)


def take_rows(value: object, index: Tensor | slice, batch: int) -> object:
    """A condition's rows ``index`` where it is a tensor with one entry a row, else itself."""
    if isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == batch:
        return value[index]
    return value
