"""One job from a clip and settings to a folder of files: what the command and the page both run.

`run_steps` is a generator of `Step`; closing it cancels the job within one step.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..methods.editor import Editor
from ..settings import Settings
from ..steps import Steps
from .check import check
from .extras import make_extras
from .files import tidy
from .shortage import told_of_faults
from .stages import Job, load_editor

__all__ = ["load_editor", "run_steps"]


def run_steps(
    path: Path,
    settings: Settings,
    out: Path,
    *,
    editor: Editor | None = None,
    kept: Path | None = None,
    glances: int = 0,
    likeness: Callable[[np.ndarray], float] | None = None,
    extras: bool = False,
    maps: bool = True,
) -> Steps[dict[str, Any]]:
    """Edits the clip at `path` into the folder `out` and returns the report.

    The edit is there before what is only for the record: the step that ends its writing carries the report so far, and
    the reconstruction, the figures and the verdict come after it. With `extras` the files of `EXTRAS` too; without
    `maps` not those of every word, from which the extras of maps are made.

    In the folder `kept`, finished inversions stay for later edits of the same clip and source prompt, which then begin
    at denoising; they are what a cancelled or failed edit leaves behind. Edits that are asked to store features invert
    anew. Where memory runs out, the edit goes on in a more frugal way and says so. About `glances` of the edit's
    steps carry a picture of it. `likeness` (`toyworld.likeness`) is asked where the backbone knows its own world alone,
    for the verdict on the edit.

    Raises InputError before any model runs, for a prompt longer than the model reads once it is loaded; BackboneError
    where it cannot be loaded, MaskError where the chosen attention map holds no mask, MemoryShortage where nothing
    fits, StorageError where `out` cannot be written, DeviceLost where the GPU answers no more.
    """
    with told_of_faults(out):
        job = Job(path, check(path, settings))
        tidy(out)
        yield from job.load(editor)
        yield from job.invert(kept)
        yield from job.edit(glances)
        yield from job.show(out, maps)
        yield from job.reconstruct(out)
        report = job.report(out, job.metrics(out, likeness))
        if extras:
            make_extras(out)
        return report
