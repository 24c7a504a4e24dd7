"""Jets through any Python code: PyTorch's own functions, called on a :class:`JetTensor`, become rules.

A ``JetTensor`` is a real ``torch.Tensor`` subclass, so that code that asks ``isinstance(x, torch.Tensor)``
runs.  Under torch.compile a bare ``Jet`` takes its place: it answers to the same functions and methods, and
Dynamo traces it as the ordinary Python object that it is.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from . import traced as _traced  # noqa: F401  (gives Jet a tensor's methods)
from .errors import NoDerivative
from .fallback import fallback
from .functions import body_of, call, name_of
from .jet import Jet, transform


class JetTensor(Tensor):
    """A tensor without storage of its own that stands for a jet."""

    jet: Jet

    @staticmethod
    def __new__(cls: type[JetTensor], jet: Jet) -> JetTensor:
        primal = jet.example  # answers for strides and the like
        wrapper = Tensor._make_wrapper_subclass(cls, primal.shape, dtype=primal.dtype, device=primal.device)
        wrapper.jet = jet
        return wrapper

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            name, body = _resolve(func)
            if body is None:
                return wrap(call(name, func, unwrap(args), unwrap(kwargs)))
        return body(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(
        cls, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        raise NoDerivative(f"{func} was reached below PyTorch's functions, where jets have no rules")


@functools.cache
def _resolve(func: Callable) -> tuple[str, Callable | None]:
    name = name_of(func)
    return name, body_of(name, func)


def wrap(values: object) -> object:
    return JetTensor(values) if type(values) is Jet else transform(values, JetTensor)


def unwrap(values: object) -> object:
    """A nest of lists, tuples and dicts with every JetTensor replaced by its jet."""
    kind = type(values)
    if kind is JetTensor:
        return values.jet
    if kind is tuple or kind is list:
        return kind([value.jet if type(value) is JetTensor else unwrap(value) for value in values])
    if kind is dict:
        return {name: unwrap(value) for name, value in values.items()} if values else {}
    return values


@contextlib.contextmanager
def custom_functions() -> Iterator[None]:
    """Within it, an autograd.Function called on jets is differentiated by its own backward formula.

    PyTorch would run its ``forward`` on the jets, which gives other numbers where ``backward`` is not the
    derivative of ``forward``, as in a straight-through estimator.
    """
    original = torch.autograd.Function.__dict__["apply"]
    plain = original.__func__

    def apply(cls: type, *args: object, **kwargs: object) -> object:
        if any(isinstance(arg, JetTensor) for arg in args):
            return wrap(fallback(cls.__name__, lambda *a: plain(cls, *a), unwrap(args), {}))
        return plain(cls, *args, **kwargs)

    torch.autograd.Function.apply = classmethod(apply)
    try:
        yield
    finally:
        torch.autograd.Function.apply = original


def evaluate(f: Callable[[Tensor], Tensor], x: Jet) -> object:
    """f on a jet: the jet of its result, or a plain tensor where f does not depend on x."""
    if torch.compiler.is_compiling():
        return f(x)
    with custom_functions():
        return unwrap(f(JetTensor(x)))
