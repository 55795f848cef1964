"""What a batch does with its edits, whatever engine runs it: each result appears whole, none twice, no fault ends it.

In the batch's folder: `edits/FOLDER/` holds what `edit` writes of each edit, and `poster.jpg`; `errors/FOLDER.json` why
there is none; `.work/` what is being made. What is there says how far the batch is, so that it goes on after anything.
Maps of words, most of an edit's bytes, are written where all files are asked for.
"""

from __future__ import annotations

import json
import shutil
import traceback
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..clips.ffmpeg import whole
from ..errors import FreeMaskError
from ..jobs.files import read_report, read_videos
from ..jobs.run import run_steps
from ..settings import REPORT
from ..steps import finish
from ..toyworld.likeness import likeness
from .manifest import Edit

__all__ = ["EDITS", "POSTER", "begin", "collect", "is_done", "make_group"]

EDITS, ERRORS, WORK = "edits", "errors", ".work"
POSTER = "poster.jpg"
SIDE = 256  # pixels of the longer side of each of a poster's two pictures
TRIES = 2  # of an edit in whose middle the process ends


def is_done(out: Path, edit: Edit) -> bool:
    """Whether its result is there."""
    return (out / EDITS / edit.folder / REPORT).exists()


def begin(out: Path, edits: Sequence[Edit]) -> None:
    """Makes the batch's folders, and puts down what is wrong with edits that cannot be made; others that failed before
    get a new try."""
    for name in (EDITS, ERRORS, WORK):
        (out / name).mkdir(parents=True, exist_ok=True)
    for edit in edits:
        _tries(out, edit).unlink(missing_ok=True)
        _error(out, edit).unlink(missing_ok=True)
        if edit.wrong:
            _fail(out, edit, "SettingError", edit.wrong)


def make_group(out: Path, group: Sequence[Edit], *, extras: bool = False) -> Generator[str, None, None]:
    """Makes those edits of one inversion whose results are not there; yields each folder's name when it is dealt
    with."""
    kept = out / WORK / f"{group[0].group}.kept"
    for edit in group:
        if not is_done(out, edit):
            _make(out, edit, kept, extras)
        yield edit.folder
    shutil.rmtree(kept, ignore_errors=True)


def _make(out: Path, edit: Edit, kept: Path, extras: bool) -> None:
    part, tries = out / WORK / edit.folder, _tries(out, edit)
    shutil.rmtree(part, ignore_errors=True)
    begun = int(tries.read_text()) if tries.exists() else 0
    if begun >= TRIES:
        told = f"The worker ended {begun} times in the middle of this edit: look whether its memory suffices."
        return _fail(out, edit, "WorkerDied", told)
    tries.write_text(str(begun + 1))  # stays where the process is killed
    try:
        assert edit.settings
        steps = run_steps(edit.clip, edit.settings, part, kept=kept, likeness=likeness, extras=extras, maps=extras)
        finish(steps)
        _poster(part)
        shutil.rmtree(out / EDITS / edit.folder, ignore_errors=True)  # one that somebody emptied
        part.rename(out / EDITS / edit.folder)
    except FreeMaskError as error:
        _fail(out, edit, type(error).__name__, str(error))
    except Exception as error:  # one edit's fault is a row of the results, never the end of the others
        _fail(out, edit, type(error).__name__, str(error) or type(error).__name__, traceback.format_exc())
    finally:
        shutil.rmtree(part, ignore_errors=True)
        tries.unlink(missing_ok=True)


def _poster(folder: Path) -> None:
    """A frame of source and edit, side by side."""
    shape = read_report(folder)["clip"]
    clips = read_videos(folder, "source", "edited", frames=shape["frames"], fps=shape["fps"])
    picture = Image.fromarray(np.concatenate([clip[len(clip) // 2] for clip in clips], axis=1))
    scale = SIDE / max(shape["width"], shape["height"])
    picture.resize((round(picture.width * scale), round(picture.height * scale))).save(folder / POSTER, quality=85)


def collect(out: Path, edits: Sequence[Edit]) -> list[dict[str, Any]]:
    """A row an edit, from what is on disk: `state` done, failed or open, the error, seconds and memory, and every
    figure of its report."""
    rows = [_row(out, edit) for edit in edits]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in names} for row in rows]


def _row(out: Path, edit: Edit) -> dict[str, Any]:
    row: dict[str, Any] = {"name": edit.name, "video": edit.clip.name, "folder": f"{EDITS}/{edit.folder}"}
    asked = edit.settings
    for name in ("source", "edit", "task", "method", "backbone"):
        row[name] = getattr(asked, name) if asked else None
    row |= {"state": "open", "error": None, "seconds": None, "peak_mib": None, "inversion": None, "verdict": None}
    if is_done(out, edit):
        report = read_report(out / EDITS / edit.folder)
        row |= {"state": "done", "seconds": report["seconds"]["total"], "peak_mib": report["memory"]["peak_mib"]}
        row |= {"inversion": report["inversion"], "verdict": report["verdict"]["level"]} | report["metrics"]
    elif _error(out, edit).exists():
        told = json.loads(_error(out, edit).read_text(encoding="utf-8"))
        row |= {"state": "failed", "error": f"{told['kind']}: {told['error']}"}
    return row


def _fail(out: Path, edit: Edit, kind: str, error: str, trace: str = "") -> None:
    with whole(_error(out, edit)) as part:
        part.write_text(json.dumps({"kind": kind, "error": error, "trace": trace}) + "\n", encoding="utf-8")


def _error(out: Path, edit: Edit) -> Path:
    return out / ERRORS / f"{edit.folder}.json"


def _tries(out: Path, edit: Edit) -> Path:
    return out / WORK / f"{edit.folder}.tries"
