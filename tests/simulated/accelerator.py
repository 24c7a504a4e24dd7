"""An accelerator simulated on the CPU: its tensors live in host memory, but the host cannot reach them.

What would make the host wait for a real one, copies in either direction and reads of results, is counted;
while a graph is captured it is an error, as on a real one.  A captured graph replays the operations on the
memory that they had, whatever Python would do instead by then.

Installing it cannot be undone in a process: use it in one of its own.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "simulated"
# their result, or its shape, is known to the host only after a transfer
_READING = {"_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero", "_unique2"}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}

waits: list[str] = []
"""What the host has waited for, and the line of the package where."""
_recording: list[tuple] | None = None


class Simulated(Tensor):
    """A tensor on the device; ``inner`` is where its numbers are."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Simulated:
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=NAME
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _run(func, args, kwargs or {})

    def tolist(self) -> list:
        _wait("tolist")
        return self.inner.tolist()

    def __repr__(self) -> str:
        return f"Simulated({self.inner})"


def install() -> None:
    """Make ``device="simulated"`` known to PyTorch."""
    _setup_privateuseone_for_python_backend(NAME)
    library = torch.library.Library("aten", "IMPL")
    library.impl("empty_strided", _empty_strided, "PrivateUse1")
    library.impl("empty.memory_format", _empty, "PrivateUse1")
    library.impl("_copy_from", _copy_from, "PrivateUse1")
    for name in ("arange", "arange.start", "arange.start_step", "eye", "eye.m", "linspace"):
        # PyTorch's own make an empty tensor and resize it, which a wrapper does not follow
        library.impl(name, _made_on_host(name), "PrivateUse1")
    install.library = library  # lives as long as the device


def to_device(x: Tensor) -> Tensor:
    """A copy on the device that is not counted."""
    return Simulated(x.detach().clone())


def module_to_device(module: torch.nn.Module) -> torch.nn.Module:
    for each in module.modules():
        for held in (each._parameters, each._buffers):
            for name, value in held.items():
                if value is not None:
                    moved = to_device(value)
                    held[name] = torch.nn.Parameter(moved) if held is each._parameters else moved
    return module


def capture(run: Callable[[], Any]) -> Callable[[], Any]:
    """As fastlik.solvers.graph: ``run``'s operations, to be replayed; its results' memory stays the same.

    Operations run while they are captured, so that the first replay has nothing left to do.
    """
    global _recording
    _recording = operations = []
    try:
        result = run()
    finally:
        _recording = None
    fresh = True

    def replay() -> Any:
        nonlocal fresh
        if not fresh:
            for func, args, kwargs, outputs in operations:
                _copy_all(outputs, func(*args, **kwargs))
        fresh = False
        return result

    replay.operations = len(operations)
    return replay


def _copy_all(outputs: Any, results: Any) -> None:
    for old, new in zip(pytree.tree_leaves(outputs), pytree.tree_leaves(results), strict=True):
        if isinstance(old, Tensor) and old is not new:
            old.copy_(new)


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **ignored: Any) -> Tensor:
    return Simulated(torch.empty_strided(size, stride, dtype=dtype))


def _empty(size: Any, *, dtype: Any = None, **ignored: Any) -> Tensor:
    return Simulated(torch.empty(size, dtype=dtype))


def _made_on_host(name: str) -> Callable[..., Tensor]:
    packet, _, overload = name.partition(".")
    func = getattr(getattr(torch.ops.aten, packet), overload or "default")

    def make(*args: Any, dtype: Any = None, **ignored: Any) -> Tensor:
        return Simulated(func(*args, dtype=dtype))

    return make


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    _wait("copy")
    _inner(target).copy_(_inner(source))
    return target


def _inner(value: Any) -> Any:
    if isinstance(value, torch.device) and value.type == NAME:
        return torch.device("cpu")
    return value.inner if isinstance(value, Simulated) else value


def _leaves(kwargs: dict) -> bool:
    """Whether a conversion leads off the device."""
    device = kwargs.get("device")
    return device is not None and torch.device(device).type != NAME


def _on_host(value: Any) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, Simulated)


def _wait(what: str) -> None:
    frames = [f for f in traceback.extract_stack() if "/fastlik/" in f.filename]
    place = f"{frames[-1].filename.split('/fastlik/')[-1]}:{frames[-1].lineno}" if frames else "outside"
    if _recording is not None:
        raise RuntimeError(f"{what} at {place} is not permitted while a graph is captured")
    waits.append(f"{what} at {place}")


def _run(func: Any, args: tuple, kwargs: dict) -> Any:
    name = func.overloadpacket.__name__
    leaves = pytree.tree_leaves((args, kwargs))
    if name in ("_to_copy", "copy_"):
        if _leaves(kwargs) or any(_on_host(leaf) and leaf.dim() for leaf in leaves) or _on_host(args[0]):
            _wait(name)
    elif name in _READING or (name in _INDEXING and _has_mask(args[1])):
        _wait(name)
    elif name != "lift_fresh" and any(_on_host(leaf) and leaf.dim() for leaf in leaves):
        raise RuntimeError(f"{name} mixes tensors of the device with others")
    inner_args, inner_kwargs = pytree.tree_map(_inner, (args, kwargs))
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.Python)):
        result = func(*inner_args, **inner_kwargs)
    if _recording is not None and not _is_view(func, inner_args, result):
        _recording.append((func, inner_args, inner_kwargs, result))
    if name == "_to_copy" and _leaves(kwargs):
        return result
    same = {id(leaf.inner): leaf for leaf in leaves if isinstance(leaf, Simulated)}

    def outer(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return same.get(id(value)) if id(value) in same else Simulated(value)

    return pytree.tree_map(outer, result)


def _is_view(func: Any, args: tuple, result: Any) -> bool:
    """Whether the results are the arguments' memory, seen otherwise: there is nothing to replay."""
    if func._schema.is_mutable:
        return False
    outputs = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor) and leaf.numel()]
    inputs = {a.untyped_storage().data_ptr() for a in pytree.tree_leaves(args) if isinstance(a, Tensor)}
    return bool(outputs) and all(o.untyped_storage().data_ptr() in inputs for o in outputs)


def _has_mask(indices: Any) -> bool:
    return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)
