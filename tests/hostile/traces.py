"""Inversions and edits on disk that were damaged, are of another version, or hold what they must not."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hostile.cases import ANY, FINE, Shapes, damage
from hostile.clips import write_disc

from freemask.clips.video import Clip
from freemask.families.ddim import CLEAN
from freemask.families.sites import Site
from freemask.jobs.extras import make_extra
from freemask.jobs.kept import KeptPrepared, read_inversion, save_inversion
from freemask.masks.trace import SoftMap, Trace
from freemask.page import painted_circles
from freemask.pictures.word_maps import word_sheet
from freemask.settings import EXTRAS, make_settings
from freemask.steps import finish

shapes = Shapes()
CPU = torch.device("cpu")
NAME = f"inversion-{'0' * 32}.safetensors"
KEY = "reconstruction"


@lru_cache(maxsize=1)
def kept() -> Trace:
    maps = np.random.default_rng(0).random((2, 4, 4), np.float32)
    site, times = Site("down", "cross", 1), (1, 201, 401)
    clip = Clip(np.zeros((2, 32, 32, 3), np.uint8), 8.0)
    latents = {t: torch.randn(1, 4, 2, 8, 8) for t in (CLEAN, *times)}
    packed = {(t, site.name): SoftMap.pack(maps[None]) for t in times}
    return Trace(clip, "car", times, (site,), ((0,),), latents, packed)


@lru_cache(maxsize=2)
def stored(folder: Path) -> tuple[bytes, bytes]:
    """A good inversion's file, and that of what was prepared of it."""
    file = folder / "made" / NAME
    save_inversion(file, kept())
    KeptPrepared(file, CPU)[KEY] = {"latents": torch.arange(64.0)}
    (prepared,) = file.parent.glob(f"{file.stem}-*.safetensors")
    data = file.read_bytes(), prepared.read_bytes()
    shutil.rmtree(file.parent)
    return data


def take(given: Path) -> None:
    """What is read from an inversion's file is what was written or nothing, and what is damaged goes; an edit's folder
    gives its files or says that they are gone."""
    if given.is_dir():
        for name in EXTRAS:
            make_extra(given, name)
        word_sheet(given, "car", frame=0)
        return
    found = read_inversion(given, CPU)
    if found is None:
        assert not given.exists(), "a damaged file stays"
    else:
        for t, latents in kept().latents.items():
            assert torch.equal(found.latents[t], latents), "latents are other than they were"
        for cell, soft in kept().maps.items():
            assert all(np.array_equal(*pair) for pair in zip(found.maps[cell], soft, strict=True)), "maps are other"
        assert (found.prompt, found.timesteps, found.sites) == (kept().prompt, kept().timesteps, kept().sites)
    prepared = KeptPrepared(given, CPU)
    if KEY in prepared:
        assert torch.equal(prepared[KEY]["latents"], torch.arange(64.0)), "what was prepared is other than it was"


def put(folder: Path, trace: bytes, prepared: bytes) -> Path:
    file = folder / "kept" / NAME
    file.parent.mkdir()
    file.write_bytes(trace)
    file.with_name(f"{file.stem}-{KEY}.safetensors").write_bytes(prepared)
    return file


@shapes.add(FINE)
def damaged_inversion(rng: random.Random, folder: Path) -> Path:
    trace, prepared = stored(folder.parent)
    return put(folder, damage(rng, trace), prepared)


@shapes.add(FINE)
def damaged_preparation(rng: random.Random, folder: Path) -> Path:
    trace, prepared = stored(folder.parent)
    return put(folder, trace, damage(rng, prepared))


class _Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch evil",)


@shapes.add(FINE)
def something_else(rng: random.Random, folder: Path) -> Path:
    """A pickle, a zip that torch saved, a header that lies, nothing."""
    torch.save({"latents": _Evil()}, folder / "saved.pt")
    said = struct.pack("<Q", rng.choice((0, 2, 10**8, 2**63, 2**64 - 1)))
    return put(folder, *[
        rng.choice((pickle.dumps(_Evil()), (folder / "saved.pt").read_bytes(), said + b"{}" * 9, b"", b"\0" * 999))
        for _ in range(2)
    ])  # fmt: skip


def _reheaded(data: bytes, change: Any) -> bytes:
    """A safetensors file with another header."""
    (size,) = struct.unpack("<Q", data[:8])
    head = json.loads(data[8 : 8 + size])
    change(head)
    text = json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


@shapes.add(FINE)
def another_version(rng: random.Random, folder: Path) -> Path:
    trace, prepared = stored(folder.parent)

    def change(head: dict[str, Any]) -> None:
        about = json.loads(head["__metadata__"]["about"])
        how = rng.choice(("less", "more", "none", "times", "sites", "deep", "type"))
        if how == "less":
            about.pop(rng.choice([*about]))
        elif how == "more":
            about |= {"version": 99}
        elif how == "times":
            about["timesteps"] = about["timesteps"][:-1]
        elif how == "sites":
            about["sites"] = []
        elif how == "type":
            about[rng.choice([*about])] = rng.choice((None, "x", [1, 2], {}, -1))
        told = "[" * 9000 if how == "deep" else json.dumps(about)
        head["__metadata__"] = {} if how == "none" else head["__metadata__"] | {"about": told}

    return put(folder, _reheaded(trace, change), prepared)


@lru_cache(maxsize=1)
def edited(folder: Path) -> Path:
    """The folder of an edit."""
    out = folder / "edited"
    out.mkdir()
    asked = make_settings(source="a red car", edit="a blue car", task="attribute", steps=2, frames=2)
    finish(painted_circles(write_disc(folder / "edited.mp4"), asked, out, out, pause=lambda: None))
    return out


@shapes.add(ANY)
def damaged_edit(rng: random.Random, folder: Path) -> Path:
    out = folder / "edit"
    shutil.copytree(edited(folder.parent), out)
    files = sorted(path for path in out.rglob("*") if path.is_file())
    for path in rng.sample(files, rng.choice((1, 2))):
        path.write_bytes(damage(rng, path.read_bytes())) if rng.random() < 0.8 else path.unlink()
    return out
