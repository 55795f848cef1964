"""FiVE-Bench (Li et al., ICCV 2025): its 420 prompt pairs in six tasks as a manifest, and its figures of the results.

Its folder is read as it lies on disk: `edit_prompt/edit1_FiVE.json` to `edit6_FiVE.json`, each a list of objects with
`video_name`, `source_prompt` and `target_prompt`, in which brackets may mark the words in question; `videos/NAME.mp4`;
`bmasks/NAME/*`, a picture a frame of the video, above 0 where it is edited. The data are CC BY-NC 4.0 and not ours.

| its task | ours |
|---|---|
| 1 object replacement, rigid | shape |
| 2 object replacement, non-rigid | shape |
| 3 colour alteration | attribute |
| 4 material modification | attribute |
| 5 object addition | attribute: what is there stays, and something is added to it |
| 6 object removal | shape: the object becomes what is behind it |
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..clips.video import probe, read_clip
from ..errors import SettingError
from ..jobs.files import read_report
from ..words.prompts import words

__all__ = ["TASKS", "is_five", "means", "read_five", "score_five"]

TASKS = {1: "shape", 2: "shape", 3: "attribute", 4: "attribute", 5: "attribute", 6: "shape"}
TITLES = {1: "1 rigid", 2: "2 non-rigid", 3: "3 colour", 4: "4 material", 5: "5 added", 6: "6 removed"}


def is_five(path: Path) -> bool:
    """Whether a folder is the benchmark's."""
    return any(_file(path, task).is_file() for task in TASKS)


def read_five(path: Path) -> list[dict[str, Any]]:
    """The rows of its manifest, in its order; those tasks whose file is not there are left out. Raises SettingError
    where a file is none of the benchmark's."""
    return [
        {"name": f"edit{task}-{at + 1:03}-{one['video_name']}", "clip": f"videos/{one['video_name']}.mp4", "task": ours}
        | _prompts(one)
        for task, ours in TASKS.items()
        if _file(path, task).is_file()
        for at, one in enumerate(_pairs(_file(path, task)))
    ]


def _file(path: Path, task: int) -> Path:
    return path / "edit_prompt" / f"edit{task}_FiVE.json"


def _pairs(file: Path) -> list[dict[str, str]]:
    try:
        pairs = json.loads(file.read_text(encoding="utf-8"))
        asked = "video_name", "source_prompt", "target_prompt"
        return [{name: _plain(pair[name]) for name in asked} for pair in pairs]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise SettingError(
            f'"{file.name}" is no list of FiVE-Bench with video_name, source_prompt and target_prompt: fetch it again.'
        ) from None


def _plain(text: Any) -> str:
    if not isinstance(text, str):
        raise TypeError
    return text


def _prompts(pair: Mapping[str, str]) -> dict[str, str]:
    """The two prompts without brackets, and the word that is edited where the source's brackets name it."""
    source, edit = (re.sub(r"[\[\]]", "", pair[name]) for name in ("source_prompt", "target_prompt"))
    told = {"source": source, "edit": edit}
    if (marked := re.search(r"\[([^\]]+)\]", pair["source_prompt"])) and (inside := words(marked[1])):
        before = words(re.sub(r"[\[\]]", "", pair["source_prompt"][: marked.end()]))
        count = sum(word.lower() == inside[-1].lower() for word in before)
        total = sum(word.lower() == inside[-1].lower() for word in words(source))
        told["word"] = f"{inside[-1]}#{count}" if total > 1 else inside[-1]
    return told


def score_five(folder: Path, five: Path, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The benchmark's figures (`figures.five_figures`) of each of a batch's done rows, beside our own.

    As its own code does: the edit at the size of its video, each of its frames beside the video's frame at that time,
    the masks of those frames. Its code takes every eighth of 40 frames, this all that were edited.
    Raises SettingError where none of the rows is an edit of the benchmark, or a mask or video is missing.
    """
    from .figures import five_figures

    scored = []
    for row in rows:
        found = re.fullmatch(r"edit([1-6])-\d+-(.+)", str(row["name"]))
        if row["state"] != "done" or not found:
            continue
        out, video = folder / row["folder"], five / "videos" / f"{found[2]}.mp4"
        report = read_report(out)
        shape, start = report["clip"], report["settings"]["start"]
        info = probe(video)
        before = read_clip(video, frames=shape["frames"], start=start, fps=shape["fps"]).frames
        size = before.shape[2], before.shape[1]
        small = read_clip(out / "edited.mp4", frames=shape["frames"], fps=shape["fps"]).frames
        after = np.stack([np.asarray(Image.fromarray(frame).resize(size)) for frame in small])
        at = [int((start + k / shape["fps"]) * info.fps + 1e-3) for k in range(shape["frames"])]
        masks = _masks(five / "bmasks" / found[2], at, size)
        prompts = {"source": row["source"], "edit": row["edit"], "backbone": row["backbone"]}
        figures = five_figures(before, after, masks, **prompts)
        scored.append({"name": row["name"], "task": int(found[1])} | figures | {"ours": report["metrics"]})
    if not scored:
        raise SettingError(
            f'"{folder}" holds no finished edit of FiVE-Bench: give the --out of `batch` with the benchmark\'s folder.'
        )
    return scored


def _masks(folder: Path, at: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """The masks (f, h, w) bool of a video's frames `at`, True where it is edited; a frame beyond the last has its."""
    files = sorted(one for one in folder.glob("*") if one.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not files:
        raise SettingError(f'The benchmark\'s masks "{folder}" are missing: unpack bmasks.zip beside its videos.')
    chosen = [Image.open(files[min(k, len(files) - 1)]).convert("L") for k in at]
    return np.stack(
        [np.asarray(one if one.size == size else one.resize(size, Image.Resampling.NEAREST)) > 0 for one in chosen]
    )


def means(scored: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The means over a task's edits, and over all of them, of every figure, ours too; None where none has it."""
    groups = {title: [one for one in scored if one["task"] == task] for task, title in TITLES.items()}
    groups["All"] = list(scored)
    return [{"task": title, "edits": len(some)} | _mean(some) for title, some in groups.items() if some]


def _mean(some: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    every = [{**one, **{f"ours_{name}": value for name, value in one["ours"].items()}} for one in some]
    names = list(dict.fromkeys(name for one in every for name in one if name not in ("name", "task", "ours", "absent")))
    found = {name: [float(one[name]) for one in every if one.get(name) is not None] for name in names}
    return {name: float(np.mean(values)) if values else None for name, values in found.items()}
