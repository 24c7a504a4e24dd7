"""What scripts/gpu_check.sh found: one short table, and summary.json with device, clocks and versions.

python -m benchmarks.gpu_report build/gpu
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from xml.etree import ElementTree

OURS = ("triton", "kernel")
PACKAGES = ("torch", "triton", "pytest", "pytest-benchmark", "torchdiffeq")
CLOCKS = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit"


def main(folder: Path) -> None:
    """Print the table; write summary.json."""
    summary = environment()
    for name, read in (("tests", tests), ("bench", bench), ("profile", profile)):
        found = read(folder)
        if found is not None:
            summary[name] = found
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(f"\n{summary['device']}, {summary['versions']}, commit {summary['commit']}")
    for line in table(summary):
        print(line)


def environment() -> dict[str, object]:
    """Device, clocks, versions, commit; what cannot be found is None."""
    import torch

    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "clocks": _output("nvidia-smi", f"--query-gpu={CLOCKS}", "--format=csv"),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "commit": _output("git", "describe", "--always", "--dirty", "--abbrev=40"),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def tests(folder: Path) -> dict[str, object] | None:
    """Counts, and the names of the tests that failed."""
    path = folder / "tests.xml"
    if not path.exists():
        return None
    suite = next(ElementTree.parse(path).iter("testsuite"))
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    return {**counts, "failed": failed}


def bench(folder: Path) -> list[dict[str, object]] | None:
    """One record an operation, dtype and peer."""
    path = folder / "bench.json"
    if not path.exists():
        return None
    return [record["extra_info"] for record in json.loads(path.read_text())["benchmarks"]]


def profile(folder: Path) -> list[dict[str, object]] | None:
    path = folder / "profile.json"
    return json.loads(path.read_text()) if path.exists() else None


def table(summary: dict) -> list[str]:
    """Lines: tests, then an operation a line with its peers, then the ways of a right-hand side."""
    lines = []
    if "tests" in summary:
        found = summary["tests"]
        lines.append(
            f"tests: {found['tests']}, failures {found['failures'] + found['errors']}, "
            f"skipped {found['skipped']}"
        )
        lines += [f"  FAILED {name}" for name in found["failed"]]
    operations: dict[tuple, dict[str, dict]] = {}
    for record in summary.get("bench", []):
        operations.setdefault((record["op"], record["dtype"]), {})[record["peer"]] = record
    if operations:
        lines.append(
            "operation, dtype: ms | % of copy bandwidth or rate | times as fast as each peer | error"
        )
    lines += [_operation(*key, peers) for key, peers in operations.items() if set(OURS) & set(peers)]
    lines += [
        f"right-hand side, batch {r['batch']}, {r['way']}, {r['dtype']} {r['layout']}: "
        f"{r['milliseconds']:.3g} ms, peak {r['peak_bytes'] / 2**20:.0f} MiB, error {r['error']:.1e}"
        for r in summary.get("profile", [])
    ]
    return lines


def _operation(name: str, dtype: str, peers: dict[str, dict]) -> str:
    ours = next(peers[name] for name in OURS if name in peers)
    share = f"{ours['tflops']:.0f} TFLOP/s" if "tflops" in ours else ""
    if "copy" in peers:
        share = f"{100 * peers['copy']['milliseconds'] / ours['milliseconds']:.0f} %"
    ratios = ", ".join(
        f"{peer} {record['milliseconds'] / ours['milliseconds']:.2f}"
        for peer, record in peers.items()
        if peer not in (ours["peer"], "copy")
    )
    return f"{name}, {dtype}: {ours['milliseconds']:.4g} | {share} | {ratios} | {ours['error']:.1e}"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
