"""The commands, put together."""

from __future__ import annotations

from typing import Annotated

import typer

import fastlik

from .bench import bench
from .command import reported
from .doctor import doctor
from .nll import nll
from .plot import plot
from .sample import sample
from .train import train

app = typer.Typer(
    help="Train score, diffusion and flow models for likelihood, and evaluate their likelihood.",
    epilog="Exit codes: 0 good, 1 failure, 2 wrong usage, 3 some rows did not converge, 130 interrupted.  "
    "FASTLIK_DEBUG=1 shows tracebacks.",
    rich_markup_mode=None,  # plain text, which keeps the lines of the examples
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for function in (train, nll, sample, plot, doctor):
    app.command()(reported(function))
app.command(context_settings={"ignore_unknown_options": True})(reported(bench))


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"fastlik {fastlik.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass
