"""ZeroGPU, where a Space borrows a GPU for the time of one edit; elsewhere nothing here acts.

The borrowed time is the estimate that the page shows, with room for what it cannot know. The edit runs in a process
of its own there, so steps and the report cross as plain values, and the inversion as the file that it is kept in. The
library is imported before torch, as it asks.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Generator
from pathlib import Path
from typing import Any

from ..errors import FreeMaskError
from ..jobs.questions import Question
from ..settings import Settings
from ..steps import Step
from .bodies import Body
from .estimate import Estimates, rows, sized, volume

__all__ = ["borrowing", "duration", "in_context"]

ROOM = 1.3  # times the estimate, since a slow minute must not end an edit
STARTING = 10.0  # seconds to move the model
PAPER = 60.0 / (50 * 5 * 8 * 512 * 512)  # seconds a row, frame and pixel: the paper's minute on an A100


def duration(settings: Settings, estimates: Estimates) -> int:
    """Seconds to borrow the GPU for: the page's estimate, or before there is one the paper's time at this size."""
    known = estimates.seconds(settings)
    seconds = PAPER * sum(rows(settings).values()) * volume(settings) if known is None else known
    return math.ceil(ROOM * seconds + STARTING)


def borrowing(body: Body, estimates: Estimates) -> Body:
    """The body with a GPU borrowed for each edit."""
    import spaces

    def whole(
        clip: Path, settings: Settings, out: Path, kept: Path, question: Question | None
    ) -> Generator[Any, None, None]:
        """What crosses between processes is yielded, the report or the error last: of an error that is raised there,
        the library tells no more than its class."""
        try:
            told = yield from body(clip, settings, out, kept, question)
        except FreeMaskError as error:
            yield error
        else:
            yield told

    lent = spaces.GPU(duration=lambda clip, settings, *_: duration(sized(settings, clip), estimates))(whole)

    def borrowed(
        clip: Path, settings: Settings, out: Path, kept: Path, question: Question | None = None
    ) -> Generator[Step, None, dict[str, Any]]:
        last: Any = None
        with contextlib.closing(lent(clip, settings, out, kept, question)) as steps:
            for last in steps:  # to the end, where the GPU is given back
                if isinstance(last, Step):
                    yield last
        if isinstance(last, FreeMaskError):
            raise last
        if not isinstance(last, dict):
            raise RuntimeError("the borrowed GPU was taken back before the edit ended")
        return last

    return borrowed


def in_context(context: contextvars.Context, work: Generator[Step, None, Any]) -> Generator[Step, None, Any]:
    """A generator whose every step runs in the context of the request that asked for it, which ZeroGPU reads the
    visitor's share from."""
    try:
        while True:
            try:
                step = context.run(next, work)
            except StopIteration as end:
                return end.value
            yield step
    finally:
        work.close()
