"""A bare ``Jet`` with a tensor's methods, which torch.compile traces as an ordinary Python object."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from .functions import ATTRIBUTES, body_of, call, name_of
from .jet import Jet

_OPERATORS = (
    "add radd iadd sub rsub isub mul rmul imul truediv rtruediv itruediv pow rpow matmul rmatmul neg abs "
    "lt le gt ge eq ne floordiv bool float int len getitem setitem"
)


def _torch_function(
    cls: type, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None
) -> object:
    name = name_of(func)
    body = body_of(name, func)
    if body is not None:
        return body(*args, **(kwargs or {}))
    return call(name, func, args, dict(kwargs or {}))


def _method(name: str) -> Callable[..., object]:
    function = getattr(Tensor, name)

    def method(self: Jet, *args: object, **kwargs: object) -> object:
        body = body_of(name, function)
        if body is not None:
            return body(self, *args, **kwargs)
        return call(name, function, (self, *args), kwargs)

    return method


def _property(name: str) -> property:
    function = getattr(Tensor, name)
    return property(lambda self: call(name, function, (self,), {}))


def _iterate(self: Jet) -> Iterator[Jet]:
    return iter(self.unbind(0))


Jet.__torch_function__ = classmethod(_torch_function)
Jet.__iter__ = _iterate
for _name in dir(Tensor):
    if callable(getattr(Tensor, _name)) and not _name.startswith("_") and not hasattr(Jet, _name):
        setattr(Jet, _name, _method(_name))
for _name in _OPERATORS.split():
    setattr(Jet, f"__{_name}__", _method(f"__{_name}__"))
for _name in sorted(ATTRIBUTES | {"T", "mT", "H", "real", "imag", "data"}):
    if not hasattr(Jet, _name):
        setattr(Jet, _name, _property(_name))
