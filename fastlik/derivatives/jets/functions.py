"""Which rule a PyTorch function, method or attribute is, and what it does where there is none."""

from __future__ import annotations

import types
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from . import rules
from .deferred import settle
from .errors import NoDerivative
from .fallback import fallback
from .jet import Jet, primals
from .registry import CONSTANT, RULES, VIEWS

Function = Callable[..., object]

# Python functions of PyTorch that are called as their ATen operation is
_AS_IN_ATEN = frozenset(
    "silu gelu relu relu6 leaky_relu elu selu celu mish hardswish hardsigmoid hardtanh softsign tanhshrink "
    "logsigmoid threshold prelu layer_norm group_norm rms_norm split einsum pad unflatten pixel_shuffle "
    "tensor_split chunk bilinear broadcast_tensors".split()
)
ATTRIBUTES = frozenset(
    "shape dtype device ndim layout requires_grad is_cuda is_cpu is_meta is_sparse is_quantized is_nested "
    "is_mps is_xpu is_mkldnn is_leaf grad_fn grad itemsize nbytes".split()
)


def _softmax(
    input: Jet, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Jet:
    return rules.reduction.softmax(input, dim, dtype)


def _log_softmax(input: Jet, dim: int | None = None, _stacklevel: int = 3, dtype: object = None) -> Jet:
    return rules.reduction.log_softmax(input, dim, dtype)


def _dropout(input: Jet, p: float = 0.5, training: bool = True, inplace: bool = False) -> Jet:
    return rules.constant.dropout(input, p, training)


def _norm(
    input: Jet, p: object = "fro", dim: object = None, keepdim: bool = False, dtype: object = None
) -> Jet:
    return rules.reduction.norm(input, p, dim, keepdim, dtype=dtype)


_ADAPTERS: dict[object, Function] = {
    F.softmax: _softmax,
    F.log_softmax: _log_softmax,
    F.dropout: _dropout,
    torch.norm: _norm,
    Tensor.norm: _norm,
}
for _spatial in (1, 2, 3):
    for _name in (f"max_pool{_spatial}d", f"adaptive_max_pool{_spatial}d"):
        _ADAPTERS[getattr(F, _name)] = RULES[_name]


def _without_dispatch(function: types.FunctionType) -> types.FunctionType:
    """A Python function of PyTorch that runs its body on jets too, instead of asking who overrides it."""
    names = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    scope = {**function.__globals__, **dict.fromkeys(names, lambda *args: False)}
    inner = types.FunctionType(
        function.__code__, scope, function.__name__, function.__defaults__, function.__closure__
    )
    inner.__kwdefaults__ = function.__kwdefaults__
    return inner


# those that are common, made once, so that torch.compile finds them made
_BODIES: dict[object, Function] = {
    function: _without_dispatch(function)
    for function in (
        F.interpolate,
        F.batch_norm,
        F.instance_norm,
        F.multi_head_attention_forward,
        F.normalize,
        F.cosine_similarity,
        F.glu,
        F.softmin,
        F.embedding,
        F.dropout2d,
        F.local_response_norm,
    )
    if isinstance(function, types.FunctionType)
}


def body_of(name: str, func: Function) -> Function | None:
    """The body of a Python function of PyTorch that is no operation itself: it is run on jets."""
    if not _has_body(name, func):
        return None
    return _BODIES[func] if func in _BODIES else _without_dispatch(func)


@torch.compiler.assume_constant_result
def _has_body(name: str, func: Function) -> bool:
    is_operation = name in CONSTANT or func in _ADAPTERS or name in ATTRIBUTES
    if is_operation or not isinstance(func, types.FunctionType) or func.__module__ == "torch._tensor":
        return False
    return not ((name in RULES and (name in _AS_IN_ATEN or name.startswith("__"))) or _out_of_place(name))


def call(name: str, func: Function, args: tuple, kwargs: dict) -> object:
    """func(*args, **kwargs) on jets; in-place functions change their first argument."""
    if kwargs.get("out") is not None:
        raise NoDerivative(f"{name}(out=) writes where no derivatives can be kept; use its result instead")
    if name == "__setitem__":
        return _assign(*args)
    in_place = _out_of_place(name)
    if in_place is not None:
        return _write(args[0], apply(in_place, func, args, kwargs))
    if kwargs.pop("inplace", False):
        return _write(args[0], apply(name, func, args, kwargs))
    result = apply(name, func, args, kwargs)
    if name in VIEWS or name in ("detach", "data"):
        _share(args, result)
    return result


@torch.compiler.assume_constant_result
def name_of(func: Function) -> str:
    name = getattr(func, "__name__", None) or str(func)
    return func.__self__.__name__ if name == "__get__" else name


@torch.compiler.assume_constant_result
def _out_of_place(name: str) -> str | None:
    """add for add_, __add__ for __iadd__, None for a function that does not write."""
    if name.startswith("__i") and name.endswith("__") and f"__{name[3:]}" in RULES:
        return f"__{name[3:]}"
    return name[:-1] if name.endswith("_") and not name.endswith("__") else None


def apply(name: str, func: Function, args: tuple, kwargs: dict) -> object:
    """A function that does not write, on jets."""
    adapter = _ADAPTERS.get(func)
    if adapter is not None:
        return adapter(*args, **kwargs)
    if name in ATTRIBUTES:
        return getattr(args[0].primal, name)
    if name == "data":
        return args[0].primal.detach()
    if name in CONSTANT:
        args, kwargs = primals(args), primals(kwargs)
        return func(*args, **kwargs)
    rule = RULES.get(name)
    if rule is not None:
        if rule is rules.shape.convert and name in (
            "float",
            "double",
            "half",
            "bfloat16",
            "cpu",
            "cuda",
            "type",
        ):
            kwargs = {**kwargs, "method": name}
        return rule(*args, **kwargs)
    if name == "__iter__":
        return iter(rules.shape.unbind(args[0], 0))
    if name in _WRITES:
        return _WRITES[name](*args, **kwargs)
    if isinstance(func, types.FunctionType):
        raise NoDerivative(f"Tensor.{name} has no meaning for jets")
    return fallback(name, func, args, kwargs)


def _filled(target: Jet, value: object) -> object:
    if isinstance(value, Jet):
        return rules.shape.expand(value, *target.shape)
    return torch.full_like(target.primal, value)


_WRITES: dict[str, Function] = {
    "zero": lambda target: torch.zeros_like(target.primal),
    "fill": _filled,
    "requires_grad": lambda target, flag=True: target,
}


def _write(target: object, value: object) -> Jet:
    """Make a jet another in place, as an in-place function does."""
    if not isinstance(target, Jet):
        raise NoDerivative(
            "a tensor that does not depend on x was written to with values that do; allocate it like x "
            "(torch.zeros_like(x) * x, torch.cat, torch.where) instead"
        )
    if not isinstance(value, Jet):
        value = Jet(target.layout, value, (None,) * len(target.parts))
    if target is value:
        return target
    primal = value.primal.to(target.primal.dtype)
    parts = [None if part is None else part.to(primal.dtype) for part in value.parts]
    if not target.shared:
        stacked = value.stacked if primal is value.primal else None
        target.primal, target.parts, target.stacked = primal, tuple(parts), stacked
        return target
    if any(old is None and new is not None for old, new in zip(target.parts, parts, strict=True)):
        raise NoDerivative("a view was written to with derivatives that its base does not have")
    settle()
    target.primal.copy_(primal)
    for old, new in zip(target.parts, parts, strict=True):
        if old is not None:
            old.zero_() if new is None else old.copy_(new)
    return target


def _assign(target: object, index: object, value: object) -> None:
    """target[index] = value."""
    if not isinstance(target, Jet):
        _write(target, value)
    index = primals(index if isinstance(index, tuple) else (index,))
    parts = list(target.parts)
    given = value.parts if isinstance(value, Jet) else (None,) * len(parts)
    for c, new in enumerate(given):
        if parts[c] is None and new is None:
            continue
        old = new.new_zeros(len(new), *target.shape) if parts[c] is None else parts[c].clone()
        for k, row in enumerate(old.unbind(0)):
            row[index] = 0 if new is None else new[k]
        parts[c] = old
    primal = target.primal.clone()
    primal[index] = value.primal if isinstance(value, Jet) else value
    _write(target, Jet(target.layout, primal, tuple(parts)))


def _share(*values: object) -> None:
    """Mark jets whose memory other tensors may share."""
    for value in values:
        if isinstance(value, Jet):
            value.shared = True
        elif isinstance(value, (list, tuple)):
            _share(*value)
