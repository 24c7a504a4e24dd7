"""More probes at the nodes of a finished integration, until the standard error is what was asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from ..solvers.adams import Nodes
from ..solvers.status import Status
from ..solvers.system import Integration
from .flow import LikelihoodFlow
from .trace import TraceIntegral

# probes that share an evaluation of the network
_TOGETHER = 4
# evaluations in one call of the network, where the batch itself is smaller
_BATCH = 256


def most_probes(probes: int, size: int) -> int:
    """More than any row of ``size`` numbers ends with: one that needs ``size`` gets its exact trace."""
    return max(probes, size) + _TOGETHER


def add_probes(
    flow: LikelihoodFlow, nodes: Nodes, integral: TraceIntegral, target: float, end: Integration
) -> None:
    """Add probes to ``integral`` for the rows whose standard error is above ``target`` nats.

    How many follows from the variance so far, a row at a time: it depends on no other row.  A row that
    would need as many probes as it has dimensions gets its exact trace.  ``end.nfe`` counts them.
    """
    size = end.y[:1].numel()
    while True:
        variance = integral.variance
        open_rows = ~(variance <= target**2) & (end.status == Status.DONE)
        index = open_rows.nonzero().flatten()
        if len(index) == 0:
            return
        # a variance that is not known is known with one probe more
        ratio = (variance[index] / target**2).nan_to_num(nan=1.5, posinf=1e9)
        wanted = (integral.probes[index] * ratio).ceil().long()
        costly = wanted >= size
        if bool(costly.any()):
            rows = index[costly]
            traces, _ = _evaluate(flow, nodes, rows, None)
            integral.replace_by_exact(rows, traces[..., 0])
            end.nfe[rows] += nodes.count[rows]
        missing = torch.where(costly, 0, (wanted - integral.probes[index]).clamp(min=1))
        for start in range(0, int(missing.max()), _TOGETHER):
            _add_together(flow, nodes, integral, index[missing > start], end)


def _add_together(
    flow: LikelihoodFlow, nodes: Nodes, integral: TraceIntegral, index: Tensor, end: Integration
) -> None:
    for have in integral.probes[index].unique().tolist():
        rows = index[integral.probes[index] == have]
        integral.add(rows, *_evaluate(flow, nodes, rows, range(have, have + _TOGETHER)))
        end.nfe[rows] += nodes.count[rows]


def _evaluate(flow: LikelihoodFlow, nodes: Nodes, rows: Tensor, draws: range | None) -> tuple[Tensor, Tensor]:
    """Divergences (R, N, n) at the rows' nodes by the probes ``draws``, with the variance (R, N) of their
    mean, or exact ones for None."""
    used = torch.arange(nodes.t.shape[1], device=rows.device) < nodes.count[rows, None]
    which, node = used.nonzero(as_tuple=True)
    traces = nodes.t.new_zeros(*used.shape, 1 if draws is None else len(draws))
    noise = nodes.t.new_zeros(used.shape)
    size = max(_BATCH, len(nodes.t))
    for part in torch.arange(len(which), device=rows.device).split(size):
        row, at = rows[which[part]], node[part]
        place = which[part], at
        traces[place], noise[place] = flow.take(row).divergences(
            nodes.t[row, at], nodes.states[row, at], at, draws
        )
    return traces, noise
