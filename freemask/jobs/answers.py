"""Answers about a finished edit for the explorer, from its inversion: a word's maps, or one layer in full."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SettingError
from ..masks.trace import SoftMap, Trace
from ..methods.concepts import concept_steps
from ..methods.editor import Editor
from ..methods.probe import feature_colours, head_maps, position_attention
from ..pictures.word_maps import concept_file, save_word_file
from ..settings import Settings
from ..steps import Step, Steps
from ..words.prompts import words
from .check import check
from .questions import Question
from .stages import Job

__all__ = ["answer_steps"]


def answer_steps(
    clip: Path,
    settings: Settings,
    out: Path,
    question: Question,
    *,
    kept: Path | None = None,
    editor: Editor | None = None,
) -> Steps[dict[str, Any]]:
    """The answer for an edit of the clip with these settings, as JSON has it. A concept's maps are written into the
    edit's folder `out` (`concept_file`). The clip is inverted first where the folder `kept` does not hold its
    inversion. Raises SettingError for a cell or a place that there is not."""
    job = Job(clip, check(clip, settings))
    yield from job.load(editor)
    yield from job.invert(kept)
    backbone, trace = job.editor.backbone, job.trace
    if question.kind == "concept":
        maps = yield from concept_steps(backbone, trace, [question.text], usage=job.usage["edit"])
        _save(concept_file(out, question.text), trace, maps)
        return {"unet": {stage: used.told() for stage, used in job.usage.items() if used.rows}}
    yield Step("look", 0, 1)
    cell: dict[str, Any] = {"t": question.timestep, "site": question.site}
    if question.kind == "heads":
        count = len(words(trace.prompt))
        if not all(at < count for at in question.words):
            raise SettingError(f"The source prompt has {count} words.")
        heads = head_maps(backbone, trace, question.words or question.text, **cell)
        return {"values": _told(heads.values), "scales": _told(heads.scales.astype("<f4"))}
    if question.kind == "features":
        return {"colours": _told(feature_colours(backbone, trace, **cell))}
    if question.frame >= trace.latent_frames:
        raise SettingError(f"The clip has {trace.latent_frames} latent frames.")
    seen = position_attention(backbone, trace, frame=question.frame, x=question.x, y=question.y, **cell)
    answer: dict[str, Any] = {"told": seen.told.tolist()}
    for name in ("out", "into"):
        if (maps := getattr(seen, name)) is not None:
            soft = SoftMap.pack(maps[None])
            answer[name] = {"values": _told(soft.values[0]), "scales": soft.scales[0].tolist()}
    for name in ("track", "temporal"):
        if (values := getattr(seen, name)) is not None:
            answer[name] = np.round(values, 5).tolist()
    return answer


def _told(values: NDArray[Any]) -> dict[str, Any]:
    return {"shape": list(values.shape), "data": base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()}


def _save(path: Path, trace: Trace, maps: dict[tuple[int, str], SoftMap]) -> None:
    values, scales = [], []
    for site in (site for site in trace.sites if site.kind == "cross"):
        each = [maps[t, site.name] for t in trace.timesteps]
        values.append(np.stack([one.values[0] for one in each]))
        scales.append(np.stack([one.scales[0] for one in each]))
    save_word_file(path, values, scales)
