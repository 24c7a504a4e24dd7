"""A program as the chain of operations that the CUDA kernels run (csrc/include/fastlik/mlp_chain.h).

The kernels keep the lines of a sample's features in tiles of 16.  What depends on the time or on the
condition alone is computed with PyTorch and looked up in tables; it enters as shifts and factors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .graph import CONDITION, STATE, TIME
from .program import FUNCTIONS, Op, Program, View
from .recognise import Unrecognised

MAX_DIM, MAX_WIDTH, MAX_OPS = 256, 512, 64
_ACTIVATIONS = FUNCTIONS[: FUNCTIONS.index("cos")]
CODES = ("product", "part", "normalised", "closed trace")


@dataclass
class Table:
    """What the operations look up: each entry the sum of some views, as wide as it says."""

    entries: list[tuple[tuple[View, ...], int]] = field(default_factory=list)
    features: int = 0

    def add(self, views: tuple[View, ...], width: int) -> int:
        """The feature at which the views' sum begins, below 0 where there are none."""
        if not views:
            return -1
        start = self.features
        self.entries.append((views, width))
        self.features += multiple(width, 32)
        return start

    def values(self, value: Callable[[View], Tensor], like: Tensor) -> Tensor:
        """(N, features), like ``like`` (N,)."""
        columns = []
        for views, width in self.entries:
            total = sum(value(view) for view in views).expand(-1, width)
            columns.append(torch.nn.functional.pad(total, (0, -width % 32)))
        return torch.cat(columns, 1) if columns else like.new_zeros(len(like), 0)


@dataclass(frozen=True)
class Term:
    """Where in the tables of times and of rows a shift or a factor begins; below 0: nowhere."""

    time: int = -1
    row: int = -1


@dataclass(frozen=True)
class Link:
    """out = f(factor * (x + b + shift)), x the product of weight and a, or a itself, or a normalised.

    out, a, b: tiles; out = -1 is the network's output, b = -1 is left out.  width: features of out.
    "closed trace": tr J, the sum of (weight a') * b' over the slopes f' of the activations that a and b are.
    """

    code: str
    out: int
    a: int
    width: int
    b: int = -1
    weight: Tensor | None = None
    shift: Term = Term()
    factor: Term = Term()
    function: str = ""
    parameter: float = 0.0


@dataclass(frozen=True)
class Chain:
    """The state lies in the first tiles.  trace: tr J in closed form, where there is one."""

    program: Program
    links: tuple[Link, ...]
    trace: Link | None
    tiles: int
    times: Table
    rows: Table

    @property
    def width(self) -> int:
        """The widest line's."""
        return max(self.program.dim, *(link.width for link in self.links))

    @property
    def outputs(self) -> int:
        """Of the padded output."""
        return multiple(self.program.dim, 32)

    @property
    def trace_chunks(self) -> int:
        """Chunks of 32 features that the trace is summed over."""
        return 0 if self.trace is None else multiple(self.trace.width, 32) // 32


