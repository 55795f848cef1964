"""The maps of a word that the source prompt lacks, made for the explorer when a visitor asks for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..masks.trace import SoftMap
from ..methods.concepts import concept_steps
from ..methods.editor import Editor
from ..pictures.word_maps import concept_file, save_word_file
from ..settings import Settings
from ..steps import Steps
from .check import check
from .stages import Job

__all__ = ["map_concept"]


def map_concept(
    clip: Path, settings: Settings, out: Path, concept: str, *, kept: Path | None = None, editor: Editor | None = None
) -> Steps[dict[str, Any]]:
    """Writes a concept's maps over a clip, beside its source prompt, into the folder `out` of an edit that had these
    settings (`concept_file`), and returns what it cost. The clip is inverted first where the folder `kept` does not
    hold its inversion. Raises PromptError for a concept that is empty or too long."""
    job = Job(clip, check(clip, settings))
    yield from job.load(editor)
    yield from job.invert(kept)
    backbone, trace = job.editor.backbone, job.trace
    found = yield from concept_steps(backbone, trace, [concept], usage=job.usage["edit"])
    by_site = []
    for site in (site for site in trace.sites if site.kind == "cross"):
        each = [found[t, site.name] for t in trace.timesteps]
        by_site.append(SoftMap(np.stack([one.values[0] for one in each]), np.stack([one.scales[0] for one in each])))
    save_word_file(concept_file(out, concept), [one.values for one in by_site], [one.scales for one in by_site])
    return {"unet": {stage: used.told() for stage, used in job.usage.items() if used.rows}}
