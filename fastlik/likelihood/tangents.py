"""A recognised MLP's value and tangents in C++, differentiable once: for second-order losses and scores."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..derivatives.expansion import Expansion
from ..model import ScoreModel, per_row
from ..ops.dispatch import native_obstacle
from ..ops.mlp.recognise import Unrecognised
from ..ops.mlp.snapshot import Code
from ..ops.mlp.tape import Pairs
from ..ops.mlp.trainable import MAX_LINES, Trainable

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
    ready = _Ready.of(model, x, t, condition, (directions,), len(directions), parameters)
    return None if ready is None else ready.derivatives(directions)


def native_expansion(
    model: ScoreModel,
    x: Tensor,
    t: Tensor,
    directions: Tensor,
    condition: dict,
    *,
    second: bool = False,
    collapse: bool = False,
    mixing: Tensor | None = None,
    cotangents: Tensor | None = None,
    joint: bool = False,
) -> Expansion | None:
    """What :func:`fastlik.derivatives.expansion.expand` gives of the model's own prediction at x (B, d) and
    times t (B,), differentiable once; None where no kernel does it, as of :func:`native_tangents`.

    A second derivative is one line of the kernels beside value and tangents, and so is the sum of them all:
    1 + K, 1 + 2 K with ``second``, 2 + K with ``collapse`` and 2 + 2 K lines with ``mixing``.
    """
    along, mixed = range(len(directions)), mixing is not None
    pairs: Pairs = []
    if mixed:
        pairs = [[(0, 1 + k)] for k in along]
    elif collapse:
        pairs = [[(k, k) for k in along]]
    elif second:
        pairs = [[(k, k)] for k in along]
    lines = mixed + len(directions) + len(pairs)
    if cotangents is not None:  # those of the backward pass
        lines = 1 + 2 * len(directions) if joint else 3
    vectors = [each for each in (directions, mixing, cotangents) if each is not None]
    ready = _Ready.of(model, x, t, condition, vectors, lines)
    if ready is None:
        return None
    if cotangents is not None:
        found = (ready.gradient if joint else ready.gradients)(directions, cotangents)
        return None if found is None else Expansion(found[0], found[1], gradient=found[2])
    found = ready.derivatives(torch.cat((mixing[None], directions)) if mixed else directions, pairs)
    if found is None:
        return None
    _, first, curvature = found[1].split((int(mixed), len(directions), len(pairs)))
    return Expansion(found[0], first, curvature if pairs else None)


@dataclass
class _Ready:
    """A model that the kernels take, with what they are called with; ``gain`` is the model's factor of x."""

    model: ScoreModel
    known: _Known
    x: Tensor
    time: Tensor
    condition: dict[str, Tensor]
    gain: Tensor | None

    @classmethod
    def of(
        cls,
        model: ScoreModel,
        x: Tensor,
        t: Tensor,
        condition: dict,
        vectors: Sequence[Tensor],
        lines: int,
        parameters: bool = True,
    ) -> _Ready | None:
        """None where the kernels do not take the model or one of the tensors."""
        if lines > MAX_LINES or _obstacle(model, x, t, condition, vectors):
            return None
        known = _known(model, x, condition, parameters)
        if known.trainable is None or known.code.hooked:
            return None
        gain = None
        if model.predicts == "edm":
            spread = torch.hypot(model.schedule.sigma(t), model.schedule.alpha(t) * model.sigma_data)
            gain = per_row(1 / spread, x)
        ready = cls(model, known, x, model._network_time(t).to(x.dtype), condition, gain)
        ready.x = ready._scaled(x)
        return ready

    def derivatives(self, vectors: Tensor, second: Pairs = ()) -> tuple[Tensor, ...] | None:
        """As ``Trainable``."""
        vectors = self._scaled(vectors)
        return self._checked(self.known.trainable(self.x, self.time, self.condition, vectors, second))

    def gradient(self, vectors: Tensor, cotangents: Tensor) -> tuple[Tensor, ...] | None:
        """(value (B, d), products (K, B, d), the gradient (1, B, d) of the sum of <c_k, J v_k>)."""
        arguments = self.x, self.time, self.condition, self._scaled(vectors), cotangents
        value, products, gradient = self.known.trainable.pulled(*arguments)
        return self._checked((value, products, self._scaled(gradient)[None]))

    def gradients(self, vectors: Tensor, cotangents: Tensor) -> tuple[Tensor, ...] | None:
        """The same with one gradient for each k (K, B, d): each of them on rows of its own."""
        count, rows = vectors.shape[:2]
        found = self._repeated(count).gradient(vectors.flatten(0, 1)[None], cotangents.flatten(0, 1)[None])
        if found is None:
            return None
        value, products, gradients = found
        return value[:rows], products.reshape(vectors.shape), gradients.reshape(vectors.shape)

    def _repeated(self, count: int) -> _Ready:
        gain = None if self.gain is None else self.gain.repeat(count, 1)
        condition = {name: value.repeat(count, 1) for name, value in self.condition.items()}
        return replace(
            self, x=self.x.repeat(count, 1), time=self.time.repeat(count), condition=condition, gain=gain
        )

    def _scaled(self, values: Tensor) -> Tensor:
        return values if self.gain is None else self.gain * values

    def _checked(self, found: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """What the kernels found, if the network's own values of the first rows are theirs."""
        if self.known.code.complete or self._agrees(found[0]):
            return found
        _LOG.debug("no kernel has this model's gradients: it gives other values than when it was recognised")
        self.known.trainable = None
        return None

    def _agrees(self, value: Tensor) -> bool:
        if len(self.x) == 0:
            return True
        few = slice(0, _ROWS)
        with torch.no_grad():
            condition = {name: given[few] for name, given in self.condition.items()}
            expected = self.model._evaluate(self.x[few], self.time[few], condition)
        gap = (value.detach()[few] - expected).nan_to_num(0.0, 0.0, 0.0).abs()
        scale = expected.nan_to_num(0.0, 0.0, 0.0).abs().amax().clamp(min=1e-6)
        return bool((gap <= _ROUNDING * torch.finfo(expected.dtype).eps * scale).all())


def _obstacle(model: ScoreModel, x: Tensor, t: Tensor, condition: dict, vectors: Sequence[Tensor]) -> bool:
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return True
    plain = type(model) is ScoreModel and model.call is None and model.output is None
    if not plain or not isinstance(model.net, nn.Module) or model._forward_hooks or model._forward_pre_hooks:
        return True
    if x.dim() != 2 or not x.is_cpu or native_obstacle("mlp", x) or t.shape != x.shape[:1]:
        return True
    if any(v.shape[-2:] != x.shape or v.dtype != x.dtype for v in vectors):
        return True
    return any(
        not isinstance(value, Tensor)
        or value.dim() != 2
        or len(value) != len(x)
        or value.dtype != x.dtype
        or value.requires_grad
        for value in condition.values()
    )


def _known(model: ScoreModel, x: Tensor, condition: dict, parameters: bool) -> _Known:
    widths = {name: value.shape[1] for name, value in condition.items()}
    key = (x.dtype, x.shape[1], tuple(widths.items()), parameters)
    known = _CACHE.setdefault(model, {}).get(key)
    if known is None or not known.holds(model.net):
        known = _CACHE[model][key] = _Known.of(model, x, widths, parameters)
    return known
