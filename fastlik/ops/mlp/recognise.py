"""From an unmodified network to its graph: it is run once on tensors that record what is done to them.

Nothing is guessed: an operation that the kernels do not know, a value that decides a branch, or a result
that differs from the network's own refuses the network, with the reason.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch import Tensor

from . import graph, reference
from .graph import CONDITION, STATE, TIME, Node
from .program import Program, compile_graph

MAX_WIDTH, MAX_DIM, MAX_BUFFERS, MAX_CONDITIONS = 4096, 1024, 128, 8
# the batch that a network is traced with: a number that no layer is likely to be as wide as
_ROWS = 11
# what may be asked of a tensor: nothing of this depends on its values
_QUERIES = frozenset(
    "shape dtype device ndim is_cuda layout requires_grad is_nested is_sparse size dim numel __len__ "
    "__repr__ __format__ is_floating_point is_complex get_device stride is_contiguous".split()
)


class Unrecognised(Exception):
    """Why a network cannot run in the kernels, in one line."""


class Traced(Tensor):
    """A tensor (rows, width) or (rows,) with the node that it is the value of."""

    @staticmethod
    def of(value: Tensor, node: Node) -> Traced:
        traced = value.detach().as_subclass(Traced)
        traced.node = node
        return traced

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        name = _name(func)
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        if name in _QUERIES:
            return result
        if not all(
            isinstance(r, Tensor) for r in (result if isinstance(result, (tuple, list)) else (result,))
        ):
            raise Unrecognised(f"its code reads a value of a tensor ({name})")
        rule = _RULES.get(name)
        if rule is None:
            raise Unrecognised(f"the operation {name} is not one of the kernels'")
        try:
            nodes = rule(result, *args, **(kwargs or {}))
        except (TypeError, ValueError) as error:
            raise Unrecognised(f"{name}: {error}") from None
        if nodes is None:  # not a function of the inputs
            return _plain(result)
        if isinstance(result, Tensor):
            return cls.of(_plain(result), nodes)
        return type(result)(cls.of(_plain(r), n) for r, n in zip(result, nodes, strict=True))


def _name(func: Callable) -> str:
    name = getattr(func, "__name__", str(func))
    if name == "__get__":
        name = func.__self__.__name__
    return name


def _plain(x: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return x.as_subclass(Tensor).detach()


def _node(x: object, width: int, like: Tensor) -> Node:
    """The node of an operand; numbers and tensors that are the same for each row are constants."""
    if isinstance(x, Traced):
        return x.node
    if isinstance(x, (int, float)):
        return graph.filled(float(x), 1, _plain(like))
    if not isinstance(x, Tensor):
        raise ValueError(f"an operand of type {type(x).__name__}")
    if x.dim() == 0:
        return graph.constant(x[None])
    if x.dim() == 2 and x.shape[0] in (1, _ROWS) and bool((x == x[:1]).all()):
        return graph.constant(x[0])
    if x.dim() == 1 and _plain(like).dim() == 2:
        return graph.constant(x)
    raise ValueError(f"a constant of shape {tuple(x.shape)}")


def _width(x: Tensor) -> int:
    """Of a value (rows, width) or (rows,)."""
    if x.dim() not in (1, 2) or x.shape[0] != _ROWS:
        raise ValueError(f"a value of shape {tuple(x.shape)}, not (rows, features)")
    return 1 if x.dim() == 1 else x.shape[1]


def _traced(*values: object) -> Traced:
    return next(value for value in values if isinstance(value, Traced))


def _check_rank(*values: object) -> None:
    """(rows,) beside (rows, width) would broadcast over the wrong axis."""
    ranks = {value.dim() for value in values if isinstance(value, Traced)}
    if len(ranks) > 1:
        raise ValueError("values of shape (rows,) and (rows, features) in one operation")


def _binary(make: Callable[[Node, Node], Node]) -> Callable:
    def rule(result: Tensor, a: object, b: object, **rest: object) -> Node:
        if rest.get("alpha", 1) != 1 or rest.get("out") is not None or rest.get("rounding_mode"):
            raise ValueError("with further arguments")
        _check_rank(a, b)
        width = _width(result)
        like = _traced(a, b)
        node = make(_node(a, width, like), _node(b, width, like))
        if node.width != width:
            raise ValueError(f"a result of width {width}")
        return node

    return rule


def _scaled(a: Node, factor: float) -> Node:
    if a.kind == "constant":
        return graph.constant(factor * a.weight)
    return graph.multiply(a, graph.constant(torch.tensor([factor], dtype=torch.float64)))


def _reciprocal(a: Node) -> Node:
    return graph.constant(1 / a.weight) if a.kind == "constant" else graph.function("reciprocal", a)


def _subtract(a: Node, b: Node) -> Node:
    return graph.add(a, _scaled(b, -1.0))


def _divide(a: Node, b: Node) -> Node:
    return graph.multiply(a, _reciprocal(b))


def _unary(name: str, parameter: float = 0.0) -> Callable:
    def rule(result: Tensor, x: Traced, inplace: bool = False) -> Node:
        return graph.function(name, x.node, parameter)

    return rule


def _gelu(result: Tensor, x: Traced, approximate: str = "none") -> Node:
    return graph.function("gelu" if approximate == "none" else "gelu_tanh", x.node)


def _softplus(result: Tensor, x: Traced, beta: float = 1.0, threshold: float = 20.0) -> Node:
    if threshold != 20 or beta <= 0:
        raise ValueError("a threshold other than 20")
    return graph.function("softplus", x.node, float(beta))


def _elu(result: Tensor, x: Traced, alpha: float = 1.0, inplace: bool = False) -> Node:
    return graph.function("elu", x.node, float(alpha))


def _leaky_relu(result: Tensor, x: Traced, negative_slope: float = 0.01, inplace: bool = False) -> Node:
    return graph.function("leaky_relu", x.node, float(negative_slope))


def _power(result: Tensor, x: object, exponent: object) -> Node:
    by_exponent = {2: "square", 0.5: "sqrt", -1: "reciprocal"}
    if not isinstance(x, Traced) or not isinstance(exponent, (int, float)) or exponent not in by_exponent:
        raise ValueError(f"the exponent {exponent}")
    return graph.function(by_exponent[exponent], x.node)


def _rsqrt(result: Tensor, x: Traced) -> Node:
    return graph.function("reciprocal", graph.function("sqrt", x.node))


def _linear(result: Tensor, x: Traced, weight: Tensor, bias: Tensor | None = None) -> Node:
    if not isinstance(x, Traced) or isinstance(weight, Traced) or isinstance(bias, Traced):
        raise ValueError("a weight that depends on the inputs")
    if x.dim() != 2:
        raise ValueError(f"an input of shape {tuple(x.shape)}")
    return graph.linear(x.node, weight, bias)


def _matmul(result: Tensor, x: object, weight: object) -> Node:
    return _linear(result, x, weight.T if isinstance(weight, Tensor) and weight.dim() == 2 else None)


def _addmm(
    result: Tensor, bias: Tensor, x: Traced, weight: Tensor, *, beta: float = 1, alpha: float = 1
) -> Node:
    if beta != 1 or alpha != 1 or bias.dim() != 1:
        raise ValueError("with factors")
    return _linear(result, x, weight.T, bias)


def _addcmul(result: Tensor, a: object, b: object, c: object, *, value: float = 1) -> Node:
    _check_rank(a, b, c)
    like, width = _traced(a, b, c), _width(result)
    product = graph.multiply(_node(b, width, like), _node(c, width, like))
    return graph.add(_node(a, width, like), product if value == 1 else _scaled(product, value))


def _layer_norm(
    result: Tensor,
    x: Traced,
    normalized_shape: tuple[int, ...],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Node:
    if tuple(normalized_shape) != (x.shape[-1],):
        raise ValueError(f"over {tuple(normalized_shape)}")
    node = graph.normalise(x.node, eps)
    node = node if weight is None else graph.multiply(node, graph.constant(weight))
    return node if bias is None else graph.add(node, graph.constant(bias))


def _cat(result: Tensor, tensors: tuple, dim: int = 0) -> Node:
    if dim not in (1, -1) or result.dim() != 2:
        raise ValueError(f"along dimension {dim}")
    like = _traced(*tensors)
    nodes = []
    for tensor in tensors:
        node = _node(tensor, tensor.shape[1], like)
        nodes.append(node)
    return graph.cat(nodes)


def _split(result: tuple, x: Traced, *args: object, **rest: object) -> list[Node]:
    if any(piece.dim() != 2 or piece.shape[0] != _ROWS for piece in result):
        raise ValueError("along the batch")
    starts, nodes = 0, []
    for piece in result:
        nodes.append(graph.part(x.node, starts, starts + piece.shape[1]))
        starts += piece.shape[1]
    return nodes


def _getitem(result: Tensor, x: object, index: object) -> Node:
    if not isinstance(x, Traced):
        raise ValueError("a table that is indexed by an input")
    index = index if isinstance(index, tuple) else (index,)
    index = tuple(i for i in index if i is not Ellipsis)
    if x.dim() == 1 and index in ((slice(None), None), (None,)) and result.shape == (_ROWS, 1):
        return x.node
    if x.dim() == 2 and len(index) <= 2 and index[:1] != (None,):
        rows = index[0] if len(index) == 2 or result.shape[0] != _ROWS else slice(None)
        columns = index[-1] if len(index) == 2 or result.shape != x.shape else slice(None)
        if len(index) == 2 and rows == slice(None):
            if isinstance(columns, int):
                start = columns % x.shape[1]
                return graph.part(x.node, start, start + 1)
            if isinstance(columns, slice) and columns.step in (None, 1):
                start, stop, _ = columns.indices(x.shape[1])
                return graph.part(x.node, start, stop)
    raise ValueError(f"the index {index}")


def _same(result: Tensor, x: Traced, *args: object, **rest: object) -> Node:
    """Changes of shape or type that leave each row's features as they are."""
    if not isinstance(x, Traced):
        raise ValueError("of a tensor that is not an input")
    if result.dtype != _plain(x).dtype:
        raise ValueError(f"a change of precision to {result.dtype}")
    if result.shape[0] != _ROWS or result.numel() != _plain(x).numel():
        raise ValueError(f"a change of shape to {tuple(result.shape)}")
    return x.node


