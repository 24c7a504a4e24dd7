"""Train, evaluate, sample and draw: files, printed text and JSON."""

import json

import numpy as np
import pytest

import fastlik
from fastlik.cli import sources


def test_a_run_is_what_the_api_makes_of_the_same_arguments(ring_run):
    import torch

    torch.manual_seed(0)
    net = fastlik.nn.MLP(2, width=8, depth=1)
    run = fastlik.train(
        sources.load("ring"), net, steps=20, batch_size=16, device="cpu", seed=0, progress=False
    )
    [line] = (ring_run / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["loss"] == run.history[0]["loss"]


def test_second_order_starts_from_a_first_order_run(cli, ring_run, tmp_path):
    out = tmp_path / "second"
    result = cli(
        "train", "ring", "--order", "2", "--init", ring_run, "--steps", "20", "--batch-size", "16",
        "--set", "order_weights=[1.0, 0.0]", "--device", "cpu", "--out", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    first = fastlik.load(ring_run)
    run = fastlik.train(
        sources.load("ring"), first, order=2, order_weights=(1.0, 0.0), steps=20, batch_size=16,
        device="cpu", progress=False,
    )  # fmt: skip
    [line] = (out / "metrics.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record["loss_2"] == run.history[0]["loss_2"]
    assert "order = 2" in (out / "train.toml").read_text()
    missing = cli("train", "ring", "--order", "2", "--init", tmp_path / "none", "--out", tmp_path / "x")
    assert missing.exit_code != 0 and "no model at" in missing.stderr


def test_nll_prints_the_mean_and_writes_all_rows(cli, ring_run, tmp_path):
    out = tmp_path / "new" / "nll.json"
    result = cli("nll", ring_run, "ring", "--limit", "30", "--tolerance", "1e-2", "--out", out)
    assert result.exit_code == 0, result.stderr
    saved = json.loads(out.read_text())
    model, x = fastlik.load(ring_run), sources.load("ring", "test")[:30]
    expected = fastlik.ode_nll(model, x, tolerance=1e-2)
    assert saved["nats"] == expected.nats.tolist()
    mean = expected.mean()
    assert f"{mean.bits_per_dim:.4f} +- {mean.bits_per_dim_stderr:.4f}" in result.stdout
    assert f"{mean.nats:.4f} +- {mean.nats_stderr:.4f}" in result.stdout


def test_nll_json_is_the_whole_result_and_alone_on_stdout(cli, ring_run):
    arguments = ["nll", ring_run / "model.safetensors", "ring", "--limit", "5", "--json", "--seed", "3"]
    result = cli(
        *arguments, "--set", "divergence=hutchinson", "--probes", "2", "--method", "rk4", "--tolerance", "0.1"
    )
    assert result.exit_code == 0, result.stderr
    printed = json.loads(result.stdout)
    assert len(printed["nats"]) == 5 and printed["mean"]["rows"] == 5
    protocol = printed["protocol"]
    assert (protocol["divergence"], protocol["probes"], protocol["seed"]) == ("hutchinson", 2, 3)
    assert protocol["method"] == "rk4"


def test_rows_that_do_not_converge_end_with_3(cli, ring_run):
    result = cli("nll", ring_run, "ring", "--limit", "4", "--set", "max_steps=2", "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["nats"] == [None] * 4
    assert "fastlik: warning: 4 of 4 rows have no likelihood" in result.stderr


def test_what_an_interrupted_evaluation_has_is_kept(cli, ring_run, tmp_path, monkeypatch):
    partial = fastlik.ode_nll(fastlik.load(ring_run), sources.load("ring")[:3], tolerance=0.1)

    def interrupted(model, x, **options):
        raise fastlik.EvaluationInterrupted(partial, len(x))

    monkeypatch.setattr(fastlik, "ode_nll", interrupted)
    monkeypatch.setattr("fastlik.cli.nll.arguments", lambda *_: {})
    result = cli("nll", ring_run, "ring", "--limit", "9", "--out", tmp_path / "nll.json")
    assert result.exit_code == 130
    assert "3 of 9 rows are finished and kept in" in result.stderr
    assert len(json.loads((tmp_path / "nll.json").read_text())["nats"]) == 3


def test_discrete_data_are_dequantised_as_in_training(cli, image_run):
    result = cli(
        "nll", image_run / "run", image_run / "test.npy", "--limit", "3", "--tolerance", "0.1", "--json"
    )
    assert result.exit_code == 0, result.stderr
    protocol = json.loads(result.stdout)["protocol"]
    assert (protocol["dequantize"], protocol["bins"]) == ("uniform", 5)
    result = cli(
        "nll", image_run / "run", image_run / "test.npy", "--limit", "3", "--tolerance", "0.1",
        "--dequantize", "truncated_normal", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["protocol"]["dequantize"] == "truncated_normal"


def test_samples_of_a_discrete_model_are_levels(cli, image_run, tmp_path):
    out = tmp_path / "x.npz"
    result = cli("sample", image_run / "run", "-n", "3", "--method", "sde", "--steps", "8", "--out", out)
    assert result.exit_code == 0, result.stderr
    samples = np.load(out)["samples"]
    assert samples.dtype == np.int64 and samples.shape == (3, 1, 4, 4)
    assert 0 <= samples.min() <= samples.max() <= 4
    again = cli("nll", image_run / "run", out, "--tolerance", "0.1")
    assert again.exit_code == 0, again.stderr


def test_sample_writes_into_the_run_and_its_seed_counts(cli, ring_run):
    first = cli("sample", ring_run, "-n", "4", "--tolerance", "0.1", "--json")
    assert json.loads(first.stdout)["shape"] == [4, 2]
    path = ring_run / "samples.npz"
    assert json.loads(first.stdout)["samples"] == str(path)
    before = np.load(path)["samples"]
    assert cli("sample", ring_run, "-n", "4", "--tolerance", "0.1", "--seed", "1").exit_code == 0
    assert before.dtype == np.float32 and not np.allclose(before, np.load(path)["samples"])


def test_plots(cli, image_run, tmp_path):
    pytest.importorskip("matplotlib")
    run = image_run / "run"
    evaluated = cli("nll", run, image_run / "test.npy", "--out", run / "nll.json", "--tolerance", "0.1")
    assert evaluated.exit_code == 0, evaluated.stderr
    drawn = cli("plot", run, "-n", "2", "--json")
    assert drawn.exit_code == 0, drawn.stderr
    files = json.loads(drawn.stdout)["files"]
    assert files == [str(run / f"{name}.png") for name in ("training_curve", "samples", "nll_histogram")]
    png = b"\x89PNG"
    assert all(open(file, "rb").read(4) == png for file in files)
    assert cli("sample", run, "-n", "2", "--tolerance", "0.1", "--out", tmp_path / "grid.png").exit_code == 0
    assert (tmp_path / "grid.png").read_bytes()[:4] == png


def test_the_density_in_the_plane_stands_beside_the_truth(cli, ring_run, monkeypatch):
    plot = pytest.importorskip("fastlik.plot")
    seen = {}

    def heatmap(model, truth):
        seen["truth"] = truth
        return plot.scatter(sources.load("ring")[:9])

    monkeypatch.setattr(plot, "density_heatmap", heatmap)
    result = cli("plot", ring_run)
    assert result.exit_code == 0, result.stderr
    assert (ring_run / "density.png").exists()
    x = sources.load("ring", "test")[:5]
    assert seen["truth"](x).shape == (5,)
