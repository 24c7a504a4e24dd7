"""The benchmarks are started, or said to be missing."""

import subprocess
import sys

import fastlik


def test_an_installed_package_has_no_benchmarks(cli, monkeypatch, tmp_path):
    monkeypatch.setattr(fastlik, "__file__", str(tmp_path / "fastlik" / "__init__.py"))
    result = cli("bench")
    assert result.exit_code == 1
    assert "source checkout" in result.stderr


def test_pytest_runs_in_the_checkout(cli, monkeypatch, tmp_path):
    (tmp_path / "benchmarks").mkdir()
    monkeypatch.setattr(fastlik, "__file__", str(tmp_path / "fastlik" / "__init__.py"))
    seen = {}

    def run(command, **options):
        seen.update(command=command, **options)
        [report] = [word for word in command if word.startswith("--benchmark-json=")]
        with open(report.partition("=")[2], "w") as file:
            file.write('{"benchmarks": []}')
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(subprocess, "run", run)
    result = cli("bench", "-k", "mlp", "--json", "--device", "cpu")
    assert result.exit_code == 1  # pytest's outcome
    assert result.stdout == '{"benchmarks": []}\n'
    assert seen["command"][:5] == [sys.executable, "-m", "pytest", "benchmarks/", "--benchmark-only"]
    assert seen["command"][5:7] == ["-k", "mlp"]
    assert seen["cwd"] == tmp_path and seen["env"]["CUDA_VISIBLE_DEVICES"] == ""


def test_work_precision_runs_where_the_user_is(cli, monkeypatch):
    seen = {}

    def run(command, **options):
        seen.update(command=command, **options)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    result = cli("bench", "work-precision", "--workload", "edm_ring", "--out", "there", "--json")
    assert result.exit_code == 0
    assert seen["command"][1:3] == ["-m", "benchmarks.work_precision"]
    assert seen["command"][3:] == ["--workload", "edm_ring", "--out", "there", "--json"]
    assert "cwd" not in seen and seen["env"]["PYTHONPATH"]
