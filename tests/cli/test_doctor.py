"""The report on this machine."""

import json

import pytest

import fastlik


def test_all_is_well_here(cli):
    result = cli("doctor", "--json", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["ok"] is True
    assert report["versions"]["fastlik"] == fastlik.__version__
    assert report["backends"].keys() == {"torch", "native", "triton"}
    for facts in report["backends"].values():
        assert facts["available"] or facts["why"]
    for name, test in report["self_test"].items():
        assert report["backends"][name]["available"]
        assert test["passed"] and test["error_nats"] < 1e-5
    assert report["self_test"]["torch"]["passed"]


def test_the_text_names_remedies(cli, monkeypatch):
    monkeypatch.setattr("fastlik.cli.doctor._version", lambda package: None)
    backends = fastlik.backends()
    backends["native"] = {"available": False, "why": "no C++ compiler found"}
    monkeypatch.setattr(fastlik, "backends", lambda: backends)
    result = cli("doctor", "--device", "cpu")
    assert result.exit_code == 0, result.stderr  # a module that was never built is no fault
    assert "missing: pip install fastlik[plot]" in result.stdout
    assert "no: no C++ compiler found" in result.stdout
    assert "nats from the closed form" in result.stdout


@pytest.mark.parametrize("fault", ["wrong number", "error", "module that does not load"])
def test_what_is_broken_ends_with_1(cli, monkeypatch, fault):
    backends = fastlik.backends()
    if fault == "module that does not load":
        backends["native"] = {"available": False, "why": "undefined symbol", "compiler": "g++ 12"}
    right = fastlik.ode_nll

    def wrong(*arguments, **options):
        if fault == "error":
            raise RuntimeError("illegal instruction")
        result = right(*arguments, **options)
        if fault == "wrong number":
            result.nats[3] += 0.1
        return result

    monkeypatch.setattr(fastlik, "backends", lambda: backends)
    monkeypatch.setattr(fastlik, "ode_nll", wrong)
    result = cli("doctor", "--json", "--device", "cpu")
    assert result.exit_code == 1
    assert "fastlik: broken: " in result.stderr
    assert json.loads(result.stdout)["ok"] is False
