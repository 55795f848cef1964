"""Long work as a generator of small events, so that bars, previews and cancelling belong to the caller."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, TypeVar

__all__ = ["Step", "Steps", "finish", "mapped"]


@dataclass(frozen=True)
class Step:
    """One piece of work was done: the `index`-th of `total` in `stage` (index counts from 1).

    `timestep` is the diffusion timestep the step left, where it has one; `picture` a glance at the work, where the
    work gives one; `result` what can be shown already, though the work goes on.
    """

    stage: str
    index: int
    total: int
    timestep: int | None = None
    picture: Any = field(default=None, compare=False, repr=False)
    result: Any = field(default=None, compare=False, repr=False)


T = TypeVar("T")
Steps = Generator[Step, None, T]


def mapped(steps: Steps[T], change: Callable[[Step], Step]) -> Steps[T]:
    """The same steps, each as `change` makes it."""
    with closing(steps):
        while True:
            try:
                step = next(steps)
            except StopIteration as stop:
                return stop.value
            yield change(step)


def finish(steps: Steps[T], told: Callable[[Step], object] | None = None) -> T:
    """Runs a generator of steps to its end and gives what it returns; `told` hears of each step."""
    while True:
        try:
            step = next(steps)
            if told:
                told(step)
        except StopIteration as stop:
            return stop.value
