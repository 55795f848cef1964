"""The edits that ship with the page: each example's result, and a picture of it for its button."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np

from ..clips.video import read_clip
from ..jobs.extras import make_extra
from ..jobs.run import run_steps
from ..settings import Example, examples
from ..steps import Steps
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
SIDE = 96  # pixels of a side of each of the two pictures of a pair


def showcase_steps(static: Path) -> Steps[list[Path]]:
    """Edits every shipped example into `static/examples/NAME`, with a picture of a frame before and after. Returns the
    folders."""
    made: list[Path] = []
    for example in examples():
        out = static / "examples" / example.made.name
        shutil.rmtree(out, ignore_errors=True)
        with tempfile.TemporaryDirectory() as folder:
            yield from run_steps(example.clip, example.settings, Path(folder), likeness=likeness)
            shutil.copytree(Path(folder) / "words", out / "words")
            for name in ("edited.gif", "comparison.mp4"):
                make_extra(Path(folder), name)
            for name in SHIPPED:
                shutil.copy(Path(folder) / name, out / name)
        draw_picture(example)
        made.append(out)
    return made


def draw_picture(example: Example) -> None:
    """The picture of an example's edit: a frame of source and edit, side by side."""
    pair = [read_clip(example.made / f"{name}.mp4", frames=1, start=0.4).frames[0] for name in ("source", "edited")]
    grown = [cv2.resize(one, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) for one in pair]
    cv2.imwrite(str(example.picture), np.hstack(grown)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