def _expand(result: Tensor, x: Traced, *args: object, **rest: object) -> Node:
    if isinstance(x, Traced) and x.dim() == 2 == result.dim() and x.shape[1] == 1 and len(result) == _ROWS:
        return graph.linear(x.node, _plain(x).new_ones(result.shape[1], 1))
    return _same(result, x)


def _dropout(result: Tensor, x: Traced, p: float = 0.5, training: bool = True, inplace: bool = False) -> Node:
    if training and p > 0:
        raise ValueError("in training mode")
    return x.node


def _detach(result: Tensor, x: Traced) -> Node:
    if x.node.depends & STATE:
        raise ValueError("of a value that depends on x")
    return x.node


def _constant_like(result: Tensor, x: Traced, *args: object, **rest: object) -> None:
    return None


_RULES: dict[str, Callable] = {
    **dict.fromkeys(("add", "__add__", "__radd__"), _binary(graph.add)),
    **dict.fromkeys(("mul", "multiply", "__mul__", "__rmul__"), _binary(graph.multiply)),
    **dict.fromkeys(("sub", "subtract", "__sub__"), _binary(_subtract)),
    **dict.fromkeys(("rsub", "__rsub__"), _binary(lambda a, b: _subtract(b, a))),
    **dict.fromkeys(("div", "divide", "true_divide", "__truediv__"), _binary(_divide)),
    **dict.fromkeys(("__rtruediv__", "__rdiv__"), _binary(lambda a, b: _divide(b, a))),
    **dict.fromkeys(("neg", "__neg__", "negative"), lambda result, x: _scaled(x.node, -1.0)),
    **dict.fromkeys(("pow", "__pow__"), _power),
    **{name: _unary(name) for name in ("silu", "tanh", "sigmoid", "sin", "cos", "exp", "log", "sqrt")},
    **{name: _unary(name) for name in ("reciprocal", "square")},
    **dict.fromkeys(("relu", "relu_"), _unary("leaky_relu", 0.0)),
    "gelu": _gelu,
    "softplus": _softplus,
    "elu": _elu,
    "leaky_relu": _leaky_relu,
    "rsqrt": _rsqrt,
    "linear": _linear,
    **dict.fromkeys(("matmul", "__matmul__", "mm"), _matmul),
    "addmm": _addmm,
    "addcmul": _addcmul,
    "layer_norm": _layer_norm,
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    **dict.fromkeys(("chunk", "split"), _split),
    "__getitem__": _getitem,
    **dict.fromkeys(("unsqueeze", "view", "reshape", "flatten", "squeeze", "contiguous", "view_as"), _same),
    **dict.fromkeys(("to", "float", "double", "type", "type_as", "clone"), _same),
    **dict.fromkeys(("expand", "expand_as"), _expand),
    "dropout": _dropout,
    "detach": _detach,
    **dict.fromkeys(("ones_like", "zeros_like", "new_zeros", "new_ones", "new_full"), _constant_like),
}


