"""The CUDA sources compile without a GPU, and no kernel spills registers to memory."""

import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[1] / "csrc"
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("source", sorted(CSRC.glob("cuda/*.cu")), ids=lambda path: path.stem)
def test_no_spills(source, arch, tmp_path):
    command = [NVCC, "-cubin", f"-arch={arch}", "-O3", "-std=c++17", "-Xptxas=-v"]
    run = subprocess.run(
        [*command, f"-I{CSRC / 'include'}", "-o", str(tmp_path / "out.cubin"), str(source)],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "warning" not in run.stderr, run.stderr
    reports = [line for line in run.stderr.splitlines() if "spill" in line]
    assert reports
    assert all("0 bytes spill stores, 0 bytes spill loads" in line for line in reports)
