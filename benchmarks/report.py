"""From pytest-benchmark's JSON to the tables of the README and the results that are kept.

``pytest benchmarks/ --benchmark-only --benchmark-json=run.json; python -m benchmarks.report run.json``

``--figures FILE`` keeps what each benchmark of a run asserted or counted, by its name, in a file of its own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "cpu.json"
ENVIRONMENT = ("device", "threads", "versions")


def trim(run: dict) -> dict:
    """What is worth keeping of pytest-benchmark's record: machine, versions, commit, medians, errors."""
    cpu, commit = run["machine_info"]["cpu"], run["commit_info"]
    records = [
        bench["extra_info"] | {"seconds": bench["stats"]["median"], "best_seconds": bench["stats"]["min"]}
        for bench in run["benchmarks"]
    ]
    threads = next(record["threads"] for record in records if "threads" in record)
    versions: dict[str, str] = {}
    for record in records:
        versions |= record.get("versions", {})
    return {
        "machine": {"cpu": cpu.get("brand_raw"), "cores": cpu.get("count"), "threads": threads},
        "device": "cpu",
        "commit": commit["id"] + ("+" if commit["dirty"] else ""),
        "date": run["datetime"][:10],
        "versions": dict(sorted(versions.items())),
        "likelihood": [_without(record, ENVIRONMENT) for record in records if "method" in record],
        "rk_step": [_without(record, ENVIRONMENT) for record in records if "op" in record],
        "counts": [_without(r, ENVIRONMENT) for r in records if "frozen / fresh variance" in r],
        "mlp_kernel": [_without(r, ENVIRONMENT) for r in records if "gflops" in r or "peer" in r],
    }


def figures(run: dict) -> dict:
    """Each benchmark's own figures by its name, with machine, versions and commit."""
    cpu, commit = run["machine_info"]["cpu"], run["commit_info"]
    named = {bench["name"].removeprefix("bench_"): bench["extra_info"] for bench in run["benchmarks"]}
    environment: dict = {}
    for record in named.values():
        environment |= {key: record[key] for key in ENVIRONMENT if key in record}
    kept = {name: _without(record, ENVIRONMENT) for name, record in named.items()}
    return {
        "cpu": cpu.get("brand_raw"),
        "commit": commit["id"] + ("+" if commit["dirty"] else ""),
        "date": run["datetime"][:10],
        **environment,
        "figures": {name: record for name, record in kept.items() if record},
    }


def _without(record: dict, keys: Iterable[str]) -> dict:
    kept = {key: value for key, value in record.items() if key not in keys}
    return {key: _rounded(value) for key, value in kept.items()}


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def likelihood_table(results: dict) -> str:
    """Markdown: a method and setting a row, by workload."""
    header = (
        ("workload", "method", "setting", "error, nats/dim", "worst row", "evaluations"),
        ("forward units", "best CPU time, s", "time / fastlik"),
    )
    rows = [
        (
            record["workload"],
            record["method"],
            f"{record['setting']}: {_setting(record)}",
            f"{record['error']:.1e}",
            f"{record['worst_error']:.1e}",
            f"{record['evaluations']:.0f}",
            f"{record['forward_units']:.0f}",
            f"{record['best_seconds']:.3f}",
            f"{record['ratio']:.2f}",
        )
        for record in _ordered(results["likelihood"])
    ]
    return markdown([sum(header, ()), *rows])


def _ordered(records: list[dict]) -> list[dict]:
    """By workload and setting as they come; a stable sort keeps the methods' order."""
    workloads = list(dict.fromkeys(record["workload"] for record in records))
    return sorted(records, key=lambda r: (workloads.index(r["workload"]), r["setting"] != "as practised"))


def _setting(record: dict) -> str:
    return f"{record['tolerance']:g}" if "tolerance" in record else f"{record['steps']} steps"


def probe_noise(results: dict) -> str:
    """One line per method that uses probes: how far its rows are from the exact trace."""
    lines = [
        f"* {record['workload']}, {record['method']}: {record['error_with_probe_noise']:.1e} nats/dim"
        for record in _ordered(results["likelihood"])
        if record["setting"] == "as practised" and record["error_with_probe_noise"] > 2 * record["error"]
    ]
    return "\n".join(lines)


def step_table(results: dict) -> str:
    """Markdown: the native Runge-Kutta step beside its reference."""
    found = {(record["op"], record["shape"], record["backend"]): record for record in results["rk_step"]}
    rows = [("operation", "rows x numbers", "PyTorch, us", "native, us", "faster", "GB/s", "a copy's GB/s")]
    for (op, shape, backend), native in found.items():
        if backend == "native":
            seconds, own = found[op, shape, "torch"]["seconds"], native["seconds"]
            rows.append(
                (op, shape, f"{seconds * 1e6:.0f}", f"{own * 1e6:.0f}", f"{seconds / own:.1f}x")
                + (f"{native['gb_per_s']:.1f}", f"{native['copy_gb_per_s']:.1f}")
            )
    return markdown(rows)


def markdown(rows: list[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def text(results: dict) -> str:
    """Everything for the README."""
    machine, versions = results["machine"], results["versions"]
    names = ", ".join(f"{name} {number}" for name, number in versions.items())
    return "\n\n".join(
        (
            f"{machine['cpu']}, {machine['threads']} thread, commit {results['commit'][:7]}; {names}.",
            likelihood_table(results),
            "With the noise of its probe, a row is off by",
            probe_noise(results),
            step_table(results),
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", help="pytest-benchmark's JSON; default: what is kept")
    parser.add_argument("--figures", type=Path, help="write the run's figures here, and nothing else")
    arguments = parser.parse_args()
    if arguments.figures is not None:
        kept = figures(json.loads(arguments.run.read_text()))
        arguments.figures.write_text(json.dumps(kept, indent=1) + "\n")
        return
    if arguments.run is not None:
        results = trim(json.loads(arguments.run.read_text()))
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(text(json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
