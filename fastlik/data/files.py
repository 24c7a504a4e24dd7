"""Arrays from files that a user has: .npy, .npz and .csv."""

from __future__ import annotations

import csv
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def load_array(path: str | Path) -> Tensor:
    """The numbers of a .npy, .npz or .csv file as a tensor of the file's dtype (csv: float64).

    A .npz file holds one array, or the array is named as ``path.npz:key``.  A .csv file holds one
    sample a row, numbers only, with or without a header line, and gives shape (rows, columns).

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, a damaged one, an array of objects (which would need
            pickle), an unknown or missing key, a csv with ragged rows or with cells that are no
            numbers.
    """
    path, key = _split_key(str(path))
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    kind = path.suffix.lower()
    if kind == ".csv":
        return torch.as_tensor(_read_csv(path))
    if kind not in (".npy", ".npz"):
        raise ValueError(f"{path}: the kind of file is read from its name: .npy, .npz or .csv")
    return _as_tensor(_read_numpy(path, key), path)


def _split_key(text: str) -> tuple[Path, str | None]:
    name, separator, key = text.rpartition(":")
    if separator and name.lower().endswith(".npz"):
        return Path(name), key
    return Path(text), None


def _read_numpy(path: Path, key: str | None) -> np.ndarray:
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = {"": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        if "allow_pickle" in str(error):
            raise ValueError(
                f"{path} holds pickled Python objects, which are never loaded here; save it as an "
                f"array of numbers"
            ) from error
        raise ValueError(f"{path} cannot be read as a numpy file: {error}") from error
    return arrays[_choose(path, list(arrays), key)]


def _choose(path: Path, keys: list[str], key: str | None) -> str:
    if key is None and len(keys) == 1:
        return keys[0]
    if key in keys:
        return key
    problem = "holds several arrays" if key is None else f"has no array {key!r}"
    raise ValueError(f"{path} {problem}; name one as {path}:KEY, where KEY is one of {keys}")


def _as_tensor(array: np.ndarray, path: Path) -> Tensor:
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{path} holds {array.dtype}, not real numbers")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)  # torch computes with no unsigned type but uint8
    return torch.as_tensor(np.ascontiguousarray(array, array.dtype.newbyteorder("=")))


def _read_csv(path: Path) -> np.ndarray:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [(number, row) for number, row in enumerate(csv.reader(file), 1) if row]
    if rows and not all(map(_is_number, rows[0][1])):
        rows = rows[1:]
    if not rows:
        raise ValueError(f"{path} holds no numbers")
    width = len(rows[0][1])
    for number, row in rows:
        if len(row) != width:
            raise ValueError(f"{path}, line {number}: {len(row)} cells where the first row has {width}")
        for cell in row:
            if not _is_number(cell):
                raise ValueError(f"{path}, line {number}: {cell!r} is not a number")
    return np.array([[float(cell) for cell in row] for _, row in rows])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
