"""Registers, stack and shared memory of every Triton kernel, compiled without a GPU.

    python -m benchmarks.triton_resources            # rewrites results/triton_resources.json
    python -m benchmarks.triton_resources activation # prints the figures of one operation

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
from collections.abc import Callable, Iterator
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
    """Changes with the sources of an operation's kernels and with its cases."""
    here = Path(__file__)
    ops = here.parents[1] / "fastlik" / "ops"
    sources = [here.with_name("triton_cases.py"), ops / operation / "triton.py"]
    if operation != "activation":  # others use its functions
        sources.append(ops / "activation" / "triton.py")
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]


def measure(operation: str, case: str, dtype: torch.dtype, target: str) -> Iterator[tuple[str, dict]]:
    """(kernel, its figures) of one call."""
    for launch in launches(lambda: CASES[operation][case](dtype)):
        yield launch[0].fn.__name__, resources(launch, TARGETS[target])


def table(operations: list[str]) -> dict[str, object]:
    """Every figure, and what it belongs to."""
    figures = {
        f"{operation} / {case} / {str(dtype).removeprefix('torch.')} / {target} / {kernel}": values
        for operation in operations
        for case in CASES[operation]
        for dtype in DTYPES
        for target in TARGETS
        for kernel, values in measure(operation, case, dtype, target)
    }
    return {
        "triton": triton.__version__,
        "fingerprints": {operation: fingerprint(operation) for operation in operations},
        "kernels": figures,
    }


if __name__ == "__main__":
    if sys.argv[1:]:
        for name, values in table(sys.argv[1:])["kernels"].items():
            print(f"{name}: {values}")
    else:
        result = table(list(CASES))
        rows = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in result.pop("kernels").items())
        head = json.dumps(result, indent=1).removesuffix("\n}")
        TABLE.write_text(f'{head},\n "kernels": {{\n{rows}\n }}\n}}\n')
