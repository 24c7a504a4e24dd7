"""Figures: training curve, samples, likelihoods of a data set, density in the plane.

Every function returns a matplotlib Figure and needs no display; ``figure.savefig("x.png")`` writes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .likelihood.ode import ode_nll
from .likelihood.result import NLL
from .model import ScoreModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Density = Callable[[Tensor], Tensor]

LINE, PALE = "#1f5a96", "#9dbbd8"


def training_curve(history: Sequence[Mapping[str, float]]) -> Figure:
    """Loss over steps, each record and their running mean.

    Args:
        history: records with "step" and "loss": ``Run.history``, or the lines of metrics.jsonl.

    Raises:
        ValueError: no records, as after a run of less than 20 steps.
        ImportError: matplotlib is missing.
    """
    if not history:
        raise ValueError("the history is empty: a run writes a record every 20 steps")
    figure, axes = _figure(6.4, 3.6)
    steps = [record["step"] for record in history]
    losses = [record["loss"] for record in history]
    axes.plot(steps, losses, color=PALE, linewidth=1, label=f"mean of {steps[0]} steps")
    axes.plot(steps, _running_mean(losses), color=LINE, linewidth=1.8, label="running mean")
    settled = losses[len(losses) // 30 :]  # the first fall is steep, and would flatten all the rest
    margin = 0.1 * (max(settled) - min(settled)) or 1.0
    axes.set_ylim(min(settled) - margin, max(settled) + margin)
    axes.set(xlabel="step", ylabel="weighted denoising loss", xlim=(0, steps[-1]))
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.legend(frameon=False)
    return figure


def _running_mean(values: Sequence[float]) -> list[float]:
    """Means of each value and its neighbours, about a twentieth of all of them."""
    reach = len(values) // 40
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def image_grid(images: Tensor, data_range: tuple[float, float] | None = None) -> Figure:
    """Images (N, C, H, W), C of 1 or 3, in a grid as square as possible.

    Args:
        data_range: the values shown black and white, by default the smallest and the largest.

    Raises:
        ValueError: another shape, or no images.
        ImportError: matplotlib is missing.
    """
    if images.dim() != 4 or len(images) == 0 or images.shape[1] not in (1, 3):
        raise ValueError(f"images must have shape (N, 1 or 3, H, W), got {tuple(images.shape)}")
    images = images.detach().cpu().double()
    low, high = data_range or (images.min().item(), images.max().item())
    grid = _tiled(((images - low) / max(high - low, 1e-12)).clamp(0, 1))
    height, width = grid.shape[:2]
    scale = 6 / max(height, width)
    figure, axes = _figure(width * scale, height * scale)
    axes.imshow(grid.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()
    return figure


def _tiled(images: Tensor) -> Tensor:
    """(N, C, H, W) in [0, 1] -> (rows * (H + 1) + 1, ..., C), grey lines between the images."""
    n, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    grid = torch.full((rows * (height + 1) + 1, columns * (width + 1) + 1, channels), 0.35)
    for i, image in enumerate(images):
        top, left = i // columns * (height + 1) + 1, i % columns * (width + 1) + 1
        grid[top : top + height, left : left + width] = image.permute(1, 2, 0)
    return grid


def scatter(samples: Tensor) -> Figure:
    """The first two coordinates of samples (N, d); a histogram where d = 1."""
    points = samples.detach().cpu().flatten(1)
    if points.shape[1] == 1:
        figure, axes = _figure(6.4, 3.6)
        axes.hist(points[:, 0].numpy(), _bin_count(len(points)), color=PALE, edgecolor="white", density=True)
        axes.set(xlabel="x", ylabel=f"density of {len(points)} samples")
        return figure
    figure, axes = _figure(4.8, 4.8)
    axes.scatter(*points[:, :2].T.numpy(), s=4, color=LINE, alpha=0.4, linewidths=0)
    axes.set(xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
    return figure


def nll_histogram(result: NLL | Mapping[str, Any]) -> Figure:
    """Bits per dimension of the rows, with the mean and its standard error.

    Args:
        result: of ``ode_nll``, or the dictionary that ``NLL.to_dict`` or an nll.json holds.

    Raises:
        ValueError: no row converged.
        ImportError: matplotlib is missing.
    """
    facts = result.to_dict() if isinstance(result, NLL) else result
    rows = [value for value in facts["bits_per_dim"] if value is not None]
    if not rows:
        raise ValueError("no row converged: there is nothing to show")
    mean = facts["mean"]
    figure, axes = _figure(6.4, 3.6)
    axes.hist(rows, _bin_count(len(rows)), color=PALE, edgecolor="white")
    error = mean["bits_per_dim_stderr"]
    label = f"mean {mean['bits_per_dim']:.3f}" + ("" if error is None else f" ± {error:.3f} bits/dim")
    axes.axvline(mean["bits_per_dim"], color=LINE, linewidth=1.8, label=label)
    if error is not None:
        band = mean["bits_per_dim"] - error, mean["bits_per_dim"] + error
        axes.axvspan(*band, color=LINE, alpha=0.25, linewidth=0)
    axes.set(xlabel="negative log-likelihood (bits/dim, lower is better)", ylabel=f"rows of {len(rows)}")
    axes.legend(frameon=False)
    return figure


def _bin_count(n: int) -> int:
    return max(10, min(80, round(2 * n ** (1 / 3) * 1.5)))


def density_heatmap(
    model: ScoreModel,
    limits: tuple[float, float, float, float] | None = None,
    truth: Density | None = None,
    resolution: int = 80,
) -> Figure:
    """The density of a model in the plane, by ``ode_nll`` on a grid, beside the truth.

    The title of the model's panel gives the integral over the grid: 1 where the grid holds all of it,
    whatever the network.

    Args:
        limits: (left, right, bottom, top); by default 2.5 standard deviations around the data's mean.
        truth: the exact log density, (N, 2) -> (N,) nats; shown on the same colour scale.
        resolution: cells along each axis.

    Raises:
        ValueError: events of the model are known and not (2,), or no limits and no moments.
        ImportError: matplotlib is missing.
    """
    limits = limits or _window(model)
    x, cell = _cells(limits, resolution)
    parameter = next(model.parameters(), x)
    nll = ode_nll(model, x.to(parameter))
    panels = {"model": (-nll.nats.cpu()).exp()}
    if truth is not None:
        panels["truth"] = truth(x).cpu().exp()
    top = max(float(values.nan_to_num().quantile(0.995)) for values in panels.values())
    figure, axes = _figure(4.1 * len(panels) + 1.0, 4.2, columns=len(panels))
    for panel, (name, values) in zip(axes, panels.items(), strict=True):
        picture = panel.imshow(
            values.reshape(resolution, resolution).numpy(),
            origin="lower", extent=limits, vmin=0, vmax=top, cmap="magma", interpolation="nearest",
        )  # fmt: skip
        panel.set(xlabel="$x_1$", title=name, aspect="equal")
    axes[0].set(ylabel="$x_2$", title=f"model, integral {panels['model'].nansum().item() * cell:.3f}")
    figure.colorbar(picture, ax=axes, label="density (1 / unit²)", fraction=0.05, pad=0.02, extend="max")
    return figure


def _window(model: ScoreModel) -> tuple[float, float, float, float]:
    if model.moments is None:
        raise ValueError("the model does not know its data's moments: pass limits=(left, right, bottom, top)")
    mean, spread = model.moments
    if mean.numel() != 2:
        raise ValueError(f"a heat map needs data in the plane, events of shape (2,), not {tuple(mean.shape)}")
    variance = spread.diagonal() if spread.dim() == 2 else spread.flatten()
    low, high = mean.flatten() - 2.5 * variance.sqrt(), mean.flatten() + 2.5 * variance.sqrt()
    return low[0].item(), high[0].item(), low[1].item(), high[1].item()


def _cells(limits: tuple[float, float, float, float], resolution: int) -> tuple[Tensor, float]:
    """Centres (resolution^2, 2) of the cells, row by row from the bottom, and their area."""
    left, right, bottom, top = limits
    middle = (torch.arange(resolution, dtype=torch.float64) + 0.5) / resolution
    y, x = torch.meshgrid(bottom + (top - bottom) * middle, left + (right - left) * middle, indexing="ij")
    return torch.stack((x, y), -1).reshape(-1, 2), (right - left) * (top - bottom) / resolution**2


def _figure(width: float, height: float, columns: int = 0) -> tuple[Figure, Any]:
    """A figure in inches with one axes, or an array of ``columns``; no state of pyplot is touched."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install fastlik[plot]") from error
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    axes = figure.subplots(1, columns or 1, squeeze=False)[0]
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
    return figure, axes if columns else axes[0]
