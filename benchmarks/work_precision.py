"""Error against work, for every method and peer: a table and a picture.

    python -m benchmarks.work_precision [--out build] [--workload mixture2 ...] [--method adams ...]

Exact traces in float64, so that the error is that of the discretisation alone; its reference is DOP853 at a
tight tolerance.  Each method is run down its own ladder of accuracy settings.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import fastlik

from . import workloads
from .cost import Cost, count
from .methods import FASTLIK, RK4, SCORE_SDE, TORCHDIFFEQ, TORCHODE, Method
from .peers.fastlik_ode import evaluator
from .report import markdown
from .workloads import Workload

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TARGETS = (1e-2, 1e-3, 1e-4)
WORKLOADS: dict[str, Callable[[], Workload]] = {
    **{name: lambda name=name: workloads.oracle(name) for name in ("mixture2", "mixture16", "mixture64")},
    "edm_ring": workloads.edm_ring,
    "edm_digits": workloads.edm_digits,
    "ddpm_digits": workloads.ddpm_digits,
}
_DECADES = (1e-1, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 1e-5)
_SHORT = (1e-1, 1e-2, 1e-3)  # a doubled grid of low order would go on to thousands of evaluations


def _fastlik(method: str, ladder: tuple[float, ...] = _DECADES) -> Method:
    return replace(FASTLIK, name=f"fastlik {method}", ladder=ladder, options=(("method", method),))


def _peer(method: Method, clock: str) -> Method:
    return replace(
        method, name=f"{method} in {clock.replace('_', ' ')}", ladder=_DECADES, options=(("clock", clock),)
    )


METHODS = (
    _fastlik("adams"),
    _fastlik("rk45"),
    _fastlik("tsit5"),
    _fastlik("rk4", _SHORT),
    _fastlik("heun", _SHORT[:2]),
    *(_peer(method, clock) for method in (TORCHDIFFEQ, TORCHODE) for clock in ("t", "log_sigma")),
    replace(SCORE_SDE, ladder=_DECADES),
    replace(RK4, ladder=(4, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64)),
)


def run(method: Method, workload: Workload, setting: float) -> dict[str, object]:
    """One point of the diagram."""
    evaluate = _ours if method.module == FASTLIK.module else _theirs
    nats, cost, estimate = evaluate(method, workload, setting)
    gap = (nats - method.answer(workload)).abs() / workload.dimensions
    point = {
        "workload": workload.name,
        "method": method.name,
        method.unit: setting,
        "error": gap.mean().item(),
        "worst_error": gap.max().item(),
        "evaluations": cost.evaluations,
        "forward_units": cost.forward_units,
    }
    if estimate is not None:
        estimate = estimate / workload.dimensions
        point["estimate / error, rms"] = (estimate.square().mean() / gap.square().mean()).sqrt().item()
        point["error / estimate, worst row"] = (gap / estimate).max().item()
    return point


def _theirs(method: Method, workload: Workload, setting: float) -> tuple[Tensor, Cost, None]:
    likelihood = method.likelihood(workload, counted=True)
    answers: list[Tensor] = []
    cost = count(workload, lambda: answers.append(likelihood(setting)))
    return answers[0], cost, None


def _ours(method: Method, workload: Workload, setting: float) -> tuple[Tensor, Cost, Tensor]:
    """Every evaluation costs the same; many do not pass through Python, where they could be counted."""
    result = evaluator(workload, **dict(method.options))(setting)
    angle = torch.ones(len(workload.x), dtype=torch.float64)

    def once() -> None:
        fastlik.divergence(lambda z: workload.model.angular_velocity(z, angle), workload.x, method="exact")

    evaluations = result.nfe.double().mean().item()
    cost = Cost(evaluations, evaluations * count(workload, once).forward_units)
    return result.nats, cost, result.discretisation


def evaluations_at(points: list[dict], target: float) -> float | None:
    """The fewest evaluations from which on every costlier run of the method has at most this error."""
    best = None
    for point in sorted(points, key=lambda p: -p["evaluations"]):
        if not point["error"] <= target:
            break
        best = point["evaluations"]
    return best


def table(records: list[dict]) -> str:
    """Markdown: evaluations to each error, a method a row, by workload."""
    rows = [("workload", "method", *(f"{target:g} nats/dim" for target in TARGETS), "its usual setting")]
    for (workload, method), points in _grouped(records).items():
        found = [evaluations_at(points, target) for target in TARGETS]
        cells = ["-" if value is None else f"{value:.0f}" for value in found]
        rows.append((workload, method, *cells, _practice(method, points)))
    return markdown(rows)


def _practice(name: str, points: list[dict]) -> str:
    """Evaluations and error at the setting that people use."""
    method = next(method for method in METHODS if method.name == name)
    for point in points:
        if point[method.unit] == method.practice:
            return f"{method.practice:g}: {point['evaluations']:.0f}, {point['error']:.1e}"
    return "-"


def _grouped(records: list[dict]) -> dict[tuple[str, str], list[dict]]:
    groups: dict[tuple[str, str], list[dict]] = {}
    for record in records:
        groups.setdefault((record["workload"], record["method"]), []).append(record)
    return groups


def picture(records: list[dict]) -> Figure:
    """Error over forward units, a panel a workload."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    groups = _grouped(records)
    names = list(dict.fromkeys(workload for workload, _ in groups))
    figure = Figure(figsize=(12, 3.6 * ((len(names) + 2) // 3)), layout="constrained")
    panels = figure.subplots((len(names) + 2) // 3, 3, squeeze=False).flatten()
    methods = [method.name for method in METHODS]
    for panel, name in zip(panels, names, strict=False):
        for number, method in enumerate(methods):
            points = sorted(groups.get((name, method), []), key=lambda p: p["forward_units"])
            ours = method.startswith("fastlik")
            panel.loglog(
                [p["forward_units"] for p in points],
                [p["error"] for p in points],
                marker="o",
                markersize=3,
                color=f"C{number % 10}",
                linestyle="-" if ours else ":",
                linewidth=2.4 if method == "fastlik adams" else 1.2,
                label=f"{method}, one probe" if method == SCORE_SDE.name else method,
            )
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.axhline(1e-3, color="0.7", linewidth=0.6)
        panel.set(title=name, xlabel="forward units per row", ylabel="error, nats/dim", ylim=(1e-7, 1))
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    return figure


def environment() -> dict[str, object]:
    """With what the counts were made; they do not depend on the machine."""
    packages = ("fastlik", "torch", "torchdiffeq", "torchode", "scipy")
    versions = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    return {"date": date.today().isoformat(), "versions": versions}


def main() -> None:
    parser = argparse.ArgumentParser(prog="work-precision", description=__doc__.splitlines()[0])
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="NAME")
    parser.add_argument("--method", nargs="+", default=[""], metavar="PART", help="those named like this")
    parser.add_argument("--out", type=Path, default=Path("build"), help="folder of the table and the picture")
    parser.add_argument("--json", action="store_true", help="print the records instead of the table")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "work_precision.json"
    for name in arguments.workload:
        workload = WORKLOADS[name]()
        for method in METHODS:
            if any(part in method.name for part in arguments.method):
                keep(file, [run(method, workload, setting) for setting in method.ladder])
    records = json.loads(file.read_text())["records"]
    (arguments.out / "work_precision.md").write_text(table(records) + "\n")
    picture(records).savefig(arguments.out / "work_precision.png", dpi=110)
    print(file.read_text() if arguments.json else table(records))


def keep(file: Path, points: list[dict]) -> None:
    """Add the points of one method on one workload to ``file``, in place of earlier ones."""
    old = json.loads(file.read_text())["records"] if file.exists() else []
    records = [r for r in old if any(r[key] != points[0][key] for key in ("workload", "method"))] + points
    order = [(workload, method.name) for workload in WORKLOADS for method in METHODS]
    records.sort(key=lambda record: order.index((record["workload"], record["method"])))
    file.write_text(json.dumps(environment() | {"records": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
