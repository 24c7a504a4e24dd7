"""A network as the list of operations that the kernels run, made from its graph.

Buffers hold one line of features for each row of a tile.  Whatever depends on the time alone, or on the
condition alone, has buffers of its own, because it is computed once for all rows, or once for all times.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from torch import Tensor

from . import graph
from .graph import STATE, Node

# codes of csrc/include/fastlik/mlp.h
CODES = ("linear", "function", "add", "multiply", "normalise", "copy", "dot")
FUNCTIONS = (
    "silu",
    "gelu",
    "gelu_tanh",
    "tanh",
    "sigmoid",
    "softplus",
    "elu",
    "leaky_relu",
    "sin",
    "cos",
    "exp",
    "log",
    "sqrt",
    "reciprocal",
    "square",
)


@dataclass(frozen=True)
class View:
    """Features [offset, offset + width) of a buffer."""

    buffer: int
    offset: int
    width: int


@dataclass(frozen=True)
class Op:
    """One operation; the header says what each code does with out, a, b, weight and parameter."""

    code: str
    depends: int
    out: View
    a: View
    b: View | None = None
    function: str = ""
    weight: Tensor | None = None
    parameter: float = 0.0


@dataclass(frozen=True)
class Buffer:
    width: int
    depends: int
    constant: Tensor | None = None


@dataclass(eq=False)
class Program:
    """Operations in order; the first ``value_ops`` of them suffice for the value.

    ``trace`` is the view of tr d output / d state in closed form, where there is one.
    """

    dim: int
    input: int = 0
    time: int = 1
    conditions: dict[str, int] = field(default_factory=dict)
    buffers: list[Buffer] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    value_ops: int = 0
    output: View | None = None
    trace: View | None = None
    packed: dict = field(default_factory=dict, init=False, repr=False)  # what native.py made of it

    def frozen(self) -> Program:
        """The same with tensors of its own."""
        return replace(
            self,
            buffers=[replace(buffer, constant=_copy(buffer.constant)) for buffer in self.buffers],
            ops=[replace(op, weight=_copy(op.weight)) for op in self.ops],
        )


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone()


def compile_graph(output: Node, dim: int, conditions: dict[str, int], *, live: bool = False) -> Program:
    """The program of a graph whose inputs are the state (dim), the time and conditions {name: width}.

    A ``live`` one holds the graph's tensors themselves, and writes every buffer once.
    """
    lowering = _Lowering(dim, conditions)
    program = lowering.program
    slopes = None if live else closed_form(output)
    if slopes is not None:
        lowering.keep_slopes(slopes)
    program.output = lowering.view(output)
    program.value_ops = len(program.ops)
    if slopes is not None:
        program.trace = lowering.trace(slopes)
    return _without_unused_buffers(program) if live else _with_shared_buffers(program.frozen())


@dataclass(frozen=True)
class ClosedForm:
    """tr J of a network with one or two hidden layers, from the slopes f' of its activations.

    With one layer, J = W_out diag(f') W_in and tr J = weight . f'.  With two, J = W_out diag(f2') W
    diag(f1') W_in and tr J = f2' . (weight f1') with weight = W * (W_in W_out)^T.
    """

    activations: tuple[Node, ...]
    weight: Tensor


def closed_form(output: Node) -> ClosedForm | None:
    """The closed form, where the graph is affine - activation (- affine - activation) - affine in x."""
    matrices: list[Tensor] = []
    activations: list[Node] = []
    node = output
    while len(matrices) <= 3:
        affine = _affine(node)
        if affine is None:
            return None
        matrix, node = affine
        matrices.append(matrix)
        if node.kind == "input":
            break
        if node.kind != "function":
            return None
        activations.append(node)
        node = node.sources[0]
    if node.kind != "input" or len(matrices) not in (2, 3):
        return None
    if len(matrices) == 2:
        last, first = matrices
        return ClosedForm(tuple(activations), (first * last.T).sum(1)[None])
    last, middle, first = matrices
    return ClosedForm(tuple(reversed(activations)), middle * (first @ last).T)


def _affine(node: Node) -> tuple[Tensor, Node] | None:
    """(matrix, source) if ``node`` is matrix @ source plus what does not depend on the state."""
    if node.kind == "add" and not node.sources[1].depends & STATE:
        return _affine(node.sources[0])
    if node.kind != "linear":
        return None
    found, start = [], 0
    for piece in _pieces(node.sources[0]):
        if piece.depends & STATE:
            found.append((node.weight[:, start : start + piece.width], piece))
        start += piece.width
    return found[0] if len(found) == 1 else None


def _pieces(node: Node) -> Iterator[Node]:
    if node.kind != "cat":
        yield node
        return
    for source in node.sources:
        yield from _pieces(source)


class _Lowering:
    """Emits operations for nodes, every buffer written by one operation (or by the copies into it)."""

    def __init__(self, dim: int, conditions: dict[str, int]) -> None:
        self.program = Program(dim)
        self.views: dict[int, View] = {}
        self.slopes: dict[int, View] = {}
        self.nodes: list[Node] = []  # keeps ids valid
        self.inputs = {"state": self._buffer(dim, STATE), "time": self._buffer(1, graph.TIME)}
        for name, width in conditions.items():
            self.inputs[name] = self._buffer(width, graph.CONDITION)
            self.program.conditions[name] = self.inputs[name].buffer

    def _buffer(self, width: int, depends: int, constant: Tensor | None = None) -> View:
        depends = STATE if depends & STATE else depends
        self.program.buffers.append(Buffer(width, depends, constant))
        return View(len(self.program.buffers) - 1, 0, width)

    def _emit(
        self, code: str, depends: int, width: int, a: View, b: View | None = None, **rest: object
    ) -> View:
        out = self._buffer(width, depends)
        self.program.ops.append(Op(code, self._depends(out), out, a, b, **rest))
        return out

    def _depends(self, view: View) -> int:
        return self.program.buffers[view.buffer].depends

    def keep_slopes(self, form: ClosedForm) -> None:
        for node in form.activations:
            self.slopes[id(node)] = self._buffer(node.width, node.depends)

    def trace(self, form: ClosedForm) -> View:
        slopes = [self.slopes[id(node)] for node in form.activations]
        product = self._emit("linear", STATE, len(form.weight), slopes[0], weight=form.weight)
        if len(slopes) == 1:
            return product
        return self._emit("dot", STATE, 1, product, slopes[1])

    def view(self, node: Node) -> View:
        if id(node) not in self.views:
            self.nodes.append(node)
            self.views[id(node)] = getattr(self, f"_lower_{node.kind}")(node)
        return self.views[id(node)]

    def _lower_input(self, node: Node) -> View:
        return self.inputs[node.name]

    def _lower_constant(self, node: Node) -> View:
        return self._buffer(node.width, 0, node.weight)

    def _lower_part(self, node: Node) -> View:
        whole = self.view(node.sources[0])
        return View(whole.buffer, whole.offset + node.start, node.width)

    def _lower_function(self, node: Node) -> View:
        return self._emit(
            "function",
            node.depends,
            node.width,
            self.view(node.sources[0]),
            self.slopes.get(id(node)),
            function=node.name,
            parameter=node.parameter,
        )

    def _lower_normalise(self, node: Node) -> View:
        a = self.view(node.sources[0])
        return self._emit("normalise", node.depends, node.width, a, parameter=node.parameter)

    def _lower_multiply(self, node: Node) -> View:
        a, b = map(self.view, node.sources)
        return self._emit("multiply", node.depends, node.width, a, b)

    def _lower_add(self, node: Node) -> View:
        a, b = node.sources
        if id(b) not in self.views and b.kind == "linear" and b.depends & STATE:
            a, b = b, a  # a residual: the branch's linear map adds to the skip
        if a.kind == "linear" and id(a) not in self.views and a.depends & STATE and a.width == b.width:
            return self._linear(a, self.view(b))
        return self._emit("add", node.depends, node.width, self.view(a), self.view(b))

    def _lower_linear(self, node: Node) -> View:
        return self._linear(node, None)

    def _linear(self, node: Node, start: View | None) -> View:
        """start + weight @ source + bias, what depends on less being summed first."""
        groups: dict[int, list[tuple[Tensor, Node]]] = {}
        offset = 0
        for piece in _pieces(node.sources[0]):
            weight = node.weight[:, offset : offset + piece.width]
            groups.setdefault(piece.depends, []).append((weight, piece))
            offset += piece.width
        bias = None if node.bias is None else self._buffer(node.width, 0, node.bias)
        if start is not None and bias is not None and self._depends(start) & STATE:
            total = bias  # joins what does not depend on the state, the rest is added to the skip
            skip = start
        else:
            skip = None
            total = self._sum(start, bias, node.width)
        for depends in sorted(groups, key=lambda depends: (bool(depends & STATE), depends)):
            for weight, piece in groups[depends]:
                a = self.view(piece)
                begin = total
                if begin is not None and self._depends(begin) not in (0, depends) and not depends & STATE:
                    part = self._emit("linear", depends, node.width, a, weight=weight)
                    total = self._sum(part, begin, node.width)
                    continue
                total = self._emit("linear", depends, node.width, a, begin, weight=weight)
        return total if skip is None else self._sum(total, skip, node.width)

    def _sum(self, a: View | None, b: View | None, width: int) -> View | None:
        if a is None or b is None:
            return a if b is None else b
        if self._depends(b) & STATE or not self._depends(a):
            a, b = b, a
        if not self._depends(a):
            buffers = self.program.buffers
            return self._buffer(width, 0, buffers[a.buffer].constant + buffers[b.buffer].constant)
        return self._emit("add", self._depends(a) | self._depends(b), width, a, b)

    def _lower_cat(self, node: Node) -> View:
        out = self._buffer(node.width, node.depends)
        offset = 0
        for source in node.sources:
            a = self.view(source)
            target = View(out.buffer, offset, source.width)
            self.program.ops.append(Op("copy", self._depends(out), target, a))
            offset += source.width
        return out


def _with_shared_buffers(program: Program) -> Program:
    """Let buffers with tangents take over the place of ones that are no longer needed.

    A tile's buffers then stay in the cache.  Elementwise operations work in place.
    """
    last_use: dict[int, int] = {}
    writers: dict[int, int] = {}
    for index, op in enumerate(program.ops):
        for view in (op.a, op.b, op.out):
            if view is not None:
                last_use[view.buffer] = index
        writers[op.out.buffer] = writers.get(op.out.buffer, 0) + 1
    kept = {program.output.buffer, program.input, program.time, *program.conditions.values()}
    if program.trace is not None:
        kept |= {program.trace.buffer}
        kept |= {op.b.buffer for op in program.ops if op.code == "function" and op.b is not None}
    place: dict[int, int] = {}
    free: list[int] = []

    def shareable(buffer: int) -> bool:
        of_state = program.buffers[buffer].depends & STATE
        return bool(of_state) and buffer not in kept and writers.get(buffer) == 1

    ops = []
    for index, op in enumerate(program.ops):
        released = [
            place.get(view.buffer, view.buffer)
            for view in (op.a, op.b)
            if view is not None and shareable(view.buffer) and last_use[view.buffer] == index
        ]
        released = list(dict.fromkeys(released))
        moved = [
            None if v is None else replace(v, buffer=place.get(v.buffer, v.buffer)) for v in (op.a, op.b)
        ]
        out = op.out
        if shareable(out.buffer):
            same = program.buffers[out.buffer]
            candidates = (released if _works_in_place(op, moved, released) else []) + free
            for candidate in candidates:
                if program.buffers[candidate] == same:
                    place[out.buffer] = candidate
                    (free if candidate in free else released).remove(candidate)
                    break
            out = replace(out, buffer=place.get(out.buffer, out.buffer))
        free += released
        ops.append(replace(op, out=out, a=moved[0], b=moved[1]))
    return _without_unused_buffers(replace(program, ops=ops))


def _works_in_place(op: Op, inputs: list[View | None], released: list[int]) -> bool:
    """Whether ``out`` may be one of the inputs that are no longer needed: never a linear map's source."""
    if op.code == "linear":
        a, b = inputs
        return b is not None and released == [b.buffer] != [a.buffer] and b.offset == 0
    whole = all(view is None or view.offset == 0 for view in inputs)
    return whole and op.code in ("function", "add", "multiply", "normalise")


def _without_unused_buffers(program: Program) -> Program:
    used = [program.input, program.time, *program.conditions.values()]
    views = [view for op in program.ops for view in (op.out, op.a, op.b) if view is not None]
    used += [view.buffer for view in views] + [program.output.buffer]
    number = {old: new for new, old in enumerate(dict.fromkeys(used))}

    def renamed(view: View | None) -> View | None:
        return None if view is None else replace(view, buffer=number[view.buffer])

    return replace(
        program,
        input=number[program.input],
        time=number[program.time],
        conditions={name: number[buffer] for name, buffer in program.conditions.items()},
        buffers=[program.buffers[old] for old in number],
        ops=[replace(op, out=renamed(op.out), a=renamed(op.a), b=renamed(op.b)) for op in program.ops],
        output=renamed(program.output),
        trace=renamed(program.trace),
    )
