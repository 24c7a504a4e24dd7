"""Cost that does not depend on the machine: network evaluations, and work in units of one forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .workloads import Workload


class Cost(NamedTuple):
    """Network evaluations a row and work a row, in forward passes of one row.

    One evaluation with its derivative costs about two or three forward units.
    """

    evaluations: float
    forward_units: float


class _Flops(TorchDispatchMode):
    """PyTorch's FLOP formulas without FlopCounterMode's module hooks, which torch.func does not bear."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def flops(run: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions that ``run`` calls."""
    with _Flops() as counter:
        run()
    return counter.total


def count(workload: Workload, run: Callable[[], object]) -> Cost:
    """What ``run`` costs on the workload's network."""
    rows = 0

    def hook(net: torch.nn.Module, inputs: tuple) -> None:
        nonlocal rows
        rows += len(inputs[0])

    x, total = workload.x, len(workload.x)
    with torch.no_grad():
        forward = flops(lambda: workload.net(x, x.new_zeros(total)))
    handle = workload.model.net.register_forward_pre_hook(hook)
    try:
        work = flops(run)
    finally:
        handle.remove()
    return Cost(rows / total, work / forward)
