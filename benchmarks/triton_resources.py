"""Registers, stack and shared memory of every Triton kernel, compiled without a GPU.

    python -m benchmarks.triton_resources [operation ...]      # writes results/triton_resources.json
    python -m benchmarks.triton_resources check activation "silu none" sm_90 ...

Operations are called on tensors without storage, and what they would launch is compiled for every target.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from benchmarks.triton_cases import CASES, DTYPES

assert os.environ.get("TRITON_INTERPRET") != "1", "interpreted kernels cannot be compiled"

TABLE = Path(__file__).parent / "results" / "triton_resources.json"
TARGETS = {"sm_80": GPUTarget("cuda", 80, 32), "sm_90": GPUTarget("cuda", 90, 32)}
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
_POINTERS = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64",
             torch.int64: "*i64", torch.int32: "*i32", torch.bool: "*i1", torch.int8: "*i8"}  # fmt: skip

Launch = tuple[JITFunction, tuple, dict[str, object]]


def launches(call: Callable[[], object]) -> list[Launch]:
    """What ``call`` would launch."""
    recorded: list[Launch] = []

    def record(kernel: JITFunction, *args: object, grid: object, warmup: bool, **options: object) -> None:
        recorded.append((kernel, args, options))

    original, JITFunction.run = JITFunction.run, record
    try:
        call()
    finally:
        JITFunction.run = original
    return recorded


def source_of(launch: Launch) -> tuple[ASTSource, dict[str, int]]:
    """The kernel specialised as at run time, and the compiler's options."""
    kernel, args, options = launch
    signature, constants, attributes = {}, {}, {}
    options = dict(options)
    for position, parameter in enumerate(kernel.params):
        name = parameter.name
        value = options.pop(name) if name in options else args[position]
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[name], constants[(position,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = _POINTERS[value.dtype]
            attributes[(position,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if value < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(position,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constants, attributes), options


def resources(launch: Launch, target: GPUTarget) -> dict[str, int]:
    """Registers a thread, bytes of stack a thread (spills are there) and of shared memory a block."""
    source, options = source_of(launch)
    compiled = triton.compile(source, target=target, options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        report = subprocess.run(
            [CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", report).groups()
    return {"registers": int(registers), "stack": int(stack), "shared": compiled.metadata.shared}


def fingerprint(operation: str) -> str:
    """Changes with the sources of an operation's kernels and with the compiler."""
    ops = Path(__file__).parents[1] / "fastlik" / "ops"
    # others use the functions of activations
    paths = [path for name in sorted({operation, "activation"}) for path in sorted((ops / name).glob("*.py"))]
    sources = [path.read_bytes() for path in paths]
    kernels = b"".join(source for source in sources if b"import triton" in source)
    return f"{hashlib.sha256(kernels).hexdigest()[:16]}, triton {triton.__version__}"


def measure(operation: str, case: str, dtype: torch.dtype, target: str) -> dict[str, dict[str, int]]:
    """The figures of every kernel of one call, by name; of one that is launched twice, with a number."""
    figures: dict[str, dict[str, int]] = {}
    for launch in launches(lambda: CASES[operation][case](dtype)):
        name = f"{str(dtype).removeprefix('torch.')} / {target} / {launch[0].fn.__name__}"
        name = next(each for each in (name, f"{name} 2") if each not in figures)
        figures[name] = resources(launch, TARGETS[target])
    return figures


def update(operation: str) -> None:
    """Compile the cases of an operation that the table does not have, and write them there."""
    for case in CASES[operation]:
        table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
        known = table.get(operation, {})
        if known.get("fingerprint") != fingerprint(operation):
            known = {"fingerprint": fingerprint(operation), "cases": {}}
        if case in known["cases"]:
            continue
        figures = {}
        for dtype in DTYPES:
            for target in TARGETS:
                figures |= measure(operation, case, dtype, target)
        known["cases"][case] = figures
        TABLE.write_text(json.dumps(table | {operation: known}, indent=1) + "\n")


def check(operation: str, case: str, target: str) -> None:
    """Raise AssertionError where the table is not what a case compiles to."""
    known = json.loads(TABLE.read_text())[operation]
    wanted, compiler = fingerprint(operation).split(", ")
    assert known["fingerprint"].split(", ")[0] == wanted, f"run python -m {__spec__.name} {operation}"
    assert set(known["cases"]) == set(CASES[operation]), f"run python -m {__spec__.name} {operation}"
    figures = measure(operation, case, DTYPES[0], target)
    if known["fingerprint"].endswith(compiler):
        expected = {name: known["cases"][case][name] for name in figures}
        assert figures == expected, f"{operation}: {figures}, in the table {expected}"


if __name__ == "__main__":
    if sys.argv[1:2] == ["check"]:
        for start in range(2, len(sys.argv), 3):
            check(*sys.argv[start : start + 3])
    else:
        for operation in sys.argv[1:] or CASES:
            update(operation)
