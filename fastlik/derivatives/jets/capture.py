"""A module's graph of operations, captured once by torch.export, through which jets pass.

Nothing is decomposed: layers, norms and attention stay single operations.  A graph is kept for the shapes it
was captured with (the batch is free) and looks parameters and buffers up in the live module at every call,
so that training, loading, moving or replacing weights is honoured.  It is captured again for another dtype,
another mode (train or eval) or another constant among the modules' attributes.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from .eager import JetTensor, unwrap, wrap
from .errors import NoDerivative
from .fallback import fallback
from .jet import Jet, primals
from .registry import CONSTANT, RULES

# torch.export takes batches of 0 and 1 for constants
_EXAMPLE_BATCH = 3
_UNNEEDED = frozenset(("_assert_tensor_metadata",))


class Program(NamedTuple):
    """A graph as a function of its state and inputs, of which the first is a jet."""

    run: Callable[..., tuple]
    state: tuple[str, ...]  # paths of parameters and buffers in the module
    constants: tuple[Tensor, ...]
    result: pytree.TreeSpec
    modes: tuple[bool, ...]
    attributes: tuple


class Captured:
    """A module that is called as before, and runs as its captured graph where its first input is a jet."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.programs: dict[tuple, Program] = {}

    def __call__(self, x: Tensor | Jet, *args: object, **kwargs: object) -> object:
        if isinstance(x, JetTensor):
            # a batch of 0 or 1 may take a path of its own
            if x.shape[0] < 2:
                return self.module(x, *args, **kwargs)
            return self._run(self.program(x, *args, **kwargs), unwrap(x), args, kwargs, wrap)
        if isinstance(x, Jet):  # torch.compile looks on
            return self._run(self._compiled(x, args, kwargs), x, args, kwargs, tuple)
        return self.module(x, *args, **kwargs)

    def program(self, x: Tensor, *args: object, **kwargs: object) -> Program:
        """The graph for inputs like these and the module as it is."""
        key, attributes = _key(x, args, kwargs), _attributes(self.module)
        program = self.programs.get(key)
        if program is None or program.attributes != attributes:
            program = self.programs[key] = _program(self.module, x, args, kwargs, attributes)
        return program

    def _compiled(self, x: Jet, args: tuple, kwargs: dict) -> Program:
        program = self.programs.get(_key(x, args, kwargs))
        if program is None or program.modes != tuple(each.training for each in self.module.modules()):
            raise RuntimeError(
                "capture the module for these inputs, in this mode, before torch.compile runs it"
            )
        return program

    def _run(self, program: Program, x: Jet, args: tuple, kwargs: dict, finish: Callable) -> object:
        inputs = [x, *args, *kwargs.values()]
        state = [operator.attrgetter(path)(self.module) for path in program.state]
        results = finish(program.run(*state, *program.constants, *pytree.tree_leaves(inputs)))
        return results[0] if program.result.is_leaf() else pytree.tree_unflatten(results, program.result)


def capture(module: nn.Module, x: Tensor, *args: object, **kwargs: object) -> Captured:
    """The module with its graph for ``module(x, *args, **kwargs)``, for any batch size.

    The result is called like the module.  ``fastlik.jvp(lambda x: captured(x, t), x, v)`` and the like send
    jets through the graph, under torch.compile too (``fullgraph=True``), for which the module must have been
    captured.

    Raises:
        NoDerivative: torch.export cannot capture the module (data-dependent control flow); jets
            still pass through the module itself, outside torch.compile.
    """
    captured = Captured(module)
    captured.program(x, *args, **kwargs)
    return captured


def _key(x: Tensor | Jet, args: tuple, kwargs: dict) -> tuple:
    leaves = pytree.tree_leaves([x, *args, *kwargs.values()])
    return tuple(kwargs), tuple([_describe(leaf, x.shape[0]) for leaf in leaves])


def _describe(value: object, batch: int) -> object:
    if not isinstance(value, (Tensor, Jet)):
        return value
    free = len(value.shape) > 0 and value.shape[0] == batch
    return tuple(value.shape[1:]) if free else (None, *value.shape), value.dtype, value.device


def _attributes(module: nn.Module) -> tuple:
    """Everything that a graph of the module has baked in: modes, dtypes and constants."""
    modules = list(module.modules())
    plain = (bool, int, float, str, tuple, type(None))
    constants = [
        value for each in modules for value in vars(each).values() if isinstance(value, plain) and value != ""
    ]
    tensors = [(p.dtype, p.device, p.shape) for each in modules for p in _tensors(each)]
    return tuple(map(type, modules)), tuple(map(str, constants)), tuple(tensors)


