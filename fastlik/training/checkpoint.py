"""Checkpoints: safetensors files, written whole or not at all, and the model made from one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from ..likelihood.dequantise import Quantisation
from ..model import ScoreModel
from .network import rebuild_model

MODEL, STATE, CONFIG = "model.safetensors", "state.safetensors", "config.json"


def safetensors() -> ModuleType:
    """The safetensors package; ImportError with the remedy where it is missing."""
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise ImportError("checkpoints are safetensors files: pip install fastlik[train]") from error
    return safetensors


def write_tensors(path: Path, kind: str, tensors: dict[str, Tensor], **content: object) -> None:
    """Replace ``path`` by a file of these tensors and JSON-able content, in one atomic step."""
    # clones, because safetensors refuses tensors that share memory
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    temporary = path.with_name(path.name + ".tmp")
    metadata = {"fastlik": kind, "content": json.dumps(content)}
    temporary.touch()
    mode = temporary.stat().st_mode  # the user's default; safetensors' files are for their owner alone
    safetensors().torch.save_file(tensors, temporary, metadata)
    temporary.chmod(mode)
    os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by this text in one atomic step."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def read_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict]:
    """What :func:`write_tensors` wrote: tensors on the CPU, and the content.

    Raises ValueError for a truncated file and for one that is not a fastlik ``kind``.
    """
    library = safetensors()
    try:
        with library.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except (library.SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is truncated or not a safetensors file ({error}); restore it from a copy, or "
            f"remove the run folder and train again"
        ) from error
    if metadata.get("fastlik") != kind:
        raise ValueError(
            f"{path} is a safetensors file, but not a {kind} written by fastlik.train; load "
            f"another library's weights into its network and use fastlik.wrap"
        )
    return tensors, json.loads(metadata["content"])


def read_config(folder: Path) -> dict:
    """config.json of a run folder; ValueError where it is damaged or another program's."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); restore it from a copy, or choose another folder"
        ) from error
    if not isinstance(config, dict) or "fastlik" not in config:
        raise ValueError(f"{path} was not written by fastlik.train; choose another folder for this run")
    return config


def fill(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load weights; ValueError naming the file where they do not fit."""
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"the weights in {path} do not fit the network: {error}") from error


def save_model(path: Path, model: ScoreModel, step: int) -> None:
    """Write the weights and the data moments of a model after ``step`` steps."""
    mean, spread = model.moments
    tensors = {**model.state_dict(), "data_mean": mean, "data_spread": spread}
    write_tensors(path, "model", tensors, step=step)


def load(path: str | os.PathLike, net: nn.Module | None = None) -> ScoreModel:
    """The model of a training run, in eval mode, without gradients, on the CPU.

    Args:
        path: a run folder, or the model.safetensors in one.
        net: the network where it is none of fastlik.nn (a module of the same architecture), or the
            whole ScoreModel where its conventions are functions; the weights are loaded into it.

    Returns:
        A :class:`fastlik.ScoreModel` with the data's ``moments`` and ``quantisation``.

    Raises:
        FileNotFoundError: there is no such run, or it has no checkpoint yet.
        ValueError: a truncated or foreign file, a ``net`` that is missing or does not fit.
        ImportError: safetensors is not installed.
    """
    path = Path(path)
    file = path / MODEL if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(
            f"there is no model at {file}: give a run folder of fastlik.train(..., out=folder)"
        )
    tensors, _ = read_tensors(file, "model")
    config = read_config(file.parent)
    model = rebuild_model(config["model"], net)
    moments = tensors.pop("data_mean"), tensors.pop("data_spread")
    fill(model, tensors, file)
    model.set_moments(moments)
    quantisation = config["data"]["quantisation"]
    model.quantisation = quantisation and Quantisation(**quantisation)
    model.event_shape = tuple(config["data"]["shape"][1:])
    return model.eval().requires_grad_(False)


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's per-parameter state as one flat dictionary."""
    state = optimiser.state_dict()["state"]
    return {f"{index}.{key}": value for index, s in state.items() for key, value in s.items()}


def fill_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Inverse of :func:`optimiser_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})
