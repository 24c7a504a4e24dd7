"""Counts the places where the host has to wait for the device, on a machine without one."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# their result, or its shape, is known to the host only after a transfer from the device
_READING = {
    "_local_scalar_dense",
    "bincount",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "nonzero_numpy",
    "unique_consecutive",
    "unique_dim",
    "_unique",
    "_unique2",
}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


class HostReads(TorchDispatchMode):
    """Context manager; ``count`` is the number of reads since it was entered, by name in ``names``.

    On the CPU .tolist() and .numpy() pass no dispatcher, so they are counted where they are called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self._patches: list[Any] = []

    @property
    def count(self) -> int:
        return len(self.names)

    def __enter__(self) -> HostReads:
        for name in ("tolist", "numpy"):
            patch = mock.patch.object(Tensor, name, self._counted(name, getattr(Tensor, name)))
            patch.start()
            self._patches.append(patch)
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        while self._patches:
            self._patches.pop().stop()

    def _counted(self, name: str, method: Any) -> Any:
        def call(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.names.append(name)
            return method(tensor, *args, **kwargs)

        return call

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in _READING or (name in _INDEXING and _has_mask(args[1])):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def _has_mask(indices: Any) -> bool:
    """A boolean index becomes the positions of its True elements, as many as the device says."""
    return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)
