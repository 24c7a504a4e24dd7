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

from ..derivatives.divergence import exact_trace, traces
from ..derivatives.probes import probe
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

    @property
    def columns(self) -> int:
        """Integrals carried along: one per probe, so that their spread gives the standard error."""
        return 1 if self.exact else self.probes


class LikelihoodFlow:
    """z and its log-density over the clock u, for some rows of a batch (a solver's System).

    Without a ``trace`` it is the state alone.  With ``companion``, the integrand of Hutchinson's estimates
    has a last column that changes as the trace does, without noise: what steps and error estimates follow.
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
        self._vectors: Tensor | None = None

    def take(self, index: Tensor) -> LikelihoodFlow:
        condition = {name: take_rows(v, index, len(self.rows)) for name, v in self.condition.items()}
        return LikelihoodFlow(self.model, self.clock, self.trace, self.rows[index], condition, self.companion)

    def __call__(self, u: Tensor, z: Tensor, node: Tensor) -> tuple[Tensor, Tensor | None]:
        angle, rate = self.clock.angle(u), self.clock.rate(u)
        field = self._field(angle)
        if self.trace is None:
            return per_row(rate, z) * field(z), None
        if self.trace.exact:
            v, trace = exact_trace(field, z, self.trace.mode)
            trace = trace[:, None]
        else:
            v, trace = traces(field, z, self._probes(z, node), self.trace.mode)
            if self.companion:
                trace = torch.cat((trace, _companion(angle, z, v)[:, None]), 1)
        return per_row(rate, z) * v, rate[:, None] * trace

    def divergences(self, u: Tensor, z: Tensor, node: Tensor, draws: range | None) -> Tensor:
        """(B, n) integrands by the probes numbered ``draws``, or (B, 1) exact ones for None."""
        angle, rate = self.clock.angle(u), self.clock.rate(u)
        if draws is None:
            _, trace = exact_trace(self._field(angle), z, self.trace.mode)
            return rate[:, None] * trace[:, None]
        _, trace = traces(self._field(angle), z, self._draw(z, node, draws), self.trace.mode)
        return rate[:, None] * trace

    def _field(self, angle: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda z: self.model.angular_velocity(z, angle, **self.condition)

    def sensitivity(self, u: Tensor, z: Tensor, slope: Tensor) -> Tensor:
        """grad_z log p, by the model's own score: -eps_hat / sin(phi) = -z - v / tan(phi)."""
        angle = self.clock.angle(u)
        # at phi = 0 the score has no limit in terms of v; there the state no longer moves either
        gain = 1 / (self.clock.rate(u) * angle.tan().clamp(min=1e-12))
        return -z - per_row(gain, z) * slope

    def _probes(self, z: Tensor, node: Tensor) -> Tensor:
        """The probes (K, *z.shape) of each row's present step, kept from stage to stage.

        A flow with a companion has one stage a step: comparing would only wait for the device.
        """
        known = self._node is not None and (
            not self.trace.fresh or (not self.companion and torch.equal(self._node, node))
        )
        if not known:
            self._vectors, self._node = self._draw(z, node, range(self.trace.probes)), node.clone()
        return self._vectors

    def _draw(self, z: Tensor, node: Tensor, draws: range) -> Tensor:
        trace = self.trace
        node = node if trace.fresh else torch.zeros_like(node)
        numbers = (trace.first_draw + draw for draw in draws)
        return torch.stack([probe(trace.kind, trace.seed, self.rows, number, node, z) for number in numbers])


def _companion(angle: Tensor, z: Tensor, v: Tensor) -> Tensor:
    """2 z . v + |v|^2 / tan(phi), (B,) float64: as large and as smooth in phi as the trace, without noise.

    With eps = sin(phi) z + cos(phi) v, Stein's identity E tr d eps / dz = E |eps|^2 / sin(phi) makes the two
    equal on average where E |z|^2 = d.
    """
    z, v = z.double().flatten(1), v.double().flatten(1)
    return 2 * (z * v).sum(1) + v.square().sum(1) / angle.tan().clamp(min=1e-12)


def take_rows(value: object, index: Tensor, batch: int) -> object:
    """A condition's rows ``index`` where it is a tensor with one entry a row, else itself."""
    if isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == batch:
        return value[index]
    return value
