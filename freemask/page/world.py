"""What the page tells of a clip that a toy backbone cannot edit: under the clip, and again beside Edit."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from ..errors import FreeMaskError
from ..families.specs import known_words
from ..jobs.verdict import LIKE
from ..words.differences import objects
from . import status
from .fields import optional

__all__ = ["tell_world"]

OUTSIDE = (
    "Not like the toy world (likeness {:.2f}, where {:.2f} is like it): expect noise.",
    "This clip is outside the toy world: expect noise, not an edit.",
)
UNSURE = (
    "Perhaps not like the toy world: of several objects that is not sure.",
    "Whether this clip is of the toy world is not sure: look at the edit itself.",
)


def tell_world(
    clip: str | None, frames: float, start: float | None, fps: str, backbone: str, source: str
) -> tuple[str, str]:
    """The warning under the clip and the one beside Edit, both empty where the backbone may know such clips. Where the
    source prompt names two of its objects they are unsure: the judge knows scenes of one.

    Looks at the frames that an edit would take; what cannot be read is told of elsewhere.
    """
    try:
        if not clip or known_words(backbone) is None:
            return "", ""
        rate = optional(fps)
        changed = Path(clip).stat().st_mtime
        found = _likeness(clip, changed, int(frames), start or 0.0, float(rate) if rate else None)
    except (FreeMaskError, OSError, ValueError):
        return "", ""
    if found >= LIKE:
        return "", ""
    under, beside = UNSURE if len(objects(source or "")) > 1 else OUTSIDE
    return status.note(under.format(found, LIKE), doubt=True), status.note(beside, doubt=True)


@lru_cache(maxsize=32)
def _likeness(clip: str, changed: float, frames: int, start: float, fps: float | None) -> float:
    """torch is imported here, so that the page paints before it."""
    from ..toyworld.likeness import clip_likeness

    return clip_likeness(Path(clip), frames=frames, start=start, fps=fps)
