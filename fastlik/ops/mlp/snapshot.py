"""What a network's result followed from at one time: to notice changes without running the network."""

from __future__ import annotations

import operator

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from fastlik.ops.dispatch import native_module

# modules of these packages compute with their tensors and attributes alone
_OWN_STATE = ("torch.nn.modules.", "fastlik.nn.")
_PLAIN = (int, float, str, tuple, dict, set, type(None))


class Code:
    """The modules of ``net`` with their attributes, and which its tensors are.

    ``complete``: whether with the tensors' values they decide the result.  Hooks and modules of other
    packages may read anything.
    """

    def __init__(self, net: nn.Module) -> None:
        self._modules = _modules(net)
        self.tensors = _tensors(self._modules)
        self._attributes = [(code, _copied(read)) for code, read in _attributes(self._modules)]
        self._complete = all(map(_has_own_state, self._modules)) and not self.hooked

    @property
    def complete(self) -> bool:
        return self._complete and not _has_any_global_hook()

    @property
    def hooked(self) -> bool:
        """Whether code of somebody else's runs with the network."""
        hooks = (module._forward_hooks or module._forward_pre_hooks for module in self._modules)
        return any(hooks) or _has_any_global_hook()

    def holds(self, net: nn.Module) -> bool:
        """Whether ``net`` has the same: of one that is not ``complete``, as far as its tensors go."""
        modules = _modules(net)
        if not _identical(_tensors(modules), self.tensors):
            return False
        if not self._complete:
            return True
        try:
            return _identical(modules, self._modules) and _attributes(modules) == self._attributes
        except (RuntimeError, TypeError, ValueError):  # an attribute that is no longer plain
            return False


class Snapshot:
    """The code of ``net``, and a copy of its tensors.

    A network that is ``complete`` and for which it :meth:`holds` need not be run to know that it is the same.
    """

    def __init__(self, net: nn.Module) -> None:
        self._code = Code(net)
        self._values = [tensor.detach().clone() for tensor in self._code.tensors]
        self._addresses = tuple(value.data_ptr() for value in self._values)
        self._bytes = tuple(value.nbytes for value in self._values)

    @property
    def complete(self) -> bool:
        return self._code.complete

    def holds(self, net: nn.Module) -> bool:
        """Whether ``net`` is as it was: for one that is not ``complete``, as far as its tensors go."""
        return self._code.holds(net) and self._same_values()

    def _same_values(self) -> bool:
        # bytes in place of version counters, which edits of .data do not move
        tensors = self._code.tensors
        for tensor, value in zip(tensors, self._values, strict=True):
            # a copy has no gaps: those of strides with gaps are not its own
            alike = tensor.shape == value.shape and tensor.stride() == value.stride()
            if not (alike and tensor.dtype == value.dtype and tensor.device == value.device):
                return False
        if not all(tensor.is_cpu for tensor in tensors):
            return all(map(torch.equal, tensors, self._values))
        addresses = tuple(tensor.data_ptr() for tensor in tensors)
        return native_module().same_bytes(addresses, self._addresses, self._bytes)


def _modules(net: nn.Module) -> list[nn.Module]:
    found = [net]
    for module in found:  # which grows
        found += [child for child in module._modules.values() if child is not None]
    return found


def _tensors(modules: list[nn.Module]) -> list[Tensor]:
    held = [each for module in modules for each in (module._parameters, module._buffers) if each]
    return [tensor for named in held for tensor in named.values() if tensor is not None]


def _attributes(modules: list[nn.Module]) -> list[tuple[object, dict[str, object]]]:
    """The code that runs, and what it may read."""
    return [(type(module).forward, vars(module)) for module in modules]


def _copied(attributes: dict[str, object]) -> dict[str, object]:
    """The attributes of a module, of which the containers are its own."""
    return {
        name: value.copy() if isinstance(value, (dict, set)) else value for name, value in attributes.items()
    }


def _has_own_state(module: nn.Module) -> bool:
    plain = all(isinstance(value, _PLAIN) for value in vars(module).values())
    return type(module).__module__.startswith(_OWN_STATE) and plain


def _identical(some: list, others: list) -> bool:
    return len(some) == len(others) and all(map(operator.is_, some, others))
