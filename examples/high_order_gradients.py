"""What the orders cost in noise: the spread of each order's gradient over batches, on the 1-D mixture.

    python examples/high_order_gradients.py

Trains an MLP with VE by first and by second order and takes, at the weights reached, the gradients of the
three losses on many batches, times the released weights of their orders; prints the root of the summed
variances.
"""

import argparse

import torch

import fastlik
from fastlik.objectives import choose_forms, draw, weighted_errors

WEIGHTS = (1.0, 0.5, 0.1)
FORMS = choose_forms(3, "auto", "auto", 1, 1)


def gradients(model: fastlik.ScoreModel, data: torch.Tensor, batches: int, batch_size: int) -> torch.Tensor:
    """(3, batches, parameters) of each order's weighted mean loss."""
    parameters = list(model.requires_grad_(True).parameters())
    found: list[list[torch.Tensor]] = [[], [], []]
    for _ in range(batches):
        x0 = data[torch.randint(len(data), (batch_size,))]
        errors = weighted_errors(model, x0, draw(model, x0, "likelihood", "importance", FORMS, 1), FORMS)
        for each, weight, error in zip(found, WEIGHTS, errors, strict=True):
            parts = torch.autograd.grad(
                weight * error.mean(), parameters, retain_graph=True, materialize_grads=True
            )
            each.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack([torch.stack(each) for each in found])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=2048)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = fastlik.data.mixture_1d(200_000)
    print("| trained by order | order 1 | order 2 | order 3 |\n| --- | --- | --- | --- |")
    for order in (1, 2):
        torch.manual_seed(0)
        net = fastlik.nn.MLP(1, width=arguments.width)
        options = {"schedule": "ve", "order": order, "steps": arguments.steps}
        run = fastlik.train(data, net, batch_size=arguments.batch_size, progress=False, **options)
        noise = gradients(run.model, data, arguments.batches, arguments.batch_size).var(1).sum(1).sqrt()
        print(f"| {order} | {' | '.join(f'{value:.1f}' for value in noise)} |", flush=True)


if __name__ == "__main__":
    main()
