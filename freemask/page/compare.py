"""The tab that compares two edits of a visit: in step, in their settings and figures, in maps and in masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..clips.video import Clip, read_clip, side_by_side, write_clip
from ..errors import ClipError, FreeMaskError
from ..pictures.compare import difference_sheet, masks_strip
from ..pictures.mask_zip import read_mask_zip
from ..pictures.sheets import save_png
from ..pictures.word_maps import read_index, read_maps, word_index
from ..settings import MASKS
from . import status
from .visits import Run
from .wire import poster

__all__ = ["COMPARE", "compare_runs"]

COMPARE = "Compare"  # the tab
APART = "Their layers and timesteps differ, so their maps cannot be laid over each other."
SHAPES = "Their clips differ in length or size, so they do not play in step."


def compare_runs(first: Run, second: Run, frame: int, into: Path) -> tuple[str, Path | None, Path | None, Path | None]:
    """What differs between two runs, as HTML; and files in the folder `into`: the two edits side by side in step, the
    sheet of differences of the edited words' maps on a frame (from 0), and the outlines of both masks. What the two
    have not in common is left out, and told."""
    into.mkdir(parents=True, exist_ok=True)
    told = []
    table = status.history([(one.report, poster(one.folder / "edited.mp4")) for one in (first, second)])
    if first.report["settings"] == second.report["settings"]:
        told.append("Their settings are the same.")
    names = f"{first.folder.name}-{second.folder.name}"
    video: Path | None = into / f"beside-{names}.mp4"
    try:
        pair = [_clip(one, "edited") for one in (first, second)]
        if video and not video.exists():
            write_clip(video, side_by_side(*pair))
    except ClipError:
        video, told = None, [*told, SHAPES]
    ours, theirs = read_index(first.folder), read_index(second.folder)
    sheet: Path | None = None
    strip: Path | None = None
    if all(ours[name] == theirs[name] for name in ("sites", "timesteps", "frames")):
        words = [one.report["words"]["word"] for one in (first, second)]
        maps = [read_maps(one.folder, word) for one, word in zip((first, second), words, strict=True)]
        at = min(max(frame, 0), ours["frames"] - 1)
        title = f"{' and '.join(dict.fromkeys(words))}, frame {at + 1} of {ours['frames']}"
        sheet = into / f"difference-{names}-{at}.png"
        save_png(sheet, difference_sheet(word_index(ours), *maps, frame=at, title=title))
    else:
        told.append(APART)
    try:
        frames = _clip(first, "source").frames
        masks = [read_mask_zip(one.folder / MASKS, frames=len(frames)) for one in (first, second)]
        strip = into / f"masks-{names}.png"
        save_png(strip, masks_strip(frames, *(np.broadcast_to(one, (len(frames), *one.shape[1:])) for one in masks)))
    except FreeMaskError:
        told.append("One of them has no mask.")
    return table + "".join(map(status.note, told)), video, sheet, strip


def _clip(run: Run, name: str) -> Clip:
    shape = run.report["clip"]
    return read_clip(run.folder / f"{name}.mp4", frames=shape["frames"], fps=shape["fps"])
