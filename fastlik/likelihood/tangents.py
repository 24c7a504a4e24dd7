"""A recognised MLP's value and tangents in C++, differentiable once: for second-order losses and scores."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..model import ScoreModel, per_row
from ..ops.dispatch import native_obstacle
from ..ops.mlp.recognise import Unrecognised
from ..ops.mlp.snapshot import Code
from ..ops.mlp.trainable import MAX_TANGENTS, Trainable

_LOG = logging.getLogger(__name__)
# rows of a network with code of its own that are compared, and what they may be off by in units of precision
_ROWS, _ROUNDING = 2, 1e3


@dataclass
class _Known:
    """What was found out about a network with this code: None if it is not for the kernels."""

    code: Code
    trainable: Trainable | None

    @classmethod
    def of(cls, model: ScoreModel, x: Tensor, widths: dict[str, int], parameters: bool) -> _Known:
        code, reason = Code(model.net), "there are hooks, which see the network's own operations alone"
        if not code.hooked:
            inputs = x.shape[1], widths, _times(model), x.dtype
            try:
                with _untouched(model.net):
                    return cls(code, Trainable(model.net, *inputs, code.tensors, gradients=parameters))
            except Unrecognised as error:
                reason = str(error)
            except Exception as error:  # of inputs that it does not take: the general path shows it
                reason = f"the network raised {type(error).__name__} where it was tried"
        _LOG.debug("no kernel has this model's gradients: %s", reason)
        return cls(code, None)

    def holds(self, net: nn.Module) -> bool:
        return self.code.holds(net) and (self.trainable is None or self.trainable.follows())


@contextlib.contextmanager
def _untouched(net: nn.Module) -> Iterator[None]:
    """Running the network leaves no trace: running averages stay, no random numbers are used up."""
    kept = [(buffer, buffer.detach().clone()) for buffer in net.buffers()]
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            for buffer, value in kept:
                if not torch.equal(buffer, value):
                    buffer.detach().copy_(value)


def _times(model: ScoreModel) -> Tensor:
    """Some of the network's times."""
    t = torch.linspace(model.schedule.t_min, model.schedule.t_max, 9, dtype=torch.float64)[1:-1]
    return model._network_time(t)


_CACHE: WeakKeyDictionary[nn.Module, dict[tuple, _Known]] = WeakKeyDictionary()


def native_tangents(
    model: ScoreModel, x: Tensor, t: Tensor, directions: Tensor, condition: dict, *, parameters: bool = True
) -> tuple[Tensor, Tensor] | None:
    """The model's own prediction at x (B, d) and times t (B,), and its derivatives along directions
    (K, B, d).

    None where no kernel does it.  Gradients by x, directions and, with ``parameters``, the network's
    parameters.  A network with code of its own is run on two rows, to be known for what was recognised.
    """
    if _obstacle(model, x, directions, condition):
        return None
    known = _known(model, x, condition, parameters)
    if known.trainable is None or known.code.hooked:
        return None
    if model.predicts == "edm":
        spread = torch.hypot(model.schedule.sigma(t), model.schedule.alpha(t) * model.sigma_data)
        gain = per_row(1 / spread, x)
        x, directions = gain * x, gain * directions
    time = model._network_time(t).to(x.dtype)
    value, products = known.trainable(x, time, condition, directions)
    if not known.code.complete and not _agrees(model, x, time, condition, value):
        _LOG.debug("no kernel has this model's gradients: it gives other values than when it was recognised")
        known.trainable = None
        return None
    return value, products


def _agrees(model: ScoreModel, x: Tensor, time: Tensor, condition: dict, value: Tensor) -> bool:
    """Whether the network's own values of the first rows are those of ``value``, where they are numbers."""
    if len(x) == 0:
        return True
    few = slice(0, _ROWS)
    with torch.no_grad():
        expected = model._evaluate(x[few], time[few], {name: given[few] for name, given in condition.items()})
    gap = (value.detach()[few] - expected).nan_to_num(0.0, 0.0, 0.0).abs()
    scale = expected.nan_to_num(0.0, 0.0, 0.0).abs().amax().clamp(min=1e-6)
    return bool((gap <= _ROUNDING * torch.finfo(x.dtype).eps * scale).all())


def _obstacle(model: ScoreModel, x: Tensor, directions: Tensor, condition: dict) -> bool:
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return True
    plain = type(model) is ScoreModel and model.call is None and model.output is None
    if not plain or not isinstance(model.net, nn.Module) or model._forward_hooks or model._forward_pre_hooks:
        return True
    if x.dim() != 2 or not x.is_cpu or len(directions) > MAX_TANGENTS or native_obstacle("mlp", x):
        return True
    return any(
        not isinstance(value, Tensor) or value.dim() != 2 or value.dtype != x.dtype or value.requires_grad
        for value in condition.values()
    )


def _known(model: ScoreModel, x: Tensor, condition: dict, parameters: bool) -> _Known:
    widths = {name: value.shape[1] for name, value in condition.items()}
    key = (x.dtype, x.shape[1], tuple(widths.items()), parameters)
    known = _CACHE.setdefault(model, {}).get(key)
    if known is None or not known.holds(model.net):
        known = _CACHE[model][key] = _Known.of(model, x, widths, parameters)
    return known
