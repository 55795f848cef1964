"""How long each stage of an edit takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TypeVar

from ..steps import Steps

__all__ = ["Clock"]

T = TypeVar("T")


class Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, start)

    def add(self, stage: str, start: float) -> None:
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.perf_counter() - start, 4)

    def follow(self, steps: Steps[T], last: str) -> Steps[T]:
        """The same steps, each counted to its own stage, and what comes after them to the `last`."""
        with closing(steps):
            while True:
                start, stage = time.perf_counter(), last
                try:
                    step = next(steps)
                    stage = step.stage
                except StopIteration as stop:
                    return stop.value
                finally:
                    self.add(stage, start)
                yield step
