"""Figures: what their axes hold, and that they are written."""

import math
import sys

import pytest
import torch

pytest.importorskip("matplotlib")

import fastlik
from fastlik import plot
from fastlik.testing import GaussianMixture

HISTORY = [{"step": 20 * n, "loss": 3 + 1 / n} for n in range(1, 30)]


def write(figure, tmp_path):
    path = tmp_path / "figure.png"
    figure.savefig(path)
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_training_curve(tmp_path):
    figure = plot.training_curve(HISTORY)
    [axes] = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "weighted denoising loss")
    records, mean = axes.lines
    assert records.get_xydata().tolist() == [[r["step"], r["loss"]] for r in HISTORY]
    assert 3 < mean.get_ydata()[-1] < mean.get_ydata()[0]
    write(figure, tmp_path)


def test_training_curve_of_one_record(tmp_path):
    figure = plot.training_curve(HISTORY[:1])
    assert figure.axes[0].lines[1].get_ydata().tolist() == [4.0]
    write(figure, tmp_path)


def test_training_curve_needs_records():
    with pytest.raises(ValueError, match="every 20 steps"):
        plot.training_curve([])


@pytest.mark.parametrize("channels", [1, 3])
def test_image_grid(channels, tmp_path):
    images = torch.linspace(-1, 1, 5 * channels * 16).reshape(5, channels, 4, 4)
    figure = plot.image_grid(images, (-1, 1))
    [axes] = figure.axes
    [picture] = axes.images
    shown = torch.as_tensor(picture.get_array())
    assert shown.shape[:2] == (2 * 5 + 1, 3 * 5 + 1)
    second = shown[1:5, 6:10].reshape(4, 4, -1).permute(2, 0, 1)
    assert torch.allclose(second.float(), (images[1] + 1) / 2)
    write(figure, tmp_path)


def test_image_grid_of_levels():
    [axes] = plot.image_grid(torch.arange(17).reshape(1, 1, 1, 17)).axes
    assert axes.images[0].get_array()[1, 1:-1].tolist() == pytest.approx([n / 16 for n in range(17)])


@pytest.mark.parametrize("shape", [(0, 1, 4, 4), (2, 4, 4), (2, 2, 4, 4)])
def test_image_grid_takes_images(shape):
    with pytest.raises(ValueError, match="N, 1 or 3, H, W"):
        plot.image_grid(torch.zeros(shape))


@pytest.mark.parametrize("d", [1, 2, 3])
def test_scatter(d, tmp_path):
    figure = plot.scatter(torch.randn(50, d))
    write(figure, tmp_path)
    assert figure.axes[0].get_xlabel() == ("x" if d == 1 else "$x_1$")


def test_nll_histogram(tmp_path):
    model = GaussianMixture.ring().model(fastlik.VP(), moments=True)
    result = fastlik.ode_nll(model, GaussianMixture.ring().sample(40), tolerance=0.1)
    figure = plot.nll_histogram(result)
    [axes] = figure.axes
    assert "bits/dim" in axes.get_xlabel() and axes.get_ylabel() == "rows of 40"
    assert sum(bar.get_height() for bar in axes.patches[:-1]) == 40  # the last one is the error band
    mean, [label] = result.mean(), axes.get_legend().get_texts()
    assert label.get_text() == f"mean {mean.bits_per_dim:.3f} ± {mean.bits_per_dim_stderr:.3f} bits/dim"
    write(figure, tmp_path)


def test_nll_histogram_leaves_failed_rows_out():
    mean = {"bits_per_dim": 2.0, "bits_per_dim_stderr": None}
    [axes] = plot.nll_histogram({"bits_per_dim": [2.0, None], "mean": mean}).axes
    assert axes.get_ylabel() == "rows of 1"
    with pytest.raises(ValueError, match="no row converged"):
        plot.nll_histogram({"bits_per_dim": [None], "mean": mean})


def test_density_heatmap_of_an_exact_model_is_the_truth(tmp_path):
    mixture = GaussianMixture.ring(std=0.3)
    model = mixture.model(fastlik.VP(), moments=True)
    figure = plot.density_heatmap(model, limits=(-2.5, 2.5, -2, 2), truth=mixture.log_density, resolution=24)
    left, right, colours = figure.axes
    ours, truth = left.images[0], right.images[0]
    assert torch.allclose(torch.as_tensor(ours.get_array()), torch.as_tensor(truth.get_array()), atol=2e-3)
    assert ours.get_clim() == truth.get_clim()
    assert ours.get_extent() == [-2.5, 2.5, -2, 2]
    assert left.get_title() == "model, integral 1.000" and right.get_title() == "truth"
    assert colours.get_ylabel() == "density (1 / unit²)"
    # the mode at (1, 0) is to the right of the middle
    row, column = divmod(int(ours.get_array().argmax()), 24)
    x, y = -2.5 + (column + 0.5) * 5 / 24, -2 + (row + 0.5) * 4 / 24
    assert min(math.hypot(x - m[0], y - m[1]) for m in mixture.means.tolist()) < 0.3
    write(figure, tmp_path)


def test_density_heatmap_finds_its_window():
    mixture = GaussianMixture([1.0], [[3.0, -1.0]], [[[4.0, 0.0], [0.0, 1.0]]])
    figure = plot.density_heatmap(mixture.model(fastlik.VP(), moments=True), resolution=4)
    assert figure.axes[0].images[0].get_extent() == pytest.approx([-2, 8, -3.5, 1.5])
    with pytest.raises(ValueError, match="limits="):
        plot.density_heatmap(mixture.model(fastlik.VP()))
    with pytest.raises(ValueError, match="in the plane"):
        plot.density_heatmap(GaussianMixture.random(2, 3).model(fastlik.VP(), moments=True))


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install fastlik\[plot\]"):
        plot.training_curve(HISTORY)
