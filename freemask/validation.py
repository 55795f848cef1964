"""Data from outside against a dataclass: what is wrong is told with the field, its range and its nearest neighbour."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Collection
from dataclasses import fields
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from .errors import SettingError

__all__ = ["STRICT", "read_shipped", "refuse_unknown", "unknown", "validated"]

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


def unknown(kind: str, given: str, known: Collection[str]) -> str:
    """That there is no such thing, with the nearest name that there is."""
    near = difflib.get_close_matches(str(given), known, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"There is no {kind} {_short(given)}{hint} Known: {', '.join(known)}."


def _short(given: Any) -> str:
    """What was given as a message quotes it."""
    quoted = reprlib.Repr()
    quoted.maxstring = quoted.maxother = quoted.maxlong = 80
    return quoted.repr(given)


def refuse_unknown(kind: str, given: str, known: Collection[str]) -> None:
    """Raises SettingError where there is no such thing."""
    if not isinstance(given, str) or given not in known:  # a program may send anything
        raise SettingError(unknown(kind, given, known))


def read_shipped(path: Path) -> dict[str, Any]:
    """The values of a YAML file that ships with the code; raises SettingError where it is damaged or gone."""
    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, yaml.YAMLError):
        raise SettingError(f"{path} is damaged or gone: take it anew from FreeMask's repository.") from None


def validated(cls: type, values: dict[str, Any], where: str) -> Any:
    """An instance of a dataclass, or SettingError naming the field, its range and what was given."""
    try:
        return _adapter(cls).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "?"
        if first["type"] == "unexpected_keyword_argument":
            message = unknown("setting", name, [f.name for f in fields(cls)])
        elif first["type"] == "missing":
            message = f"{name.replace('_', ' ')} is missing: give it a value."
        else:
            message = f"{name.replace('_', ' ')} is {_short(first.get('input'))}: {first['msg'].lower()}."
            limits = _limits(cls, name)
            message += f" Allowed: {limits}." if limits else ""
        raise SettingError(f"{where}{message}") from None


@cache
def _adapter(cls: type) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


@lru_cache(maxsize=256)
def _limits(cls: type, name: str) -> str:
    """The range or the choices of a field in words, "" where it has none."""
    schema = _adapter(cls).json_schema()["properties"].get(name, {})
    options = [schema, *schema.get("anyOf", [])]
    for option in options:
        option = option.get("prefixItems", [option])[0]
        if "enum" in option:
            return " or ".join(map(str, option["enum"]))
        low = option.get("minimum", option.get("exclusiveMinimum"))
        high = option.get("maximum", option.get("exclusiveMaximum"))
        if low is not None and high is not None:
            return f"{low} to {high}" + (", ends excluded" if "exclusiveMinimum" in option else "")
        if low is not None:
            return f"{low} or more"
    return ""
