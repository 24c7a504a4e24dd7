"""Steps of a solver as graphs of the device: launched as a whole, without Python's work between kernels."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")
Step = Callable[[], Result]


def _cuda(step: Step) -> Step:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()

    def replay() -> Result:
        graph.replay()
        return result

    return replay


CAPTURES: dict[str, Callable[[Step], Step]] = {"cuda": _cuda}
"""By the type of the device: what makes a graph of a step."""


def has_graphs(device: torch.device) -> bool:
    """Whether steps on this device can be captured."""
    return device.type in CAPTURES


def capture(step: Step, device: torch.device) -> Step:
    """``step`` as a graph of the operations that it runs now: the same kernels on the same memory.

    The step must keep what it carries over in tensors that it writes in place, must not wait for the device,
    and must have run a few times, so that all that is made once has been made.  It returns the same tensors
    at every call.  Where it cannot be captured, because the network waits for the device or makes tensors on
    the host, a warning says so, and the step itself is returned.
    """
    try:
        return CAPTURES[device.type](step)
    except RuntimeError as reason:
        warnings.warn(f"the solver's step runs without a CUDA graph: {reason}", stacklevel=2)
        return step
