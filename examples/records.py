"""Results of the examples: one JSON file a script, written after every run, with machine and commit."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path

import torch


def environment() -> dict[str, object]:
    """Where figures were measured."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    ).stdout.strip()
    cpu = Path("/proc/cpuinfo")
    models = [line.split(":")[1].strip() for line in cpu.read_text().splitlines() if "model name" in line]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": len(models),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit or "unknown",
    }


class Records:
    """A list of results by name, kept in a file; what is in the file already is not computed again."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.results: list[dict] = json.loads(self.path.read_text())["results"] if self.path.exists() else []

    def find(self, **key: object) -> dict | None:
        """The result with these values, if there is one."""
        for result in self.results:
            if all(result.get(name) == value for name, value in key.items()):
                return result
        return None

    def add(self, result: dict) -> None:
        """Append a result, with where it was measured, and write the file."""
        self.results.append({**result, "environment": environment()})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps({"results": self.results}, indent=1) + "\n")
