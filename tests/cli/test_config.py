"""Configuration: precedence, types, and the record from which a run is made again."""

import json

import pytest
import typer

import fastlik
from fastlik.cli.config import arguments, merged, parse_settings, read_toml, to_toml


def test_settings_are_toml_and_strings_where_they_are_none():
    settings = [
        "lr=1e-3",
        "schedule=vp",
        "data_range=[0, 1]",
        "model.width = 64",
        "model.depth=2",
        "clip=none",
    ]
    assert parse_settings(settings) == {
        "lr": 1e-3, "schedule": "vp", "data_range": [0, 1], "clip": "none",
        "model": {"width": 64, "depth": 2},
    }  # fmt: skip


@pytest.mark.parametrize("setting", ["lr", "=3", "a b=3"])
def test_what_is_no_setting_is_wrong_usage(setting):
    with pytest.raises(typer.BadParameter, match="is not KEY=VALUE"):
        parse_settings([setting])


def test_later_tables_win_key_by_key():
    assert merged({"a": 1, "m": {"x": 1, "y": 1}}, {"m": {"y": 2}}, {"a": 3}) == {
        "a": 3,
        "m": {"x": 1, "y": 2},
    }


def test_arguments_have_the_types_of_the_signature():
    given = {"lr": 1, "clip": "none", "data_range": [0, 1], "compile": True, "steps": 5}
    converted = arguments(fastlik.train, given)
    assert converted == {"lr": 1.0, "clip": None, "data_range": (0, 1), "compile": True, "steps": 5}
    assert type(converted["lr"]) is float
    assert arguments(fastlik.nn.UNet, {"multipliers": [1, 2, 2]}) == {"multipliers": (1, 2, 2)}


@pytest.mark.parametrize(
    "key, value, expected",
    [("steps", 1.5, "int"), ("steps", True, "int"), ("lr", "fast", "float"), ("clip", [1], "float or none")],
)
def test_a_value_of_another_type_is_wrong_usage(key, value, expected):
    with pytest.raises(typer.BadParameter, match=f"{key} = .*expected {expected}$"):
        arguments(fastlik.train, {key: value})


def test_toml_is_read_as_it_was_written(tmp_path):
    table = {
        "data": 'a "b" \\ ü',
        "lr": 1e-05,
        "on": True,
        "clip": None,
        "range": [-1.0, 1.0],
        "model": {"width": 3},
    }
    path = tmp_path / "x.toml"
    path.write_text(to_toml(table), encoding="utf-8")
    assert read_toml(path) == {**table, "clip": "none"}


def test_options_come_before_the_file_and_the_file_before_the_defaults(cli, small, tmp_path):
    config = tmp_path / "config.toml"
    config.write_text('data = "ring"\nlr = 0.5\nsteps = 7\nema = 0.5\n[model]\nactivation = "tanh"\n')
    run = tmp_path / "run"
    result = cli(
        "train", "--config", config, "--steps", "3", "--set", "ema=0.25", *small, "--out", run, "--json"
    )
    assert result.exit_code == 0, result.stderr
    saved = json.loads((run / "config.json").read_text())
    training = saved["training"]
    assert (training["lr"], training["ema"], training["warmup"]) == (0.5, 0.25, 200)
    assert saved["run"]["steps"] == 3
    network = saved["model"]["network"]
    assert (network["activation"], network["width"]) == ("tanh", 8)
    assert json.loads(result.stdout)["config"]["ema"] == 0.25


def test_the_model_s_table_names_its_kind(cli, tmp_path):
    table = (
        "--set",
        "model.name=dit",
        "--set",
        "model.width=8",
        "--set",
        "model.depth=1",
        "--set",
        "steps=1",
    )
    result = cli("train", "digits", *table, "--out", tmp_path / "run", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    network = json.loads((tmp_path / "run" / "config.json").read_text())["model"]["network"]
    assert (network["name"], network["width"]) == ("DiT", 8)
    wrong = cli("train", "ring", "--set", "model.name=dit", "--out", tmp_path / "other")
    assert wrong.exit_code != 0 and "the valid values are 'mlp'" in wrong.stderr


def test_the_record_of_a_run_makes_the_same_run(cli, ring_run, tmp_path):
    record = read_toml(ring_run / "train.toml")
    assert (record["data"], record["steps"], record["model"]) == ("ring", 20, {"width": 8, "depth": 1})
    again = tmp_path / "again"
    result = cli("train", "--config", ring_run / "train.toml", "--out", again, "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert (again / "train.toml").read_text() == (ring_run / "train.toml").read_text()
    first, second = (json.loads((run / "metrics.jsonl").read_text()) for run in (ring_run, again))
    assert first["loss"] == second["loss"]


def test_a_schedule_with_its_arguments(cli, small, tmp_path):
    schedule = ["--set", "schedule.name=ve", "--set", "schedule.sigma_max=9"]
    result = cli("train", "swissroll", "--steps", "1", *schedule, *small, "--out", tmp_path)
    assert result.exit_code == 0, result.stderr
    assert fastlik.load(tmp_path).schedule == fastlik.VE(sigma_max=9)