def multiple(size: int, of: int) -> int:
    return -(-size // of) * of


def chain_of(program: Program) -> Chain:
    """``program`` as a chain.

    Raises:
        Unrecognised: the kernels do not take it, or it is too large; the message says why.
    """
    ops = [op for op in program.ops[: program.value_ops] if op.depends & STATE]
    widest = max(op.out.width for op in ops)
    if program.dim > MAX_DIM or widest > MAX_WIDTH or len(ops) > MAX_OPS:
        raise Unrecognised(
            f"the CUDA kernels take up to {MAX_DIM} dimensions, {MAX_WIDTH} units and {MAX_OPS} operations"
        )
    if ops[-1].out != program.output:
        raise Unrecognised("the CUDA kernels take networks whose last operation is the result")
    return _Links(program, ops).chain()


class _Links:
    """Makes links of operations, each joined to the one before where nothing else reads that."""

    def __init__(self, program: Program, ops: list[Op]) -> None:
        self.program, self.ops = program, ops
        self.tiles: dict[int, int] = {}
        self.slopes: dict[int, int] = {}  # buffers of slopes: the tiles whose tangents' lines hold them
        self.held: set[int] = set()  # buffers whose tiles the trace reads, at the very end
        self.count = 0
        self.spare = 0  # a chunk of a part that begins in the middle may end beyond the last tile
        self.times, self.rows = Table(), Table()
        self._tile(View(program.input, 0, program.dim))

    def chain(self) -> Chain:
        links: list[Link] = []
        for number, op in enumerate(self.ops):
            link = self._link(op)
            joined = None
            if links and self._reads_alone(number):
                joined = _joined(links[-1], link)
            if joined is None:
                links.append(link)
            else:
                links[-1] = joined
        tiles = self.count + self.spare
        return Chain(self.program, tuple(links), self._trace(), tiles, self.times, self.rows)

    def _trace(self) -> Link | None:
        """The closed form (``program.ClosedForm``), whose last slopes are left out with one hidden layer."""
        if self.program.trace is None:
            return None
        product, *dot = self.program.ops[self.program.value_ops :]
        last = self.slopes[dot[0].b.buffer] if dot else -1
        first, width = self.slopes[product.a.buffer], product.out.width
        return Link("closed trace", -1, first, width, last, weight=product.weight)

    def _link(self, op: Op) -> Link:
        a, b = op.a, op.b
        if op.code == "add" and not self._depends(a) & STATE:
            a, b = b, a
        source = self._tile(a)
        if op.out.buffer in self.held:
            del self.tiles[op.out.buffer]
        out = -1 if op is self.ops[-1] else self._tile(op.out)
        link = Link("part", out, source, op.out.width)
        if op.code == "linear":
            link = replace(link, code="product", weight=op.weight)
        elif op.code == "normalise":
            return replace(link, code="normalised", parameter=op.parameter)
        elif op.code == "function":
            if op.function not in _ACTIVATIONS:
                raise Unrecognised(f"the CUDA kernels have no {op.function} of the state")
            if b is not None:
                self.slopes[b.buffer] = out
                self.held.add(op.out.buffer)
            return replace(link, function=op.function, parameter=op.parameter)
        elif op.code == "multiply":
            if self._depends(b) & STATE:
                raise Unrecognised("the CUDA kernels take no products of two values that depend on the state")
            return replace(link, factor=self._term(b, op.out.width))
        if b is None:
            return link
        if self._depends(b) & STATE:
            if b.width != op.out.width:
                raise Unrecognised("the CUDA kernels add no single feature of the state to several")
            return replace(link, b=self._tile(b))
        return replace(link, shift=self._term(b, op.out.width))

    def _depends(self, view: View) -> int:
        return self.program.buffers[view.buffer].depends

    def _tile(self, view: View) -> int:
        if view.offset % 16:
            raise Unrecognised("the CUDA kernels take parts of lines that begin at multiples of 16 features")
        if view.buffer not in self.tiles:
            self.tiles[view.buffer] = self.count
            self.count += multiple(self.program.buffers[view.buffer].width, 32) // 16
        self.spare = max(self.spare, int(view.offset > 0))
        return self.tiles[view.buffer] + view.offset // 16

    def _term(self, view: View, width: int) -> Term:
        times, rows = self._split(view)
        return Term(self.times.add(times, width), self.rows.add(rows, width))

    def _split(self, view: View) -> tuple[tuple[View, ...], tuple[View, ...]]:
        """Views of the time alone and of the condition alone whose sum it is."""
        depends = self._depends(view)
        if depends in (0, TIME):
            return (view,), ()
        if depends == CONDITION:
            return (), (view,)
        maker = next(op for op in reversed(self.program.ops) if op.out.buffer == view.buffer)
        if maker.code != "add":
            raise Unrecognised("the CUDA kernels take time and condition as sums only")
        times, rows = (), ()
        for part in (maker.a, maker.b):
            moved = View(part.buffer, part.offset + view.offset, view.width) if part.width > 1 else part
            found = self._split(moved)
            times, rows = times + found[0], rows + found[1]
        return times, rows

    def _reads_alone(self, number: int) -> bool:
        """Whether operation ``number`` alone reads the one before, all of it, as its first input."""
        before, op = self.ops[number - 1].out, self.ops[number]
        whole = before.width == self.program.buffers[before.buffer].width
        if op.a != before or not whole or (op.b is not None and op.b.buffer == before.buffer):
            return False
        for later in self.ops[number:]:
            reads = {view.buffer for view in (later.a, later.b) if view is not None}
            if later is not op and before.buffer in reads:
                return False
            if later.out.buffer == before.buffer:
                return True
        return True


def _joined(first: Link, second: Link) -> Link | None:
    """Both as one link, where they do what one does, in its order."""
    if second.code != "part" or first.code == "normalised" or first.function:
        return None
    if second.b >= 0 or second.shift != Term():
        if first.factor != Term() or (second.b >= 0 and first.b >= 0):
            return None
        if second.shift != Term() and first.shift != Term():
            return None
    if second.factor != Term() and first.factor != Term():
        return None
    return replace(
        first,
        out=second.out,
        b=max(first.b, second.b),
        shift=first.shift if second.shift == Term() else second.shift,
        factor=first.factor if second.factor == Term() else second.factor,
        function=second.function,
        parameter=second.parameter,
    )
