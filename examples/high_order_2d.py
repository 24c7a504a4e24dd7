"""Score matching of first, second and third order on a checkerboard, whose entropy is log 32 nats.

    python examples/high_order_2d.py

Trains an MLP by each order from scratch with the same steps, evaluates held-out points, adds the results to a
JSON file after every run, prints the table and draws the densities.
"""

import argparse
import math
import time
from pathlib import Path

import torch
from records import Records

import fastlik

ENTROPY = math.log(32)


def run(order: int, seed: int, arguments: argparse.Namespace) -> dict:
    torch.manual_seed(seed)
    net = fastlik.nn.MLP(2, width=arguments.width)
    start = time.process_time()
    trained = fastlik.train(
        fastlik.data.checkerboard(500_000, seed=seed), net, schedule=arguments.schedule, order=order,
        steps=arguments.steps, batch_size=arguments.batch_size, cooldown=0.5, seed=seed,
        compile=arguments.compile,
    )  # fmt: skip
    seconds = time.process_time() - start
    mean = fastlik.ode_nll(trained.model, fastlik.data.checkerboard(arguments.points, seed=1000)).mean()
    size = 60
    middle = (torch.arange(size) + 0.5) / size * 9 - 4.5
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    grid = fastlik.ode_nll(trained.model, torch.stack((x, y), -1).reshape(-1, 2), tolerance=1e-2)
    density = (-grid.nats).exp()
    return {
        "order": order, "seed": seed, **_key(arguments),
        "nll": mean.nats, "stderr": mean.nats_stderr, "kl": mean.nats - ENTROPY,
        "mass": float(density.nansum()) * (9 / size) ** 2, "cpu_seconds": seconds,
        "density": [round(value, 4) for value in density.nan_to_num().tolist()],
    }  # fmt: skip


def _key(arguments: argparse.Namespace) -> dict:
    """What tells the settings of a table from those of another."""
    return {name: getattr(arguments, name) for name in ("schedule", "steps", "width", "batch_size")}


def picture(results: list[dict], path: Path) -> None:
    from matplotlib.figure import Figure

    shown = [result for result in results if result["seed"] == 0]
    figure = Figure(figsize=(3.2 * len(shown), 3.4), dpi=130, layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for panel, result in zip(panels, shown, strict=True):
        size = math.isqrt(len(result["density"]))
        values = torch.tensor(result["density"]).reshape(size, size)
        panel.imshow(values, origin="lower", extent=(-4.5, 4.5, -4.5, 4.5), vmin=0, vmax=0.06, cmap="magma")
        panel.set(title=f"order {result['order']}, KL {result['kl']:.3f}")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--schedule", default="ve")
    parser.add_argument("--orders", type=int, nargs="+", default=(1, 2, 3))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--points", type=int, default=2000)
    parser.add_argument("--compile", action="store_true", help="torch.compile the steps")
    parser.add_argument("--out", type=Path, default=Path("high_order_2d.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    records = Records(arguments.out)
    key = _key(arguments)
    for seed in range(arguments.seeds):
        for order in arguments.orders:
            if records.find(order=order, seed=seed, **key) is None:
                records.add(run(order, seed, arguments))
    results = [r for r in records.results if all(r[name] == value for name, value in key.items())]
    print("| order | seed | NLL, nats | KL, nats | mass | CPU s |\n| --- | --- | --- | --- | --- | --- |")
    for r in results:
        print(
            f"| {r['order']} | {r['seed']} | {r['nll']:.4f} | {r['kl']:.4f} +- {r['stderr']:.4f} "
            f"| {r['mass']:.3f} | {r['cpu_seconds']:.0f} |"
        )
    picture(results, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
