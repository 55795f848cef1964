"""What crosses between page and server: files as the browser is told of them, errors as it shows them."""

from __future__ import annotations

import base64
import html
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import cv2
import gradio as gr
import numpy as np

from ..clips.ffmpeg import is_unwritable
from ..clips.video import probe, read_clip
from ..errors import FreeMaskError, SettingError, StorageError
from ..pictures.mask_zip import MASK_COUNT, MASK_SIDE
from ..pictures.word_maps import unpack_bits

__all__ = [
    "EACH",
    "LATEST",
    "QUIET",
    "collecting",
    "file_data",
    "follow",
    "hear",
    "in_turn",
    "painted_masks",
    "picture_uri",
    "poster",
    "shown",
]

LATEST: dict[str, Any] = {"trigger_mode": "always_last", "concurrency_limit": 4}  # of events that come while it works
EACH: dict[str, Any] = {"trigger_mode": "multiple"}  # for what follows an event: else it is lost while it is under way
# No field shows a handler's progress. Told of none, the browser copies at each step of any handler what the handlers
# read, but not all that they fill, which would be most of the time that a chosen example takes.
QUIET: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": [], "api_visibility": "private"}
T = TypeVar("T")
log = logging.getLogger(__name__)


def in_turn(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A quick handler on the server's own loop, so that answers come in the order of the questions.

    Gradio may ask twice at once in any trigger mode, since it looks for a pending question before it has gathered the
    fields; of two threads the second may end first, and the page would show what holds no longer.
    """

    @wraps(handler)
    async def run(*args: Any) -> Any:
        return handler(*args)

    return run


def follow(triggers: list[Any], handler: Callable[..., Any], *given: Any, **options: Any) -> Any:
    """`gr.on` for a handler that takes the latest event where several came (`always_last`).

    Gradio gives an event to all its listeners again when one of them had to wait for another's answer, so two such
    listeners keep each other busy without end. Here the event only sets off the handler, which is then alone to wait.
    """
    apart = gr.on(triggers, None, js="() => []", **QUIET)
    return apart.then(handler, *given, **options)


@contextmanager
def collecting() -> Iterator[list[Exception]]:
    """Collects the error instead of raising it, so that the status line can tell it before the page's own alert."""
    errors: list[Exception] = []
    try:
        yield errors
    except Exception as error:
        errors.append(error)


def shown(error: Exception) -> gr.Error:
    """An error as the page shows it: its text may quote what a visitor typed, and the page reads HTML.

    What is no error of ours goes to the log, and the visitor reads only that it happened; but ZeroGPU's errors are
    made for the page, such as that the visitor's share of GPU time is spent.
    """
    if isinstance(error, gr.Error):
        return error
    unwritten = isinstance(error, StorageError) or is_unwritable(error)
    if isinstance(error, FreeMaskError) and not unwritten:
        return gr.Error(html.escape(str(error), quote=False), print_exception=False)
    log.error("a request failed", exc_info=error)
    told = "This failed unexpectedly: try again, with fewer frames or a smaller size. The server's log says why."
    if unwritten:
        told = "The server cannot write its files, as where its disk is full: try again later, and tell who runs it."
    elif isinstance(error, MemoryError):
        told = "The server's memory ran out: try again, with fewer frames or a smaller size."
    return gr.Error(told, print_exception=False)


def hear(event: gr.EventData, name: str, kind: Callable[[Any], T]) -> T:
    """What the page's own script tells with an event, as a float, int or str. Any other caller may tell anything; then
    it is refused."""
    try:
        value = kind(event._data[name])
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(name)
        return value
    except (LookupError, TypeError, ValueError, OverflowError):
        raise shown(SettingError(f"The {name} did not arrive from the page: load it again.")) from None


def file_data(path: Path) -> dict[str, Any]:
    """A file as the browser is told of it.

    Events that show videos skip Gradio's own postprocessing, which needs ffprobe wherever there is an ffmpeg: our
    videos play as they are.
    """
    return gr.FileData(path=str(path), orig_name=path.name, size=path.stat().st_size).model_dump()


def poster(path: Path) -> str:
    """The first and the last frame of a video as a data URI."""
    return picture_uri(np.hstack(list(read_clip(path, frames=1 if probe(path).still else 2).frames)))


def picture_uri(picture: np.ndarray) -> str:
    """A picture (h, w, 3) uint8 as a data URI that needs no file of its own."""
    data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def painted_masks(told: dict[str, Any]) -> np.ndarray:
    """Masks (f, h, w) bool as the studio sends them; raises SettingError for what is too large, does not fill its
    shape or is empty."""
    try:
        h, w, data = int(told["h"]), int(told["w"]), str(told["data"])
    except (LookupError, TypeError, ValueError, OverflowError):
        raise SettingError("The painted mask did not arrive whole: paint it again.") from None
    if not (0 < h <= MASK_SIDE and 0 < w <= MASK_SIDE and len(data) <= 4 * (MASK_COUNT * h * w // 24 + 2)):
        raise SettingError(f"The painted mask is too large: {MASK_COUNT} frames of {MASK_SIDE} x {MASK_SIDE} at most.")
    masks = unpack_bits(data, (h, w))
    if not masks.any():
        raise SettingError("Nothing is painted: mark the object on the frames first.")
    return masks
