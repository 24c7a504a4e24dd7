"""Score matching of first, second and third order on 8 x 8 digits with VE, in bits/dim.

    python examples/high_order_digits.py

As published: a first-order run, from which all orders go on for the same number of steps, first order too.
Probes instead of full matrices (64 dimensions): second order by J v and v'J v, third by d^2 r[v, v].  All are
evaluated with the same dequantisation noise and probes, so that their differences are far surer than their
values.  Results are added to a JSON file after every run.
"""

import argparse
import time
from pathlib import Path

import torch
from records import Records

import fastlik

DATA = {"bins": 17, "data_range": (0.0, 1.0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=2000, help="steps of the common first-order run")
    parser.add_argument("--steps", type=int, default=1000, help="steps of each order after it")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--weights", type=float, nargs=2, default=[1.0, 1.0])
    parser.add_argument("--runs", type=Path, default=Path("runs/high_order_digits"))
    parser.add_argument("--out", type=Path, default=Path("high_order_digits.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    records = Records(arguments.out)
    train, test = fastlik.data.digits()
    options = {"batch_size": 32, "seed": 0, **DATA}
    torch.manual_seed(0)
    first = fastlik.train(
        train, fastlik.nn.UNet(1, width=arguments.width), schedule=fastlik.VE(0.01, 10.0),
        steps=arguments.first, out=arguments.runs / "first", **options,
    )  # fmt: skip
    key = {name: getattr(arguments, name) for name in ("first", "steps", "width", "weights")}
    for order in (1, 2, 3):
        if records.find(order=order, **key) is None:
            records.add({"order": order, **key, **run(order, first.model, train, test, arguments, options)})
    print(table([records.find(order=order, **key) for order in (1, 2, 3)]))


def run(
    order: int,
    first: fastlik.ScoreModel,
    train: torch.Tensor,
    test: torch.Tensor,
    arguments: argparse.Namespace,
    options: dict,
) -> dict:
    start = time.process_time()
    trained = fastlik.train(
        train, first, order=order, order_weights=arguments.weights, steps=arguments.steps, lr=1e-3,
        cooldown=0.5, parts=1, **options,
    )  # fmt: skip
    seconds = time.process_time() - start
    nll = fastlik.ode_nll(trained.model, test, dequantize="uniform", tolerance=1e-2, probes=4, seed=0)
    mean = nll.mean()
    return {
        "cpu_seconds": seconds,
        "bits_per_dim": mean.bits_per_dim,
        "stderr": mean.bits_per_dim_stderr,
        "images": [round(value, 4) for value in nll.bits_per_dim.tolist()],
        "last": trained.history[-1],
    }


def table(results: list[dict]) -> str:
    """Bits/dim by order, and the paired difference from first order with its standard error."""
    lines = ["| order | bits/dim | difference | CPU s |", "| --- | --- | --- | --- |"]
    base = torch.tensor(results[0]["images"])
    for result in results:
        gap = torch.tensor(result["images"]) - base
        lines.append(
            f"| {result['order']} | {result['bits_per_dim']:.4f} +- {result['stderr']:.4f} "
            f"| {gap.mean():.4f} +- {gap.std() / len(gap) ** 0.5:.4f} | {result['cpu_seconds']:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
