"""Which implementation of an operation runs, and what can be said about the ones that cannot.

``backend="auto"`` takes the fastest implementation that fits, and warns once, with the reason,
when that is the slow one.  A backend that is asked for by name runs or raises.  The environment
variable FASTLIK_BACKEND stands in for "auto".
"""

from __future__ import annotations

import importlib
import json
import os
import warnings
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from fastlik.checks import check_choice

BACKENDS = ("auto", "native", "triton", "torch")
NATIVE_DTYPES = (torch.float32, torch.float64)
TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# Triton kernels run on tensors of any device; it reads the variable when it is imported
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# whose native implementation has CUDA kernels too
_NATIVE_ON_CUDA = ("mlp", "rk_step")
_REBUILD = "install a C++ compiler, then `pip install --force-reinstall --no-deps fastlik`"


@cache
def _load_native() -> tuple[ModuleType | None, str]:
    """The compiled module and "", or None and the reason why there is none."""
    try:
        # torch is imported above: its OpenMP must be the one that the module binds to
        return importlib.import_module("fastlik._native"), ""
    except ImportError as error:
        reason = build_info().get("native", {}).get("why") or str(error)
        return None, f"the native module is not there ({reason})"


def native_module() -> ModuleType | None:
    """``fastlik._native``, imported at the first call; None where it cannot be."""
    return _load_native()[0]


@cache
def build_info() -> dict[str, dict[str, Any]]:
    """What the build recorded about its compilers; empty for sources that were never built."""
    path = Path(__file__).parents[1] / "_build_info.json"
    return json.loads(path.read_text()) if path.exists() else {}


@cache
def _warn_once(reason: str) -> None:
    warnings.warn(reason, RuntimeWarning, stacklevel=5)


@cache
def _implements(op: str, backend: str) -> bool:
    return find_spec(f"fastlik.ops.{op}.{backend}") is not None


