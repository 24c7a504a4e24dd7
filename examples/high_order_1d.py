"""Score matching of first, second and third order on the 1-D mixture of Lu et al. 2022.

    python examples/high_order_1d.py --schedule ve --seeds 3

Trains a small MLP by each order from scratch, with the same data, steps and learning rates, and measures,
with quadrature instead of samples: KL(truth | model) = NLL - entropy of the model's ODE, the mass that the
ODE's density has on the grid (1, whatever the network), and the Fisher divergences between the model's score,
the score of its ODE and the true score.  Results are added to a JSON file after every run; the same command
again goes on from there, prints the table and draws the picture.
"""

import argparse
import math
import time
from pathlib import Path

import torch
from records import Records

import fastlik
from fastlik.likelihood.fisher import fisher_divergences
from fastlik.objectives import above_noise
from fastlik.testing import GaussianMixture

ENTROPY = -0.128854
TRUTH = GaussianMixture([0.3, 0.3, 0.4], [[-2 / 7], [-6 / 7], [4 / 7]], torch.tensor([0.1, 0.1, 1.0]) / 49)
FINEST = 0.045  # the deviation of the two narrow components
SCHEDULES = {"ve": fastlik.VE(), "vp": fastlik.VP()}
NAMES = ("order 1", "order 1, equal time", "order 2", "order 3", "order 3, above the noise")
EQUAL_TIME = 1.5  # a step of second order in steps of first order: 10.5 / 7.3 ms, compiled, one thread
PROTOCOLS = {
    "published": {"lr": 1e-3, "ema": 0.999},
    "cooldown": {"lr": 2e-3, "ema": 0.998, "cooldown": 0.5},
}


def options(name: str, schedule: fastlik.VE | fastlik.VP, steps: int) -> dict:
    """Arguments of fastlik.train for a row of the table."""
    weights: tuple = (0.5, 0.1)
    if name == "order 3, above the noise":
        weights = (0.5, above_noise(schedule, FINEST, 0.1))
    return {
        "order": int(name.removeprefix("order ")[0]),
        "order_weights": weights,
        "steps": round(EQUAL_TIME * steps) if "equal time" in name else steps,
    }


