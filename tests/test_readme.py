"""The README's examples run and print what it says they print."""

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import torch

README = Path(__file__).parents[1] / "README.md"
EXAMPLE = re.compile(r"```python\n(.*?)```\n\n```text\n(.*?)```", re.DOTALL)


def test_examples_print_what_the_readme_shows():
    """One namespace from top to bottom, as a reader would type it."""
    torch.manual_seed(0)
    namespace = {}
    examples = EXAMPLE.findall(README.read_text())
    assert len(examples) == README.read_text().count("```python")
    for code, expected in examples:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "README.md", "exec"), namespace)
        assert printed.getvalue() == expected


def test_every_link_leads_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target


def test_the_benchmark_table_is_the_one_that_was_measured():
    command = [sys.executable, "-m", "benchmarks.report"]
    report = subprocess.run(command, cwd=README.parent, capture_output=True, text=True, check=True).stdout
    measured = re.findall(r"^\| (?:ring|mlp|unet) .*$", report, re.MULTILINE)
    assert len(measured) > 20
    assert re.findall(r"^\| (?:ring|mlp|unet) .*$", README.read_text(), re.MULTILINE) == measured
