"""What the page plays in place of a clip that the visitor's browser cannot play."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from ..clips.preview import write_preview
from ..clips.video import probe
from ..errors import FreeMaskError
from .wire import file_data, hear

__all__ = ["make_preview"]

SHOWN = "This browser shows a preview."
PICTURES = ("gif",)  # that ffmpeg reads


def make_preview(clip: str | None, event: gr.EventData) -> dict[str, Any]:
    """A preview, which the browser asked for by a number that comes back with it; without a video where there is no
    clip, or it cannot be read, which the facts tell of.

    It lies in Gradio's cache, whose files go after a day, under a name that only who knows the clip's can tell.
    """
    asked = hear(event, "asked", int)
    try:
        info = probe(clip or "")
        path = Path(get_upload_folder()) / "previews" / f"{hashlib.sha256(str(clip).encode()).hexdigest()}.mp4"
        if not path.exists():
            write_preview(str(clip), path)
    except (FreeMaskError, OSError):
        return {"asked": asked, "video": None, "note": ""}
    note = "" if info.picture or info.codec in PICTURES else SHOWN
    return {"asked": asked, "video": file_data(path), "note": note}
