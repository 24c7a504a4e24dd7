"""Train on a checkerboard and compare the density that the model has learned with the true one.

    python examples/density_2d.py

Takes about a minute on two cores, prints the likelihood of held-out points and writes density_2d.png.
The entropy of the checkerboard is log 32 nats, so that what the mean negative log-likelihood exceeds it by
is the Kullback-Leibler divergence of the model from the truth.
"""

import argparse
import math
import time

import torch

import fastlik
from fastlik.plot import density_heatmap

ENTROPY = math.log(32)


def log_density(x: torch.Tensor) -> torch.Tensor:
    """The checkerboard, (N, 2) -> (N,): uniform on 8 of the 16 squares of [-4, 4]^2."""
    column, row = ((x + 4) / 2).floor().long().unbind(1)
    inside = ((x.abs() < 4).all(1)) & ((column + row) % 2 == 0)
    return torch.where(inside, -ENTROPY, -math.inf)


def main() -> None:
    parser = argparse.ArgumentParser(description="Density of a trained model beside the truth.")
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--out", default="density_2d.png")
    options = parser.parse_args()

    start = time.perf_counter()
    points = fastlik.data.checkerboard(100_000, seed=0)
    run = fastlik.train(points, predicts="v", steps=options.steps, ema=0.999, seed=0)
    seconds = time.perf_counter() - start

    held_out = fastlik.data.checkerboard(2000, seed=1)
    mean = fastlik.ode_nll(run.model, held_out, progress=True).mean()
    print(f"training             {seconds:8.0f} s, {options.steps} steps")
    print(f"mean NLL, held out   {mean.nats:8.4f} +- {mean.nats_stderr:.4f} nats")
    print(f"entropy              {ENTROPY:8.4f} nats")
    print(f"KL(truth | model)    {mean.nats - ENTROPY:8.4f} +- {mean.nats_stderr:.4f} nats")

    figure = density_heatmap(run.model, limits=(-4.5, 4.5, -4.5, 4.5), truth=log_density, resolution=90)
    figure.savefig(options.out)
    print(f"wrote                {options.out}")


if __name__ == "__main__":
    main()