def _transformed(tensor: Tensor) -> bool:
    """True where a raw address would lose a tangent or a dimension of a transform."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor) or unpack_dual(tensor).tangent is not None


def _differentiated(tensor: Tensor) -> bool:
    """True where a raw address would lose a gradient, a tangent or a dimension of a transform."""
    return (tensor.requires_grad and torch.is_grad_enabled()) or _transformed(tensor)


def native_obstacle(op: str, tensor: Tensor) -> str:
    """Why the native implementation of ``op`` cannot take ``tensor``; "" if it can."""
    module, reason = _load_native()
    if module is None:
        return f"{reason}; remedy: {_REBUILD}"
    if not _implements(op, "native"):
        return f"{op} has no native implementation"
    if tensor.dtype not in NATIVE_DTYPES:
        return f"native {op} takes torch.float32 and torch.float64, not {tensor.dtype}"
    if tensor.is_cuda and op not in _NATIVE_ON_CUDA:
        return f"native {op} takes CPU tensors, not CUDA ones"
    if tensor.is_cuda and "cuda_archs" not in build_info().get("native", {}):
        why = build_info().get("native", {}).get("why_no_cuda", "nvcc was not found")
        return f"the native module was built without CUDA ({why})"
    if not (tensor.is_cpu or tensor.is_cuda):
        return f"native {op} takes CPU and CUDA tensors, not {tensor.device.type} ones"
    return ""


def triton_obstacle(op: str, tensor: Tensor) -> str:
    """Why the Triton implementation of ``op`` cannot take ``tensor``; "" if it can."""
    reason = _why_no_triton(op)
    if reason:
        return reason
    if tensor.dtype not in TRITON_DTYPES:
        return f"Triton kernels take torch.float16, torch.bfloat16 and torch.float32, not {tensor.dtype}"
    if not (tensor.is_cuda or INTERPRETED):
        return f"Triton kernels take CUDA tensors, not {tensor.device.type} ones"
    return ""


@torch.compiler.assume_constant_result
def _why_no_triton(op: str) -> str:
    return _triton()["why"] or ("" if _implements(op, "triton") else f"{op} has no Triton implementation")


def call_native(function: str, tensor: Tensor, *args: object) -> None:
    """Call ``fastlik._native.<function>`` where ``tensor`` lives.

    On the CPU the last argument is the number of threads; on a GPU, where the function's name ends
    in _cuda, it is PyTorch's current stream, on which the kernel is queued.

    Raises:
        RuntimeError: CUDA did not take the kernel.
    """
    module = native_module()
    if tensor.is_cpu:
        getattr(module, function)(*args, torch.get_num_threads())
        return
    with torch.cuda.device(tensor.device):
        stream = torch.cuda.current_stream().cuda_stream
        error = getattr(module, f"{function}_cuda")(*args, stream)
    if error:
        raise RuntimeError(f"{function}_cuda failed with CUDA error {error} on {tensor.device}")


def choose(op: str, backend: str, tensor: Tensor, *others: Tensor) -> str:
    """The implementation of ``op`` to run on ``tensor``: "native", "triton" or "torch".

    Args:
        op: name of the package in ``fastlik.ops``.
        backend: "auto", "native", "triton" or "torch".
        tensor: decides by its device and dtype.
        others: further inputs; one that carries a tangent or a transform of torch.func needs the PyTorch
            implementation, and so do gradients and torch.compile where that of choice is native.

    Raises:
        ValueError: an unknown ``backend`` (or FASTLIK_BACKEND); the message lists the valid names.
        RuntimeError: a backend asked for by name cannot run here; the message says why.
    """
    name = "backend"
    if backend == "auto":
        name, backend = "FASTLIK_BACKEND", os.environ.get("FASTLIK_BACKEND", "auto")
    if backend not in BACKENDS:
        check_choice(name, backend, BACKENDS)
    if name == "FASTLIK_BACKEND" and backend not in ("auto", "torch") and not _exists(op, backend, tensor):
        backend = "auto"  # the variable is for all operations, and this one has no such implementation
    wanted = _fastest(op, tensor) if backend == "auto" else backend
    if wanted == "torch":
        return "torch"
    if _out_of_reach(wanted, (tensor, *others)):
        if backend == "auto":
            return "torch"
        raise RuntimeError(
            f"backend={backend!r} cannot run {op} under autograd, torch.func or torch.compile; "
            f"use backend='torch' there, or torch.no_grad()"
        )
    obstacle = (triton_obstacle if wanted == "triton" else native_obstacle)(op, tensor)
    return fall_back(backend, obstacle) if obstacle else wanted


def takes_triton(op: str, tensor: Tensor, *others: Tensor) -> bool:
    """Whether Triton is to run ``op`` where nobody names a backend: on a GPU, or by FASTLIK_BACKEND."""
    if not (tensor.is_cuda or INTERPRETED):
        return False
    asked = os.environ.get("FASTLIK_BACKEND", "auto")
    here = tensor.is_cuda or asked == "triton"
    # "native" is for operations that have such an implementation
    if not here or asked == "native" or tensor.dtype not in TRITON_DTYPES:
        return False
    return choose(op, "auto", tensor, *others) == "triton"


def fall_back(backend: str, obstacle: str) -> str:
    """ "torch", with one warning, where "auto" meets an obstacle; RuntimeError where a backend was named."""
    if backend != "auto":
        raise RuntimeError(f"backend={backend!r} is not available: {obstacle}")
    _warn_once(f"fastlik runs the slower PyTorch implementation of its kernels: {obstacle}")
    return "torch"


def _fastest(op: str, tensor: Tensor) -> str:
    """The implementation that should run on a device, whether or not it can."""
    if tensor.is_cpu:
        return "native" if _exists(op, "native", tensor) else "torch"
    # PyTorch's own kernels are the fast ones where there is none in Triton
    return "triton" if tensor.is_cuda and _exists(op, "triton", tensor) else "torch"


def _exists(op: str, backend: str, tensor: Tensor) -> bool:
    """Whether there is such an implementation for the tensor's kind of device."""
    if backend == "native" and tensor.is_cuda and op not in _NATIVE_ON_CUDA:
        return False
    return _written(op, backend)


@torch.compiler.assume_constant_result
def _written(op: str, backend: str) -> bool:
    return _implements(op, backend)


def _out_of_reach(wanted: str, tensors: tuple[Tensor, ...]) -> bool:
    """Whether autograd, torch.func or torch.compile needs what an implementation does not give."""
    if wanted == "triton":  # gradients and fake tensors: see differentiable.py
        return not torch.compiler.is_compiling() and any(map(_transformed, tensors))
    return torch.compiler.is_compiling() or any(map(_differentiated, tensors))


def backends() -> dict[str, dict[str, Any]]:
    """What can run here: name -> {"available": bool, "why": obstacle or "", and details}."""
    module, reason = _load_native()
    info = build_info()
    native = {"available": module is not None, "why": reason, **info.get("native", {})}
    native["why"] = reason
    if module is not None:
        native |= {"isa": module.isa(), "isas": module.isas(), "threads": torch.get_num_threads()}
    return {
        "torch": {
            "available": True,
            "why": "",
            "version": torch.__version__,
            "threads": torch.get_num_threads(),
        },
        "native": native,
        "triton": _triton(),
    }


@cache
def _triton() -> dict[str, Any]:
    if find_spec("triton") is None:
        why = "the package triton is not installed"
    elif not (torch.cuda.is_available() or INTERPRETED):
        why = "PyTorch sees no GPU"
    else:
        why = ""
    return {"available": not why, "why": why, "interpreted": INTERPRETED}
