"""Several processes that train one model: each takes a part of every batch.

Started by ``torchrun --nproc-per-node=4 script.py``.  Every process draws the random numbers of the whole
batch and takes its rows of them, so that the run is that of one process up to rounding (and dropout).
"""

from __future__ import annotations

import atexit
import gc
import os
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel


class Group:
    """The processes of this run; alone where torchrun's WORLD_SIZE is not set or 1.

    Raises RuntimeError where torch was built without distributed support.
    """

    def __init__(self, device: torch.device) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0")) if self.size > 1 else 0
        self.device = device
        if self.size > 1 and not distributed.is_available():
            raise RuntimeError("this PyTorch has no distributed support: run one process, without torchrun")
        if self.size > 1 and not distributed.is_initialized():
            if device.type == "cuda":
                torch.cuda.set_device(device)
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
            # not when the run ends: a group that was left cannot be joined again
            atexit.register(_leave)

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    def rows(self, batch: int) -> slice:
        """This process's rows of a batch."""
        return slice(self.rank * batch // self.size, (self.rank + 1) * batch // self.size)

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over the processes."""
        if self.size == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices, broadcast_buffers=False)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes."""
        if self.size > 1:
            distributed.all_reduce(values)
            values = values / self.size
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return flag if self.size == 1 else self.mean(torch.tensor(float(flag), device=self.device)).item() > 0

    def from_main(self, value: Any) -> Any:
        """The main process's value, in all of them; an exception is raised in all of them."""
        if self.size > 1:
            box = [value]
            distributed.broadcast_object_list(box, device=self.device)
            value = box[0]
        if isinstance(value, BaseException):
            raise value
        return value


def _leave() -> None:
    """At the end of the process.  Wrapped modules in reference cycles hold the group, whose threads then
    outlive the interpreter: now and then that aborted a process that had done its work."""
    gc.collect()
    if distributed.is_initialized():
        distributed.destroy_process_group()


def default_device() -> torch.device:
    """The GPU of this process where there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())))
