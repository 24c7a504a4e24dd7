"""Configuration from TOML files and ``--set``, checked against the signature of what it configures."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import typer

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

Table = dict[str, Any]

_PLAIN = (str, int, float, bool, NoneType, tuple, Sequence)


def read_toml(path: Path) -> Table:
    """The contents of a TOML file; ValueError naming the line where it is none."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no configuration file {path}")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no TOML file: {error}") from error


def parse_settings(settings: Iterable[str]) -> Table:
    """["lr=1e-3", "model.width=64"] -> {"lr": 1e-3, "model": {"width": 64}}.

    Values are TOML; what is none (``vp``) is a string.
    """
    table: Table = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise typer.BadParameter(f"{setting!r} is not KEY=VALUE", param_hint="--set")
        for value in (text, json.dumps(text)):
            try:
                table = merged(table, tomllib.loads(f"{key} = {value}"))
                break
            except tomllib.TOMLDecodeError as error:
                problem = error
        else:
            raise typer.BadParameter(f"{setting!r} is not KEY=VALUE: {problem}", param_hint="--set")
    return table


def merged(*tables: Mapping[str, Any]) -> Table:
    """One table; later ones win, key by key within nested tables."""
    result: Table = {}
    for table in tables:
        for key, value in table.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merged(result[key], value) if both else value
    return result


def arguments(function: Callable, table: Mapping[str, Any], hidden: Collection[str] = ()) -> Table:
    """``table`` as keyword arguments of ``function``, of the types in its signature.

    Args:
        hidden: parameters that text cannot give; unknown here.

    Raises:
        typer.BadParameter: an unknown key (the valid ones are listed), or a value of another type.
    """
    valid = [name for name in inspect.signature(function).parameters if name not in hidden]
    hints = get_type_hints(function.__init__ if inspect.isclass(function) else function)
    for key in table:
        if key not in valid:
            close = get_close_matches(key, valid, 1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise typer.BadParameter(f"unknown key {key!r}; {hint}The valid ones: {', '.join(valid)}")
    return {key: _convert(key, value, hints[key]) for key, value in table.items()}


def _convert(key: str, value: Any, hint: Any) -> Any:
    kinds = _kinds(hint)
    if isinstance(value, str) and value.lower() == "none" and NoneType in kinds:
        return None
    if type(value) is int and int not in kinds and float in kinds:
        return float(value)
    if isinstance(value, list) and tuple in kinds:
        return tuple(value)
    if type(value) in kinds:
        return value
    names = ["none" if kind is NoneType else kind.__name__ for kind in kinds]
    raise typer.BadParameter(f"{key} = {value!r}: expected {' or '.join(names)}")


def _kinds(hint: Any) -> list[type]:
    """The plain types that a hint admits: ``tuple[int, ...] | None`` -> [tuple, NoneType]."""
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = [get_origin(member) or member for member in members]
    return [tuple if kind is Sequence else kind for kind in kinds if kind in _PLAIN]


def to_toml(table: Mapping[str, Any]) -> str:
    """TOML text of plain values and one level of tables; None becomes "none", which is read as None."""
    plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
    lines = [f"{key} = {_literal(value)}" for key, value in plain.items()]
    for key in table.keys() - plain.keys():
        lines += ["", f"[{key}]", *(f"{name} = {_literal(value)}" for name, value in table[key].items())]
    return "\n".join(lines) + "\n"


def _literal(value: Any) -> str:
    # strings, numbers, booleans and lists are written in JSON as in TOML
    return json.dumps("none" if value is None else value)
