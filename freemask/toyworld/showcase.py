"""The edits that ship with the page: each example's result, and a picture of each task for its card."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np

from ..edit import Steps
from ..presets import examples
from ..run import run_steps
from ..video import read_clip
from .likeness import likeness

__all__ = ["showcase_steps"]

SHIPPED = (
    "source.mp4",
    "reconstruction.mp4",
    "edited.mp4",
    "edited.gif",
    "comparison.mp4",
    "masks.zip",
    "settings.json",
    "report.json",
)
CARD = 72  # pixels of a side of the pictures on a card


def showcase_steps(static: Path) -> Steps[list[Path]]:
    """Edits every shipped example into `static/examples/NAME`, and draws `static/tasks/TASK.jpg`, source and edit side
    by side, from the first example of each task. Returns the folders."""
    (static / "tasks").mkdir(parents=True, exist_ok=True)
    made: list[Path] = []
    for example in examples():
        out = static / "examples" / example.made.name
        shutil.rmtree(out, ignore_errors=True)
        with tempfile.TemporaryDirectory() as folder:
            yield from run_steps(example.clip, example.settings, Path(folder), likeness=likeness)
            shutil.copytree(Path(folder) / "words", out / "words")
            for name in SHIPPED:
                shutil.copy(Path(folder) / name, out / name)
        card = static / "tasks" / f"{example.settings.task}.jpg"
        if example.settings.task not in {one.settings.task for one in examples()[: len(made)]}:
            pair = [read_clip(out / f"{name}.mp4", frames=1, start=0.4) for name in ("source", "edited")]
            grown = [cv2.resize(one.frames[0], (CARD, CARD), interpolation=cv2.INTER_CUBIC) for one in pair]
            cv2.imwrite(str(card), np.hstack(grown)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
        made.append(out)
    return made
