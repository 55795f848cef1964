"""What stays on disk of a finished inversion, so that a later edit of the same clip and source prompt begins after it:
the trace, and what methods prepared of it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import torch

from ..errors import StorageError
from ..families.devices import is_out_of_memory
from ..masks.features import Features
from ..masks.stored import load_tensors, save_tensors
from ..masks.trace import Trace, load_trace, save_trace
from ..methods.base import Prepared
from ..presets import load_method
from ..settings import Settings
from .memory import HOST

__all__ = ["KeptFeatures", "KeptPrepared", "inversion_file", "read_inversion", "save_inversion"]

T = TypeVar("T")
DIGITS = 32  # of an inversion's name
KEPT = 4  # inversions that a folder holds, the newest, and as many of what methods prepared of each


def inversion_file(kept: Path, path: Path, settings: Settings, size: tuple[int, int]) -> Path:
    """Where in the folder `kept` an inversion of the clip at `path` is: what it depends on is in the name, a digest."""
    names = ("source", "backbone", "steps", "solver", "frames", "start", "fps")
    asked = [*(getattr(settings, name) for name in names), size]
    if load_method(settings.method).features == "drawn":
        asked += ["drawn", settings.seed]
    digest = hashlib.sha256(json.dumps(asked).encode())
    with path.open("rb") as clip:
        while block := clip.read(1 << 20):
            digest.update(block)
    return kept / f"inversion-{digest.hexdigest()[:DIGITS]}.safetensors"


def read_inversion(file: Path, device: torch.device) -> Trace | None:
    """The trace in a file; None where there is none, or it is damaged."""
    return _read(file, lambda: load_trace(file, device))


def save_inversion(file: Path, trace: Trace) -> None:
    """Writes a trace; where the folder is full the oldest goes, with what was prepared of it. Raises StorageError."""
    pattern = f"inversion-{'?' * DIGITS}.safetensors"
    for old in _oldest(file.parent, pattern):
        for one in (old, *old.parent.glob(f"{old.stem}-*.safetensors")):
            one.unlink()
    save_trace(file, trace)
    newest = max(one.stat().st_mtime for one in file.parent.glob(pattern))
    if file.stat().st_mtime < newest:  # the clock was set back
        os.utime(file, (newest + 1, newest + 1))


class KeptPrepared(dict[str, Prepared]):
    """What methods prepared of one inversion, by key; beside the inversion's `file` too, where there is one."""

    def __init__(self, file: Path | None, device: torch.device) -> None:
        super().__init__()
        self._file, self._device = file, device
        self.found = set[str]()  # what was read from there

    def _path(self, key: object) -> Path | None:
        return self._file.with_name(f"{self._file.stem}-{key}.safetensors") if self._file else None

    def __contains__(self, key: object) -> bool:
        path = self._path(key)
        if not super().__contains__(key) and path:
            made = _read(path, lambda: self._load(path))
            if made is not None:
                super().__setitem__(str(key), made)
                self.found.add(str(key))
        return super().__contains__(key)

    def __setitem__(self, key: str, made: Prepared) -> None:
        super().__setitem__(key, made)
        if (path := self._path(key)) and self._file:
            for old in _oldest(self._file.parent, f"{self._file.stem}-*.safetensors"):
                old.unlink()
            with suppress(StorageError):  # where there is no room, a later edit makes it anew
                save_tensors(path, made, {})

    def _load(self, path: Path) -> Prepared:
        return {name: one.to(self._device) for name, one in load_tensors(path)[0].items()}


class KeptFeatures:
    """The source's features of the last inversion, where they are in this process's RAM: a second edit of the clip then
    replays nothing."""

    def __init__(self) -> None:
        self._kept: tuple[Path, Features] | None = None

    def keep(self, file: Path, features: Features, size: int) -> None:
        """Those of the inversion in a file, of so many bytes; too many, or those on a GPU, are let go."""
        self._kept = (file, features) if size <= HOST and features.in_ram else None

    def take(self, file: Path | None) -> Features | None:
        """Those of the inversion in a file, where they are still here."""
        return self._kept[1] if self._kept and self._kept[0] == file else None

    def clear(self) -> None:
        self._kept = None


def _read(path: Path, read: Callable[[], T]) -> T | None:
    """What is read from a kept file; None where there is none, or it is damaged: then it goes, to be made anew."""
    try:
        return read() if path.exists() else None
    except Exception as error:  # safetensors and json raise many kinds for a damaged file
        if is_out_of_memory(error):
            raise
        path.unlink(missing_ok=True)
        return None


def _oldest(folder: Path, pattern: str) -> list[Path]:
    """The files that make room for one more."""
    return sorted(folder.glob(pattern), key=lambda one: one.stat().st_mtime)[: 1 - KEPT]
