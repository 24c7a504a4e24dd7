"""Gradients of nats by x, parameters and conditions: the adjoint of the discrete Adams integration.

Discretise, then optimise: the numbers that were computed are differentiated, on the nodes that were chosen,
which count as constants.  Between the forward and the backward pass only x and the nodes' times are kept; the
states are computed again, one evaluation of the network a node, and each node is differentiated by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.quadrature import node_weights
from ..ops.quadrature.lagrange import lagrange_weights
from .flow import LikelihoodFlow


@dataclass
class Path:
    """An integration of B rows: node times t (B, N) of which row b has count[b], the order of the method."""

    t: Tensor
    count: Tensor
    order: int

    def put(self, index: Tensor, other: Path) -> None:
        """Take the rows ``index`` from another path."""
        more = other.t.shape[1] - self.t.shape[1]
        if more > 0:
            self.t = torch.cat((self.t, self.t.new_zeros(len(self.t), more)), 1)
        self.t[index, : other.t.shape[1]] = other.t
        self.count[index] = other.count

    def step_weights(self, n: int) -> tuple[Tensor, Tensor]:
        """Of the step to node n: predictor's (B, k) and corrector's (B, k + 1) for nodes first .. n (- 1);
        0 for rows without it."""
        first, there = max(0, n - self.order), self.count > n
        nodes = self.t[:, first : n + 1]
        valid = there[:, None].expand(nodes.shape)
        ends = self.t[:, n - 1], self.t[:, n]
        predict = lagrange_weights(nodes[:, :-1], valid[:, :-1], *ends)
        return predict, lagrange_weights(nodes, valid, *ends)


def replay(flow: LikelihoodFlow, path: Path, z: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(end like z, int tr dv/dz dphi (B,) float64, the states at the nodes) on a path that is known."""
    rows, slopes, states = len(z), [], []
    weights, change = node_weights(path.t, path.count), path.t.new_zeros(rows)
    state, end = z, z
    for n in range(path.t.shape[1]):
        if n > 0:
            predict, correct = path.step_weights(n)
            past = torch.stack(slopes[-path.order :], 1)
            state = end + _combined(predict, past)
        states.append(state)
        here = (path.count > n).nonzero().flatten()
        slope, trace = _evaluate(flow.take(here), path.t[here, n], state[here], n)
        slopes.append(torch.zeros_like(z).index_copy(0, here, slope))
        change = change.index_add(0, here, weights[here, n] * trace)
        if n > 0:
            end = end + _combined(correct, torch.stack(slopes[-path.order - 1 :], 1))
    return end, change, states


def _combined(weights: Tensor, slopes: Tensor) -> Tensor:
    return torch.einsum("bk,bk...->b...", weights.to(slopes.dtype), slopes)


def _evaluate(flow: LikelihoodFlow, t: Tensor, z: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Slope and divergence (R,), averaged over the probes, at node n."""
    slope, integrand, *_ = flow(t, z, torch.full_like(t, n, dtype=torch.int64))
    return slope, integrand[:, : flow.trace.columns].mean(1)


class _Solved(torch.autograd.Function):
    """(end, change) that were computed without a graph, with the gradients of :func:`replay`."""

    @staticmethod
    def forward(
        ctx: object, flow: LikelihoodFlow, path: Path, end: Tensor, change: Tensor, z: Tensor, *leaves: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.flow, ctx.path = flow, path
        ctx.save_for_backward(z, *leaves)
        return end.clone(), change.clone()

    @staticmethod
    def backward(ctx: object, of_end: Tensor, of_change: Tensor) -> tuple[Tensor | None, ...]:
        z, *leaves = ctx.saved_tensors
        of_z, of_leaves = _adjoint(ctx.flow, ctx.path, z, of_end, of_change, leaves)
        return None, None, None, None, of_z, *of_leaves


def attach(flow: LikelihoodFlow, path: Path, z: Tensor, end: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
    """``end`` and ``change`` with a graph to z, the model's parameters and the conditions."""
    sources = [*flow.model.parameters(), *(v for v in flow.condition.values() if isinstance(v, Tensor))]
    leaves = [source for source in sources if source.requires_grad]
    return _Solved.apply(flow, path, end, change, z, *leaves)


def _adjoint(
    flow: LikelihoodFlow, path: Path, z: Tensor, of_end: Tensor, of_change: Tensor, leaves: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Gradients of of_end . end + of_change . change by z and the leaves."""
    wanted = (of_end.flatten(1) != 0).any(1) | (of_change != 0)
    with torch.no_grad():
        _, _, states = replay(flow, path, z.detach())
    weights = node_weights(path.t, path.count) * of_change[:, None]
    of_leaves = [torch.zeros_like(leaf) for leaf in leaves]
    of_slopes = [torch.zeros_like(z) for _ in states]
    of_state = of_end  # of the corrected state, which the next step starts from
    for n in reversed(range(len(states))):
        first = max(0, n - path.order)
        if n > 0:
            predict, correct = path.step_weights(n)
            for j in range(first, n + 1):
                of_slopes[j] = of_slopes[j] + _scaled(correct[:, j - first], of_state)
        here = ((path.count > n) & wanted).nonzero().flatten()
        with torch.enable_grad():
            state = states[n][here].detach().requires_grad_()
            slope, trace = _evaluate(flow.take(here), path.t[here, n], state, n)
            total = (slope * of_slopes[n][here]).sum() + (trace * weights[here, n]).sum()
            found = torch.autograd.grad(total, [state, *leaves], allow_unused=True, materialize_grads=True)
        of_predicted = torch.zeros_like(z).index_copy(0, here, found[0])
        for total, part in zip(of_leaves, found[1:], strict=True):
            total += part
        of_state = of_state + of_predicted
        if n > 0:
            for j in range(first, n):
                of_slopes[j] = of_slopes[j] + _scaled(predict[:, j - first], of_predicted)
    return of_state, of_leaves


def _scaled(weights: Tensor, values: Tensor) -> Tensor:
    return weights.to(values.dtype).reshape(-1, *(1,) * (values.dim() - 1)) * values