def _tensors(module: nn.Module) -> list[Tensor]:
    held = [*module._parameters.values(), *module._buffers.values()]
    return [tensor for tensor in held if tensor is not None]


def _program(module: nn.Module, x: Tensor, args: tuple, kwargs: dict, attributes: tuple) -> Program:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = _export(module, (x, *args), kwargs)
        graph = _with_rules(exported)
        if graph is None:
            graph = _with_rules(exported.run_decompositions({}))
    if graph is None:
        raise NoDerivative("the module writes to its values in place; jets pass through it outside capture")
    runner = fx.GraphModule(exported.graph_module, graph)
    specs = exported.graph_signature.input_specs
    state = [s for s in specs if s.kind in (InputKind.PARAMETER, InputKind.BUFFER)]
    constants = [s for s in specs if s.kind == InputKind.CONSTANT_TENSOR]
    return Program(
        run=runner.forward,
        state=tuple(s.target.removeprefix("module.") for s in state),
        constants=tuple(exported.constants[s.target] for s in constants),
        result=exported.call_spec.out_spec,
        modes=tuple(each.training for each in module.modules()),
        attributes=attributes,
    )


class _Flat(nn.Module):
    """A module called with the leaves of its arguments: torch.export mistakes ``**kwargs`` for one input."""

    def __init__(self, module: nn.Module, arguments: pytree.TreeSpec) -> None:
        super().__init__()
        self.module, self.arguments = module, arguments

    def forward(self, *leaves: object) -> object:
        args, kwargs = pytree.tree_unflatten(leaves, self.arguments)
        return self.module(*args, **kwargs)


def _export(module: nn.Module, args: tuple, kwargs: dict) -> ExportedProgram:
    batch = args[0].shape[0]

    def is_batched(value: object) -> bool:
        return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == batch

    def example(value: object) -> object:
        if isinstance(value, JetTensor):
            value = unwrap(value).primal
        if not is_batched(value):
            return value
        value = value.detach()
        if batch:
            return value[torch.arange(_EXAMPLE_BATCH, device=value.device) % batch]
        return value.new_zeros(_EXAMPLE_BATCH, *value.shape[1:])

    leaves, arguments = pytree.tree_flatten((args, kwargs))
    dynamic = tuple({0: Dim.AUTO} if is_batched(leaf) else None for leaf in leaves)
    try:
        return torch.export.export(
            _Flat(module, arguments),
            tuple(map(example, leaves)),
            dynamic_shapes={"leaves": dynamic},
            strict=False,
        )
    except Exception as reason:
        raise NoDerivative(f"torch.export cannot capture {type(module).__name__}: {reason}") from reason


def _with_rules(exported: ExportedProgram) -> fx.Graph | None:
    """The graph with a rule in place of every operation that depends on x; None if one writes in place."""
    graph = fx.Graph()
    output = graph.graph_copy(exported.graph, {}, return_output_node=True)
    graph.output(output[0] if isinstance(output, tuple) else output)
    names = [
        spec.arg.name for spec in exported.graph_signature.input_specs if spec.kind == InputKind.USER_INPUT
    ]
    depends: set[fx.Node] = set()
    for node in list(graph.nodes):
        if node.op == "placeholder":
            if node.target == names[0]:
                depends.add(node)
            continue
        if node.op != "call_function":
            continue
        name = _operation(node)
        if name in _UNNEEDED:
            graph.erase_node(node)
            continue
        if not any(argument in depends for argument in node.all_input_nodes):
            continue
        if _writes(node):
            return None
        node.target, constant = _rule(name, node.target)
        if not constant:
            depends.add(node)
    return graph


def _operation(node: fx.Node) -> str:
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target.overloadpacket.__name__
    return node.target.__name__


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _rule(name: str, target: Callable) -> tuple[Callable, bool]:
    """What takes an operation's place, and whether its result has no derivatives."""
    if target is operator.getitem:
        return target, False
    if name in CONSTANT:
        return _on_primals(target), True
    if name in RULES:
        return RULES[name], False
    if not isinstance(target, torch._ops.OpOverload):
        raise NoDerivative(f"{name} in a captured graph")

    def autograd(*args: object, **options: object) -> object:
        return fallback(name, target, args, options)

    return autograd, False


def _on_primals(target: Callable) -> Callable:
    def constant(*args: object, **options: object) -> object:
        return target(*primals(args), **primals(options))

    return constant
