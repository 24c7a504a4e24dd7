"""Help: examples, and the values and defaults of the API."""

import inspect
import subprocess
import sys
from typing import get_args

import pytest

import fastlik
from fastlik.cli import nll, sample, train
from fastlik.likelihood.inputs import ODE_DEQUANTISERS
from fastlik.model import PREDICTIONS
from fastlik.objectives.time_sampling import TIME_SAMPLINGS
from fastlik.objectives.weighting import WEIGHTINGS
from fastlik.sampling import METHODS
from fastlik.schedule import named
from fastlik.solvers.tableau import TABLEAUS


@pytest.mark.parametrize("command", ["train", "nll", "sample", "plot", "doctor", "bench"])
def test_every_command_shows_examples(cli, command):
    result = cli(command, "--help")
    assert result.exit_code == 0
    examples = result.stdout.split("Examples:")[1]
    assert f"fastlik {command} " in examples
    assert "--json" in result.stdout and "--device" in result.stdout


def test_the_valid_values_are_those_of_the_api():
    assert get_args(train.Prediction) == PREDICTIONS
    assert get_args(train.Weighting) == WEIGHTINGS
    assert get_args(train.TimeSampling) == TIME_SAMPLINGS
    assert get_args(sample.Method) == METHODS
    assert set(get_args(nll.Method)) == {"auto", "adams", *TABLEAUS}
    assert (None, *get_args(nll.Dequantizer)) == ODE_DEQUANTISERS
    for name in get_args(train.Schedule):
        named(name)


def test_the_defaults_are_those_of_the_api():
    theirs = inspect.signature(fastlik.ode_nll).parameters
    for name, parameter in inspect.signature(nll.nll).parameters.items():
        if name in theirs:
            assert parameter.default == theirs[name].default, name


def test_version(cli):
    result = cli("--version")
    assert (result.exit_code, result.stdout) == (0, f"fastlik {fastlik.__version__}\n")


def test_without_typer_it_says_what_to_install():
    code = "import sys; sys.modules['typer'] = None; from fastlik.cli import main; main()"
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert outcome.returncode == 1
    assert outcome.stderr == "fastlik: the command line needs typer: pip install fastlik[cli]\n"
