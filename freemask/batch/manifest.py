"""A manifest of edits: a table (CSV), lines of JSON (JSONL), a list (YAML), or FiVE-Bench's folder.

A row names a `clip`, seen from the manifest's folder, and any `Settings` by their names; what it leaves out is the
same as on the command line. A `name` of its own says what the edit's folder begins with.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ..errors import FreeMaskError, SettingError, first_line
from ..settings import Settings, infer_settings, read_size
from ..validation import unknown
from .five import is_five, read_five

__all__ = ["Edit", "grouped", "read_manifest", "shard"]

KINDS = ".csv", ".jsonl", ".yaml", ".yml"
OWN = "clip", "name"  # columns that are no settings
ALIKE = "source", "backbone", "steps", "solver", "frames", "start", "fps", "size"  # in what one inversion serves
DIGITS = 12  # of the digest in a folder's name


@dataclass(frozen=True)
class Edit:
    """One row: the clip, its settings, and the `folder` of its result, which is named by all that it depends on; or
    what is `wrong` with it, and then no settings. `group` is the same for edits that one inversion serves."""

    name: str
    clip: Path
    settings: Settings | None
    folder: str
    group: str
    wrong: str = ""


def read_manifest(path: Path, shared: Mapping[str, Any] | None = None) -> list[Edit]:
    """The edits of a manifest, in its order, each once; `shared` are settings of every row that does not say otherwise.

    A row that cannot be used is there with what is wrong. Raises SettingError where the manifest cannot be read, or has
    a column that is no setting.
    """
    known = [*OWN, *(f.name for f in fields(Settings))]
    root = path if path.is_dir() else path.parent
    edits: dict[str, Edit] = {}
    for at, row in enumerate(_rows(path), 1):
        if strange := [name for name in row if name not in known]:
            raise SettingError(f'"{path.name}", edit {at}: {unknown("column", str(strange[0]), known)}')
        made = _edit(at, root, {**(shared or {}), **row})
        edits.setdefault(made.folder, made)
    if not edits:
        raise SettingError(f'"{path.name}" holds no edit: write a row for each, with clip, source and edit.')
    return list(edits.values())


def grouped(edits: list[Edit]) -> list[list[Edit]]:
    """The edits by what one inversion serves, those of one backbone after each other; unusable ones are left out."""
    groups: dict[str, list[Edit]] = {}
    for edit in edits:
        if edit.settings:
            groups.setdefault(edit.group, []).append(edit)
    backbones = list(dict.fromkeys(str(s.backbone) for group in groups.values() if (s := group[0].settings)))
    return sorted(groups.values(), key=lambda group: backbones.index(group[0].settings.backbone))  # type: ignore[union-attr]


def shard(groups: list[list[Edit]], part: str) -> list[list[Edit]]:
    """The I-th of N equal parts of the groups, for `part` "I/N". Raises SettingError where it is no such part."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", part.strip())
    index, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= index <= count:
        raise SettingError(f"shard is {part!r}: write I/N, such as 1/4, the first of four parts.")
    return groups[index - 1 :: count]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if is_five(path):
        return iter(read_five(path))
    if path.suffix.lower() not in KINDS or not path.is_file():
        raise SettingError(
            f'"{path.name}" is no manifest: give a file that ends in {", ".join(KINDS)}, or a folder of FiVE-Bench.'
        )
    return _read(path)


def _read(path: Path) -> Iterator[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".csv":
            for row in csv.DictReader(io.StringIO(text, newline=""), strict=True):
                yield {str(name).strip(): _cell(str(name).strip(), cell) for name, cell in row.items() if cell}
            return
        lines = text.splitlines() if path.suffix.lower() == ".jsonl" else []
        every = [json.loads(line) for line in lines if line.strip()] if lines else yaml.safe_load(text)
        if not isinstance(every, list) or not all(isinstance(row, dict) for row in every):
            raise ValueError("it is no list of edits")
        for row in every:
            yield {str(name): value for name, value in row.items() if value is not None}
    except (ValueError, RecursionError, csv.Error, yaml.YAMLError, OSError) as error:
        raise SettingError(f'"{path.name}" cannot be read as a manifest: {first_line(error)}.') from None


def _cell(name: str, text: Any) -> Any:
    """A cell of a table as the value that its setting takes."""
    if not isinstance(text, str):  # csv's list of what stands beyond the header
        raise ValueError("a row has more cells than the header")
    plain = name in OWN or "str" in str(Settings.__annotations__.get(name, "str"))
    return text.strip() if plain else yaml.safe_load(text)


def _edit(at: int, root: Path, row: dict[str, Any]) -> Edit:
    values = dict(row)
    given, name = str(values.pop("clip", "")), str(values.pop("name", ""))
    clip = root / given
    settings, wrong = None, ""
    try:
        if not clip.is_file():
            raise SettingError(f'there is no clip "{given}": name one, seen from the manifest.')
        if isinstance(values.get("size"), str):
            values["size"] = read_size(values["size"])
        if values.get("masks"):
            values["masks"] = root / str(values["masks"])
        settings = infer_settings(values)
    except FreeMaskError as error:
        wrong = f"Edit {at}: {error}"
    stem = re.sub(r"[^\w.-]+", "-", name or clip.stem).strip(".-")[:60] or "edit"
    if settings is None:
        told = {key: str(value) for key, value in row.items()}
        return Edit(name or stem, clip, None, f"{stem}-{_digest(told)}", "", wrong)
    about = asdict(settings) | {"clip": _content(clip)}
    if settings.masks:
        about["masks"] = _content(settings.masks) if settings.masks.is_file() else str(settings.masks)
    group = _digest({key: about[key] for key in ("clip", *ALIKE)})
    return Edit(name or stem, clip, settings, f"{stem}-{_digest(about)}", group)


def _digest(about: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:DIGITS]


def _content(path: Path) -> str:
    return _hashed(path, path.stat().st_mtime)


@cache
def _hashed(path: Path, changed: float) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
