"""The integral of the divergence from its values at a solver's nodes, and how far it is to be trusted."""

from __future__ import annotations

import torch
from torch import Tensor

from ..solvers.adams import Nodes
from ..solvers.quadrature import lagrange_basis, node_weights

_NEIGHBOURS = 4


class _Spread:
    """Running mean and sum of squared deviations (B, ...) over a growing number of samples a row."""

    def __init__(self, samples: Tensor) -> None:
        self.mean = samples.mean(-1)
        self.squares = (samples - self.mean[..., None]).square().sum(-1)

    def add(self, index: Tensor, samples: Tensor, count: Tensor) -> None:
        """More samples (R, ..., n) of the rows ``index``, which have ``count`` (R,) so far."""
        more, n = _Spread(samples), samples.shape[-1]
        count = count.reshape(-1, *(1,) * (more.mean.dim() - 1)).double()
        gap = more.mean - self.mean[index]
        self.mean[index] += gap * n / (count + n)
        self.squares[index] += more.squares + gap.square() * count * n / (count + n)

    def variance_of_mean(self, count: Tensor) -> Tensor:
        """NaN where ``count`` is 1."""
        count = count.reshape(-1, *(1,) * (self.mean.dim() - 1)).double()
        return self.squares / (count - 1) / count


class TraceIntegral:
    """int tr dv/dz dphi in nats over each row's own nodes, one polynomial of six nodes an interval.

    Args:
        nodes: of an integration of B rows.
        estimates: (B, N, K) divergence by each of K probes, or K = 1 for an exact trace.
        smooth: (B, N) the divergence without noise, or what changes as it does.
        exact: whether the estimates are exact.
        fresh: whether every node has probes of its own, whose noise is then independent.

    Attributes:
        probes: (B,) int64, how many each row has had.
    """

    def __init__(self, nodes: Nodes, estimates: Tensor, smooth: Tensor, *, exact: bool, fresh: bool) -> None:
        self.nodes, self.fresh = nodes, fresh
        self.weights = node_weights(nodes.t, nodes.count)
        coarse = node_weights(nodes.t, nodes.count, points=4)
        # quadratures of order four and six differ by the error of the former
        self.discretisation = ((self.weights - coarse) * self._used(smooth)).sum(1).abs()
        estimates = self._used(estimates)
        self.at_nodes = _Spread(estimates)
        self.columns = _Spread(self._integrated(estimates))
        self.probes = torch.full_like(nodes.count, estimates.shape[-1])
        self.exact = torch.full_like(nodes.count, exact, dtype=torch.bool)

    def _used(self, values: Tensor) -> Tensor:
        used = torch.arange(values.shape[1], device=values.device) < self.nodes.count[:, None]
        return torch.where(used.reshape(used.shape + (1,) * (values.dim() - 2)), values, 0.0)

    def _integrated(self, estimates: Tensor, index: Tensor | slice = slice(None)) -> Tensor:
        return (self.weights[index][..., None] * estimates).sum(1)

    def add(self, index: Tensor, estimates: Tensor) -> None:
        """Estimates (R, N, n) by n more probes for the rows ``index``."""
        self.at_nodes.add(index, estimates, self.probes[index])
        self.columns.add(index, self._integrated(estimates, index), self.probes[index])
        self.probes[index] += estimates.shape[-1]

    def replace_by_exact(self, index: Tensor, traces: Tensor) -> None:
        """The exact traces (R, N) of the rows ``index`` instead of their estimates."""
        self.columns.mean[index] = self._integrated(traces[..., None], index)[:, 0]
        self.exact[index] = True

    @property
    def value(self) -> Tensor:
        """(B,) mean over the probes."""
        return self.columns.mean

    @property
    def variance(self) -> Tensor:
        """(B,) of the value by the probes: 0 for exact traces, NaN where nothing tells it."""
        if bool(self.exact.all()):
            return torch.zeros_like(self.value)
        if self.fresh:
            noise = self.at_nodes.variance_of_mean(self.probes)
            variance = (self.weights.square() * noise).sum(1)
            variance = torch.where(self.probes > 1, variance, self._variance_of_one_probe())
        else:
            variance = self.columns.variance_of_mean(self.probes)
        return torch.where(self.exact, 0.0, variance)

    def _variance_of_one_probe(self) -> Tensor:
        """One value a node tells the noise as well: the trace is smooth and the noise is independent.

        A value minus the cubic through its four neighbours is noise of 1 + sum c_i^2 times the variance.
        """
        t, values, count = self.nodes.t, self.at_nodes.mean, self.nodes.count[:, None]
        here = torch.arange(t.shape[1], device=t.device)
        # the five nodes around each, moved inwards at the ends; the node itself is left out
        first = torch.minimum(here - _NEIGHBOURS // 2, count - _NEIGHBOURS - 1).clamp(min=0)
        index = first[..., None] + torch.arange(_NEIGHBOURS + 1, device=t.device)
        others = index != here[:, None]
        index = index.clamp(max=t.shape[1] - 1)
        near, at = (v.gather(1, index.flatten(1)).reshape(index.shape) for v in (values, t))
        coefficients = lagrange_basis(at, others, t)
        residual = values - (coefficients * near).sum(-1)
        noise = self._used(residual.square() / (1 + coefficients.square().sum(-1)))
        enough = self.nodes.count > _NEIGHBOURS
        return torch.where(enough, (self.weights.square() * noise).sum(1), torch.nan)
