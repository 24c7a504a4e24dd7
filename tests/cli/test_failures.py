"""What goes wrong: an exit code and a sentence, never a traceback."""

import json

import numpy as np
import pytest


def assert_fails(result, code, *words):
    assert result.exit_code == code, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr
    if code == 1:
        [line] = [line for line in result.stderr.splitlines() if line.startswith("fastlik: ")]
        assert line == result.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "option, words",
    [
        (["--predicts", "epsilon"], ["--predicts", "'noise'", "'velocity'"]),
        (["--schedule", "linear"], ["--schedule", "'subvp'"]),
        (["--steps", "many"], ["--steps"]),
        (["--setp", "3"], ["--setp"]),
        (["--set", "stesp=3"], ["unknown key 'stesp'", "did you mean 'steps'?", "batch_size"]),
        (["--set", "model.widht=3"], ["unknown key 'widht'", "did you mean 'width'?"]),
        (["--set", "steps=soon"], ["steps = 'soon'", "expected int"]),
        (["--set", "steps"], ["'steps' is not KEY=VALUE"]),
    ],
)
def test_wrong_usage_of_train(cli, tmp_path, option, words):
    assert_fails(cli("train", "ring", "--out", tmp_path / "run", *option), 2, *words)
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").glob("*.safetensors"))


def test_train_without_data(cli, tmp_path):
    assert_fails(cli("train", "--out", tmp_path), 2, "DATA", "digits")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["rnig"], ["no data 'rnig'", "did you mean ring?", ".npz"]),
        (["missing.npy"], ["missing.npy"]),
        (["ring", "--set", "weighting=no"], ["weighting='no'", "'likelihood'"]),
        (["ring", "--set", "schedule.name=linear"], ["'linear'", "subvp"]),
        (["ring", "--steps", "0"], ["steps"]),
        (["ring", "--config", "missing.toml"], ["no configuration file missing.toml"]),
        (["ring", "--device", "tpu9"], ["--device tpu9"]),
        (["integers.npy"], ["bins="]),
    ],
)
def test_failures_of_train(cli, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    np.save("integers.npy", np.ones((3, 2), int))
    assert_fails(cli("train", *arguments, "--out", "run"), 1, *words)


def test_a_configuration_that_is_no_toml(cli, tmp_path):
    (tmp_path / "x.toml").write_text("lr = = 3")
    assert_fails(
        cli("train", "--config", tmp_path / "x.toml", "--out", tmp_path / "run"), 1, "x.toml", "line 1"
    )


def test_an_output_below_a_file(cli, ring_run, tmp_path):
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "run"
    assert_fails(cli("train", "ring", "--out", below), 1, "cannot write", str(below))
    nll = cli("nll", ring_run, "ring", "--limit", "1", "--out", below / "nll.json")
    assert_fails(nll, 1, "cannot write", str(below))
    assert_fails(cli("sample", ring_run, "--out", below / "x.npz"), 1, "cannot write", str(below))


def test_an_output_of_another_kind(cli, ring_run):
    assert_fails(cli("nll", ring_run, "ring", "--out", "nll.csv"), 2, "--out", "must end in .json or .npz")


def test_a_run_of_another_configuration_is_left_alone(cli, small, ring_run):
    before = (ring_run / "train.toml").read_text()
    result = cli("train", "ring", "--steps", "20", "--lr", "0.5", *small, "--out", ring_run)
    assert result.exit_code == 1
    assert "another configuration" in result.stderr and "training.lr" in result.stderr
    assert (ring_run / "train.toml").read_text() == before


@pytest.mark.parametrize("command", [["nll", "RUN", "ring"], ["sample", "RUN"], ["plot", "RUN"]])
def test_what_is_no_run(cli, ring_run, tmp_path, command):
    def run(path):
        return cli(*(path if word == "RUN" else word for word in command))

    assert_fails(run(tmp_path / "missing"), 1, "no model at")
    (tmp_path / "model.safetensors").write_bytes((ring_run / "model.safetensors").read_bytes()[:500])
    assert_fails(run(tmp_path), 1, "truncated or not a safetensors file")
    from safetensors.numpy import save_file

    save_file({"weight": np.ones(3)}, tmp_path / "model.safetensors")
    assert_fails(run(tmp_path), 1, "not a model written by fastlik.train")


def test_nll_of_data_that_do_not_fit(cli, ring_run, tmp_path):
    np.save(tmp_path / "x.npy", np.ones((2, 3)))
    np.save(tmp_path / "nan.npy", np.array([[0.0, 1.0], [np.nan, 0.0]]))
    assert_fails(
        cli("nll", ring_run, tmp_path / "x.npy"), 1, "rows of shape (3,)", "trained on rows of shape (2,)"
    )
    assert_fails(cli("nll", ring_run, tmp_path / "nan.npy"), 1, "row 1")
    assert_fails(cli("nll", ring_run, tmp_path / "x.npy", "--split", "test"), 1, "--split")
    assert_fails(cli("nll", ring_run, "ring", "--set", "x=3"), 2, "unknown key 'x'")


def test_a_bug_names_itself_and_shows_its_traceback_on_demand(cli, ring_run, monkeypatch):
    def broken(*_, **__):
        raise LookupError("inner")

    monkeypatch.setattr("fastlik.sample", broken)
    assert_fails(cli("sample", ring_run), 1, "LookupError: inner (FASTLIK_DEBUG=1 shows where)")
    monkeypatch.setenv("FASTLIK_DEBUG", "1")
    assert isinstance(cli("sample", ring_run).exception, LookupError)


def test_warnings_are_lines(cli, ring_run):
    result = cli("nll", ring_run, "ring", "--limit", "2", "--set", "max_steps=1", "--json")
    assert json.loads(result.stdout)["mean"]["rows"] == 0
    for line in result.stderr.splitlines():
        if "warning" in line:
            assert line.startswith("fastlik: warning: ")
