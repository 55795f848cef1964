"""The tab that compares two edits of a visit: in step, in their settings and figures, in maps and in masks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..clips.video import Clip, read_clip, side_by_side, write_clip
from ..errors import ClipError, FreeMaskError
from ..pictures.compare import difference_sheet, masks_strip
from ..pictures.mask_zip import read_mask_zip
from ..pictures.sheets import Ink, save_png
from ..pictures.word_maps import read_index, read_maps, word_index
from ..settings import MASKS
from . import status
from .visits import Run
from .wire import poster

__all__ = ["COMPARE", "compare_runs"]

COMPARE = "Compare"  # the tab
APART = "Their layers and timesteps differ, so their maps cannot be laid over each other."
SHAPES = "Their clips differ in length or size, so they do not play in step."


def compare_runs(
    first: Run, second: Run, frame: int, into: Path, ink: Ink
) -> tuple[str, Path | None, Path | None, Path | None]:
    """What differs between two runs, as HTML; and files in the folder `into`: the two edits side by side in step, the
    sheet of differences of the edited words' maps on a frame (from 0), and the outlines of both masks. What the two
    have not in common is left out, and told."""
    into.mkdir(parents=True, exist_ok=True)
    told = []
    table = status.history([(one.report, poster(one.folder / "edited.mp4")) for one in (first, second)])
    if first.report["settings"] == second.report["settings"]:
        told.append("Their settings are the same.")
    pair, names = (first, second), f"{first.folder.name}-{second.folder.name}"
    video = sheet = strip = None
    try:
        video = _once(into / f"beside-{names}.mp4", lambda path: write_clip(path, side_by_side(*map(_edited, pair))))
    except ClipError:
        told.append(SHAPES)
    ours, theirs = (read_index(one.folder) for one in pair)
    if all(ours[name] == theirs[name] for name in ("sites", "timesteps", "frames")):
        at = min(max(frame, 0), ours["frames"] - 1)
        name = f"difference-{names}-{at}-on-{ink.ground[1:]}.png"
        sheet = _once(into / name, lambda path: save_png(path, _differences(pair, ours, at, ink)))
    else:
        told.append(APART)
    try:
        strip = _once(into / f"masks-{names}.png", lambda path: save_png(path, _outlined(pair)))
    except FreeMaskError:
        told.append("One of them has no mask.")
    return table + "".join(map(status.note, told)), video, sheet, strip


def _once(path: Path, make: Callable[[Path], object]) -> Path:
    """A file of two runs, which do not change; made where it is not there yet."""
    if not path.exists():
        make(path)
    return path


def _differences(pair: tuple[Run, Run], index: dict[str, Any], frame: int, ink: Ink) -> NDArray[np.uint8]:
    """The sheet of the differences of the edited words' maps."""
    words = [run.report["words"]["word"] for run in pair]
    first, second = (read_maps(run.folder, word) for run, word in zip(pair, words, strict=True))
    title = f"{' and '.join(dict.fromkeys(words))}, frame {frame + 1} of {index['frames']}"
    return difference_sheet(word_index(index), first, second, frame=frame, title=title, ink=ink)


def _outlined(pair: tuple[Run, Run]) -> NDArray[np.uint8]:
    """The first one's source under both masks; raises SettingError where one has none."""
    frames = _clip(pair[0], "source").frames
    masks = (read_mask_zip(run.folder / MASKS, frames=len(frames)) for run in pair)
    return masks_strip(frames, *(np.broadcast_to(one, (len(frames), *one.shape[1:])) for one in masks))


def _edited(run: Run) -> Clip:
    return _clip(run, "edited")


def _clip(run: Run, name: str) -> Clip:
    shape = run.report["clip"]
    return read_clip(run.folder / f"{name}.mp4", frames=shape["frames"], fps=shape["fps"])
