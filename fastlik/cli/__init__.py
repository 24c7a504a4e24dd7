"""The command line: commands parse, call the API and print."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of ``fastlik``."""
    try:
        from .app import app
    except ModuleNotFoundError as error:
        if error.name != "typer":
            raise
        sys.exit("fastlik: the command line needs typer: pip install fastlik[cli]")
    app(prog_name="fastlik")