def recognise(
    f: Callable[..., Tensor],
    dim: int,
    conditions: dict[str, int],
    times: Tensor,
    dtype: torch.dtype,
    device: torch.device,
    *,
    live: bool = False,
) -> Program:
    """The program of f(x (B, dim), time (B,), **conditions (B, width)) -> (B, dim).

    Args:
        times: some values of the time, at which the program is compared with ``f``.
        live: the program keeps the network's own tensors, with what they depend on, instead of copies.

    Raises:
        Unrecognised: it has none; the message says why.
    """
    if torch.is_autocast_enabled(device.type):
        raise Unrecognised("autocast is on")
    if dim > MAX_DIM:
        raise Unrecognised(f"x has {dim} coordinates, more than {MAX_DIM}")
    if len(conditions) > MAX_CONDITIONS:
        raise Unrecognised(f"more than {MAX_CONDITIONS} conditions")
    x, time, given = _examples(_ROWS, dim, conditions, times, dtype, device)
    inputs = {
        name: Traced.of(value, graph.entry(name, value.shape[1], CONDITION)) for name, value in given.items()
    }
    with torch.set_grad_enabled(live):
        output = f(
            Traced.of(x, graph.entry("state", dim, STATE)),
            Traced.of(time, graph.entry("time", 1, TIME)),
            **inputs,
        )
    if not isinstance(output, Traced) or not output.node.depends & STATE:
        raise Unrecognised("its result does not depend on x")
    try:
        program = compile_graph(output.node, dim, conditions, live=live)
    except ValueError as error:
        raise Unrecognised(str(error)) from None
    _check_size(program)
    _check_value(f, program, times, conditions, dtype, device)
    return program


def _examples(
    rows: int, dim: int, conditions: dict[str, int], times: Tensor, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Inputs of ``rows`` rows that do not touch the global random state."""
    generator = torch.Generator().manual_seed(0)

    def normal(width: int) -> Tensor:
        return torch.randn(rows, width, dtype=torch.float64, generator=generator).to(device, dtype)

    time = times.to(device, dtype).repeat(-(-rows // len(times)))[:rows]
    return normal(dim), time, {name: normal(width) for name, width in conditions.items()}


def _check_size(program: Program) -> None:
    if len(program.buffers) > MAX_BUFFERS:
        raise Unrecognised(f"it has more than {MAX_BUFFERS} intermediate values")
    widest = max(buffer.width for buffer in program.buffers)
    if widest > MAX_WIDTH:
        raise Unrecognised(f"it has a layer of {widest} features, more than {MAX_WIDTH}")


def _check_value(
    f: Callable[..., Tensor],
    program: Program,
    times: Tensor,
    conditions: dict[str, int],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Compare with the network on another number of rows."""
    x, time, given = _examples(_ROWS + 6, program.dim, conditions, times, dtype, device)
    with torch.no_grad():
        expected = f(x, time, **given)
        actual = reference.evaluate(program, x, time, given, x.new_zeros(0, *x.shape)).output
    scale = max(1e-6, float(expected.abs().max()))
    difference = float((actual - expected).abs().max()) / scale
    allowed = 1e3 * operator.mul(torch.finfo(dtype).eps, len(program.ops) ** 0.5)
    if not difference <= allowed:
        raise Unrecognised(f"its own result differs from the recognised one's by {difference:.1e}")
