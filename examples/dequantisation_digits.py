"""What the noise within the bins costs on 8 x 8 digits of 17 levels: uniform, learned, truncated normal.

    python examples/dequantisation_digits.py

A U-Net is trained on uniformly dequantised digits, a dequantiser on its bound, and the same held-out images
are evaluated with each noise, keyed alike, and the same probes, so that differences are surer than values.
"""

import argparse
from pathlib import Path

import torch
from records import Records

import fastlik

BINS = 17


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=700, help="of the score network")
    parser.add_argument("--dequantiser-steps", type=int, default=250)
    parser.add_argument("--images", type=int, default=150, help="held-out ones that are evaluated")
    parser.add_argument("--out", type=Path, default=Path("dequantisation_digits.json"))
    arguments = parser.parse_args()
    train, test = fastlik.data.digits()
    model = fastlik.train(train, bins=BINS, steps=arguments.steps, progress=False).model
    run = fastlik.train_dequantiser(
        model, train, steps=arguments.dequantiser_steps, batch_size=64, progress=False
    )
    noises = {"uniform": "uniform", "learned": run.dequantiser, "truncated normal": "truncated_normal"}
    bits = {
        name: fastlik.ode_nll(
            model, test[: arguments.images], dequantize=noise, probes=4, tolerance=1e-2
        ).bits_per_dim
        for name, noise in noises.items()
    }
    settings = {name: value for name, value in vars(arguments).items() if name != "out"}
    records = Records(arguments.out)
    for name, values in bits.items():
        more = values - bits["uniform"]
        error = more.std() / len(more) ** 0.5
        found = {"noise": name, "bits/dim": values.mean().item(), "more than uniform": more.mean().item()}
        records.add({**found, "standard error": error.item(), **settings})
        print(f"{name:<17} {values.mean():.3f} bits/dim, {more.mean():+.3f} +- {error:.3f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
