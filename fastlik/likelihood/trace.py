"""The integral of the divergence from its values at a solver's nodes, and how far it is to be trusted."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.quadrature import node_weights, residuals
from ..solvers.adams import Nodes


class TraceIntegral:
    """int tr dv/dz dphi in nats over each row's own nodes, one polynomial of six nodes an interval.

    Args:
        nodes: of an integration of B rows, whose integrand has for every node the divergence by each of K
            probes, the variance of their mean, and what changes as the divergence does, without noise; or
            an exact trace alone.
        exact: whether it is the latter.
        fresh: whether every node has probes of its own, whose noise is then independent.
        backend: of the quadrature, "auto", "native" or "torch".

    Attributes:
        value: (B,) mean over the probes.
        probes: (B,) int64, how many each row has had.
        discretisation: (B,) the root of the sum of squares of what each node, were its value off by its
            distance from its neighbours' polynomial, would change.  Of the polynomials of four and six nodes
            the nearer counts: a smooth divergence tells itself from one that the nodes do not resolve, such
            as that of a network with a fast time embedding, whose error no comparison of quadratures sees.
    """

    def __init__(self, nodes: Nodes, *, exact: bool, fresh: bool, backend: str = "auto") -> None:
        self.nodes, self.fresh = nodes, fresh
        self.weights = node_weights(nodes.t, nodes.count, backend=backend)
        integrand = self._used(nodes.integrand)
        followed = integrand[..., -1]
        apart = [residuals(nodes.t, nodes.count, followed, points, backend).abs() for points in (4, 6)]
        self.discretisation = (self.weights * torch.minimum(*apart)).square().sum(1).sqrt()
        estimates = integrand if exact else integrand[..., :-2]
        columns = self._integrated(estimates)
        self.value = columns.mean(1)
        self.probes = torch.full_like(nodes.count, columns.shape[1])
        self._deviations = (columns - self.value[:, None]).square().sum(1)
        self._noise = torch.zeros_like(nodes.t) if exact else integrand[..., -2]
        if not exact and nodes.links is not None:
            self._noise = (self._noise - 2 * _between(self._used(nodes.links), nodes.count)).clamp(min=0)
        self._exact = torch.full_like(nodes.count, exact, dtype=torch.bool)

    def _used(self, values: Tensor) -> Tensor:
        used = torch.arange(values.shape[1], device=values.device) < self.nodes.count[:, None]
        return torch.where(used.reshape(used.shape + (1,) * (values.dim() - 2)), values, 0.0)

    def _integrated(self, estimates: Tensor, index: Tensor | slice = slice(None)) -> Tensor:
        return (self.weights[index][..., None] * estimates).sum(1)

    def add(self, index: Tensor, estimates: Tensor, noise: Tensor) -> None:
        """Estimates (R, N, n) by n more probes for the rows ``index``, with their mean's variance (R, N)."""
        columns, n = self._integrated(estimates, index), estimates.shape[-1]
        mean, before = columns.mean(1), self.probes[index].double()
        gap, share = mean - self.value[index], n / (before + n)
        self._deviations[index] += (columns - mean[:, None]).square().sum(1) + gap.square() * before * share
        self.value[index] += gap * share
        self.probes[index] += n
        share = share[:, None]
        self._noise[index] = (1 - share).square() * self._noise[index] + share.square() * noise

    def replace_by_exact(self, index: Tensor, traces: Tensor) -> None:
        """The exact traces (R, N) of the rows ``index`` instead of their estimates."""
        self.value[index] = self._integrated(traces[..., None], index)[:, 0]
        self._exact[index] = True

    @property
    def variance(self) -> Tensor:
        """(B,) of the value by the probes: 0 for exact traces, NaN for a single frozen probe."""
        if self.fresh:
            variance = (self.weights.square() * self._noise).sum(1)
        else:
            variance = self._deviations / (self.probes - 1) / self.probes
        return torch.where(self._exact, 0.0, variance)


def _between(links: Tensor, count: Tensor) -> Tensor:
    """(B, N) mean of each node's products with the one before, at its own place, and the one after."""
    after = torch.cat((links[:, 1:], torch.zeros_like(links[:, :1])), 1)
    number = torch.arange(links.shape[1], device=links.device)
    neighbours = (number > 0).long() + (number + 1 < count[:, None]).long()
    return (torch.where(number > 0, links, 0.0) + after) / neighbours.clamp(min=1)
