"""Tensors on disk that are read as they were written, or not at all.

One safetensors file holds them, with what is told about them as JSON and a digest of both. It appears whole or not at
all, and what no longer agrees with the digest, or is of another version, is no such file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..clips.ffmpeg import whole

__all__ = ["load_tensors", "save_tensors"]

VERSION = 1  # of what is stored


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Writes tensors, and what is told about them, which JSON can hold. Raises StorageError."""
    own = {name: x.contiguous().cpu() for name, x in tensors.items()}
    text = json.dumps({**about, "version": VERSION})
    with whole(path) as part:
        try:
            save_file(own, part, metadata={"about": text, "digest": _digest(own, text)})
        except SafetensorError as error:  # it tells an OSError in words alone
            code = re.search(r"os error (\d+)", str(error))
            raise OSError(int(code[1]), os.strerror(int(code[1]))) if code else error from None


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_tensors` wrote. Raises ValueError, or what safetensors raises, for any other file."""
    with safe_open(path, "pt") as stored:
        told = stored.metadata() or {}
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    text = told.get("about", "")
    if told.get("digest") != _digest(tensors, text):
        raise ValueError(f"{path.name} is damaged")
    about: dict[str, Any] = json.loads(text)
    if about.pop("version", None) != VERSION:
        raise ValueError(f"{path.name} is of another version")
    return tensors, about


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        x = tensors[name]
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        digest.update(x.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
