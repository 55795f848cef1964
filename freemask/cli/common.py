"""What the commands share: refusals in one sentence, a progress bar, and how a backbone is loaded."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..errors import FreeMaskError, InputError, SettingError
from ..steps import Step, finish

if TYPE_CHECKING:
    from pathlib import Path

    from ..methods.editor import Editor
    from ..settings import Settings

__all__ = [
    "BACKBONE",
    "DTYPE",
    "FEATURES",
    "SIZED",
    "console",
    "load",
    "load_or_full",
    "processes",
    "read_fps",
    "refusals",
    "refuse_or_warn",
    "told_when_stopped",
    "warn_of_outside",
    "watch",
]

BACKBONE = "mini, mini-sd, mini-motion, mini-wan, zeroscope, modelscope, sd15, animatediff, wan, a hub id or a folder."
SIZED = "full or full-wan (zeroscope's and Wan's size with random weights), " + BACKBONE
DTYPE = "fp16, bf16 or fp32 (not on CUDA); left out: fp16 on CUDA, else fp32."
FEATURES = "Where the source's features come from: auto, replay, store or host."
console = Console(stderr=True, highlight=False)


@contextmanager
def refusals() -> Iterator[None]:
    """Turns our errors into one sentence and an exit code."""
    try:
        yield
    except FreeMaskError as error:
        console.print(f"freemask: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(2 if isinstance(error, InputError) else 1) from None


@contextmanager
def told_when_stopped(figures: dict[str, Any]) -> Iterator[None]:
    """Ctrl-C or SIGTERM, such as a time limit's, ends the work inside with the `figures` known so far as JSON."""

    def stop(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        print(json.dumps(figures), flush=True)
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def watch(steps: Generator[Step, None, Any]) -> Any:
    """Runs steps under a progress bar with an ETA on standard error; returns their result."""
    columns = (
        TextColumn("{task.description:>12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        tasks: dict[str, Any] = {}

        def hear(step: Step) -> None:
            if step.stage not in tasks:
                tasks[step.stage] = progress.add_task(step.stage, total=step.total)
            progress.update(tasks[step.stage], completed=step.index)

        return finish(steps, hear)


def warn_of_outside(clip: Path, settings: Settings) -> None:
    """Tells before a long edit that a toy backbone has never seen such clips."""
    from ..families.specs import known_words
    from ..jobs.verdict import outside

    if known_words(settings.backbone) is None:
        return
    from ..toyworld.likeness import clip_likeness

    found = clip_likeness(clip, frames=settings.frames, start=settings.start, fps=settings.fps)
    told = outside(found, settings.source)
    if told:
        console.print(f"Warning: {told}", markup=False, soft_wrap=True)


def refuse_or_warn(backbone: str) -> None:
    """Raises BackboneError where a backbone's weights are not to be had; says so where it will be slow."""
    from ..families.reach import missing_gpu, missing_weights, refusal

    if met := missing_weights(backbone):
        raise refusal(backbone, met)
    if met := missing_gpu(backbone):
        slow = f"Note: {backbone} is made for a GPU, and {met.why} here: this may take hours."
        console.print(slow, markup=False, soft_wrap=True)


def processes(given: int | None, editor: Editor) -> int:
    """How many processes measure: one a core without a GPU, this one alone (0) with."""
    if given is not None:
        return given
    return (os.cpu_count() or 1) if editor.backbone.device.type == "cpu" else 0


def read_fps(text: str) -> float | None:
    """Frames a second as people write them; None for "auto"."""
    if text == "auto":
        return None
    try:
        return float(text)
    except ValueError:
        raise SettingError(f"fps is {text!r}: write a number, such as 8, or auto.") from None


def load(backbone: str, dtype: str, low_vram: bool = False) -> Editor:
    """The editor in the precision asked for; one that cannot be is refused before anything is loaded."""
    from ..families.devices import named_dtype
    from ..methods.editor import Editor

    return Editor.load(backbone, dtype=named_dtype(dtype), low_vram=low_vram)


def load_or_full(backbone: str, dtype: str) -> Editor:
    """A backbone's, or one of zeroscope's or Wan's size with random weights, which "full" and "full-wan" name."""
    if not backbone.startswith("full"):
        refuse_or_warn(backbone)
        return load(backbone, dtype)
    from ..bench import FULL
    from ..families.devices import named_dtype
    from ..methods.editor import Editor
    from ..validation import refuse_unknown

    refuse_unknown("size", backbone, FULL)
    return Editor(FULL[backbone](dtype=named_dtype(dtype)))
