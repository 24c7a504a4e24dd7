"""Runs tests/simulated, on an accelerator that is simulated on the CPU, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path


def test_on_a_simulated_accelerator():
    tests = Path(__file__).parent / "simulated"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    environment = {**os.environ, "FASTLIK_SIMULATED": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
