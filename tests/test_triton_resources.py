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


# bytes of local memory a thread that are known: sin reduces large angles there; products of float32 numbers
# as three in TF32 need their operands twice; whole groups and wide heads are more than the registers hold
STACK = {"hutchinson": 0, "activation": 8, "attention": 704, "normalisation": 1536}

# one case of each operation is compiled again
RECOMPILED = [
    ("activation", "silu none", "sm_90"),
    ("normalisation", "nhwc silu none 128 (32, 32)", "sm_90"),
    ("attention", "head 64 tangents 1 mask none", "sm_80"),
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
            assert figures["stack"] <= STACK[operation], (case, name)
            assert figures["registers"] <= 255, (case, name)
            assert figures["shared"] <= SHARED[name.split(" / ")[1]], (case, name)


def test_every_operation_with_triton_kernels_is_there():
    kernels = {path.parent.name for path in (ROOT / "fastlik" / "ops").glob("*/triton.py")}
    assert kernels == set(OPERATIONS) == {operation for operation, *_ in RECOMPILED}


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("case", RECOMPILED, ids=lambda case: case[0])
def test_the_table_is_true(case):
    found = run("check", *case)
    assert found.returncode == 0, found.stderr
