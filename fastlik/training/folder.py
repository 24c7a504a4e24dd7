"""The run folder: its configuration, and what it takes to continue in it."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from torch import Tensor

from ..model import ScoreModel
from .checkpoint import (
    CONFIG,
    MODEL,
    STATE,
    read_config,
    read_tensors,
    safetensors,
    save_model,
    write_tensors,
    write_text,
)

METRICS = "metrics.jsonl"

_MAY_DIFFER = "run"  # the section of the configuration that a resumed run may change


class RunFolder:
    """config.json, metrics.jsonl, model.safetensors (for use), state.safetensors (for resuming).

    Raises:
        OSError: the folder cannot be made or written to; found out before any training.
        ImportError: safetensors is not installed.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        safetensors()
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise OSError(
                f"cannot write to out={str(self.path)!r} ({error.strerror}): choose a folder that "
                f"can be created and written to"
            ) from error
        self.metrics = self.path / METRICS
        self.model = self.path / MODEL
        self.state = self.path / STATE

    def open(self, config: dict, resume: str | bool) -> tuple[dict, dict] | None:
        """The saved state (tensors, content) to continue from, or None for a new run.

        Raises:
            FileExistsError: ``resume=False`` and the folder holds a run.
            ValueError: the folder's run has another configuration (each difference is listed), or
                files of the folder are damaged or another program's.
        """
        saved = None
        if (self.path / CONFIG).exists():
            if resume is False:
                raise FileExistsError(
                    f"{self.path} already holds a run: choose another folder, remove this one, or "
                    f'continue it with resume="auto"'
                )
            self._compare(read_config(self.path), config)
            if self.state.exists():
                saved = read_tensors(self.state, "state")
        else:
            files = (self.model, self.state, self.metrics)
            present = [file.name for file in files if file.exists()]
            if present:
                raise ValueError(
                    f"{self.path} holds {', '.join(present)} but no {CONFIG}: it is no run that "
                    f"can be continued; choose another folder"
                )
        return saved

    def record(self, config: dict) -> None:
        """Write config.json."""
        write_text(self.path / CONFIG, json.dumps(config, indent=2) + "\n")

    def save(self, state: dict[str, Tensor], model: ScoreModel, step: int, window: list[list[float]]) -> None:
        """Write the checkpoint after ``step`` steps: the state to resume from, the model to use.

        ``window`` holds the metrics that are not yet recorded.
        """
        write_tensors(self.state, "state", state, step=step, window=window)
        save_model(self.model, model, step)

    def _compare(self, saved: dict, current: dict) -> None:
        # through JSON, as the saved one came
        saved, current = _flat(saved), _flat(json.loads(json.dumps(current)))
        differences = [
            f"{key}: {saved.get(key)!r} in the folder, {current.get(key)!r} now"
            for key in sorted(saved.keys() | current.keys())
            if saved.get(key) != current.get(key) and not key.startswith(_MAY_DIFFER + ".")
        ]
        if differences:
            raise ValueError(
                f"{self.path} holds a run with another configuration; choose another folder or "
                f"the same options:\n  " + "\n  ".join(differences)
            )


def _flat(config: dict, prefix: str = "") -> dict:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
