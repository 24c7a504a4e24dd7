"""The README's examples, and those of the documents, run and print what it says they print."""

import contextlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import work_precision

README = Path(__file__).parents[1] / "README.md"
EXAMPLE = re.compile(r"```python\n(.*?)```\n\n```text\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize("document", ["README.md", "docs/bounds.md", "docs/dequantisation.md"])
def test_examples_print_what_is_shown(document):
    """One namespace from top to bottom, as a reader would type it."""
    torch.manual_seed(0)
    namespace = {}
    text = (README.parent / document).read_text()
    examples = EXAMPLE.findall(text)
    assert len(examples) == text.count("```python") > 0
    for code, expected in examples:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, document, "exec"), namespace)
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


def test_the_table_of_solvers_is_the_one_that_was_measured():
    measured = README.parent / "benchmarks" / "results" / "work_precision.json"
    table = work_precision.table(json.loads(measured.read_text())["records"])
    assert table.count("\n") > 60
    assert table in (README.parent / "docs" / "solvers.md").read_text()


def test_evaluations_count_from_where_the_error_stays_below():
    points = [{"evaluations": n, "error": e} for n, e in ((40, 1e-5), (10, 1e-4), (20, 1e-2), (30, 1e-3))]
    assert work_precision.evaluations_at(points, 2e-3) == 30
    assert work_precision.evaluations_at(points, 1e-6) is None
