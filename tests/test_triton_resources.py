"""The Triton kernels compile without a GPU, to what the committed table says, within limits."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "benchmarks" / "results" / "triton_resources.json"
OPERATIONS = json.loads(TABLE.read_text())
# a block on these; more registers than 255 a thread there are not
SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024}


# bytes of local memory a thread that are known; elsewhere there are none.  Products of float32 numbers as
# three in TF32 need their operands twice, and a second-order jet has most of them; the backward pass of a
# group of 8192 numbers, and a head of 128 with a mask, are more than the registers hold.
STACK = {
    ("attention", "bfloat16"): 328,
    ("attention", "float32"): 1344,
    ("normalisation", "bfloat16"): 328,
    ("normalisation", "float32"): 392,
}

# some cases are compiled again
RECOMPILED = [
    ("activation", "silu none", "sm_90"),
    ("gate", "silu none 8192", "sm_90"),
    ("normalisation", "nhwc silu none 128 (32, 32)", "sm_90"),
    ("normalisation", "nhwc silu sum 128 (256, 256)", "sm_80"),
    ("attention", "head 64 tangents 1 none mask none", "sm_80"),
    ("attention", "head 32 tangents 1 along mask none", "sm_90"),
    ("residual", "sum", "sm_80"),
    ("hutchinson", "products", "sm_80"),
]


def run(*arguments):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.triton_resources", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("operation", OPERATIONS)
def test_limits_of_registers_stack_and_shared_memory(operation):
    for case, kernels in OPERATIONS[operation]["cases"].items():
        for name, figures in kernels.items():
            dtype, target, _ = name.split(" / ")
            assert figures["stack"] <= STACK.get((operation, dtype), 0), (case, name)
            assert figures["registers"] <= 255, (case, name)
            assert figures["shared"] <= SHARED[target], (case, name)


def test_every_operation_with_triton_kernels_is_there():
    kernels = {path.parent.name for path in (ROOT / "fastlik" / "ops").glob("*/triton.py")}
    assert kernels == set(OPERATIONS) == {operation for operation, *_ in RECOMPILED}


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_the_table_is_true():
    found = run("check", *(each for case in RECOMPILED for each in case))
    assert found.returncode == 0, found.stderr