def measure(model: fastlik.ScoreModel, schedule: fastlik.VE | fastlik.VP) -> dict:
    """KL, mass and Fisher divergences of a trained model, in nats."""
    x = torch.linspace(-2.4, 2.4, 1201, dtype=torch.float64)[:, None]
    log_q = TRUTH.log_density(x)
    log_p = -fastlik.ode_nll(model, x.float(), tolerance=1e-4).nats
    # far from all data an ODE may be too stiff to have a likelihood (NaN)
    gaps = torch.where(log_q > -50, log_q.exp() * (log_q - log_p), 0.0)
    kl = float(torch.trapezoid(gaps, x[:, 0]))

    def score(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return TRUTH.score(x, schedule.alpha(t), schedule.sigma(t)).to(x.dtype)

    x0 = TRUTH.sample(500, seed=1).float()
    fisher = fisher_divergences(model, x0, 24, true_score=score, tolerance=1e-3)
    return {
        "kl": kl,
        "nll": kl + ENTROPY,
        "mass": float(torch.trapezoid(log_p.exp(), x[:, 0])),
        "log_p": log_p[::4].tolist(),
        "sigma": schedule.sigma(fisher.t).tolist(),
        **{
            pair: {"integral": fisher.integral(pair), "over_time": getattr(fisher, pair).tolist()}
            for pair in ("model_true", "ode_true", "model_ode")
        },
    }


def run(name: str, seed: int, arguments: argparse.Namespace) -> dict:
    schedule = SCHEDULES[arguments.schedule]
    torch.manual_seed(seed)
    net = fastlik.nn.MLP(1, width=arguments.width)
    data = fastlik.data.mixture_1d(1_000_000, seed=seed)
    start = time.process_time()
    trained = fastlik.train(
        data, net, schedule=schedule, batch_size=arguments.batch_size, seed=seed,
        compile=arguments.compile, **options(name, schedule, arguments.steps),
        **PROTOCOLS[arguments.protocol],
    )  # fmt: skip
    seconds = time.process_time() - start
    result = measure(trained.model, schedule)
    return {"name": name, "seed": seed, **_key(arguments), "cpu_seconds": seconds, **result}


def _key(arguments: argparse.Namespace) -> dict:
    """What tells the settings of a table from those of another."""
    names = ("schedule", "protocol", "steps", "width", "batch_size")
    return {name: getattr(arguments, name) for name in names}


def table(results: list[dict]) -> str:
    """Means over the seeds with their standard errors."""
    head = ("", "KL, nats", "NLL", "mass", "model-true", "ode-true", "model-ode", "CPU s")
    lines = [head, ("---",) * len(head)]
    for name in NAMES:
        rows = [result for result in results if result["name"] == name]
        if not rows:
            continue
        values = {key: [row[key] for row in rows] for key in ("kl", "nll", "mass", "cpu_seconds")}
        for pair in ("model_true", "ode_true", "model_ode"):
            values[pair] = [row[pair]["integral"] for row in rows]
        columns = [_mean(values["kl"]), _mean(values["nll"]), _mean(values["mass"])]
        columns += [_mean(values[pair]) for pair in ("model_true", "ode_true", "model_ode")]
        lines.append((name, *columns, f"{sum(values['cpu_seconds']) / len(rows):.0f}"))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _mean(values: list[float]) -> str:
    mean = sum(values) / len(values)
    if len(values) < 2:
        return f"{mean:.4f}"
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
    return f"{mean:.4f} +- {spread:.4f}"


def picture(results: list[dict], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), dpi=130, layout="constrained")
    density, *panels = figure.subplots(1, 3)
    x = torch.linspace(-2.4, 2.4, 1201, dtype=torch.float64)[::4]
    density.plot(x, TRUTH.log_density(x[:, None]).exp(), color="black", lw=1, label="truth")
    colours = {"order 1": "#c44e52", "order 2": "#1f5a96", "order 3": "#55a868"}
    for name, colour in colours.items():
        rows = [result for result in results if result["name"] == name]
        if not rows:
            continue
        density.plot(x, torch.tensor(rows[0]["log_p"]).exp(), color=colour, lw=1, label=name)
        for panel, pair in zip(panels, ("model_true", "ode_true"), strict=True):
            values = torch.tensor([row[pair]["over_time"] for row in rows]).mean(0)
            panel.loglog(rows[0]["sigma"], values, color=colour, lw=1.5, label=name)
    density.set(xlim=(-1.4, 1.4), title="density of the ODE", xlabel="x")
    panels[0].set(title="model's score against the truth", xlabel="sigma", ylabel="Fisher divergence / noise")
    panels[1].set(title="ODE's score against the truth", xlabel="sigma")
    for axes in (density, *panels):
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--schedule", choices=SCHEDULES, default="ve")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="cooldown", help="of the learning rate")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--names", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--compile", action="store_true", help="torch.compile the steps")
    parser.add_argument("--out", type=Path, help="JSON file of the results; the picture is put beside it")
    arguments = parser.parse_args()
    out = arguments.out or Path(f"high_order_1d_{arguments.schedule}_{arguments.protocol}.json")
    torch.set_num_threads(1)
    records = Records(out)
    for seed in range(arguments.seeds):
        for name in arguments.names:
            if records.find(name=name, seed=seed, **_key(arguments)) is None:
                records.add(run(name, seed, arguments))
    key = _key(arguments)
    results = [r for r in records.results if all(r[name] == value for name, value in key.items())]
    print(table(results))
    picture(results, out.with_suffix(".png"))


if __name__ == "__main__":
    main()
