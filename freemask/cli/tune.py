"""`python -m freemask tune`: an image model learns one clip before the clip is edited."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..settings import read_size
from ..validation import validated
from .common import console, read_fps, refusals, refuse_or_warn, watch

__all__ = ["tune"]


def tune(
    clip: Annotated[Path, typer.Argument(help="The video that will be edited.")],
    source: Annotated[str, typer.Option(help="What the clip shows.")],
    out: Annotated[Path, typer.Option(help="The folder for the tuned backbone, new or empty.")],
    backbone: Annotated[str, typer.Option(help="An image model: mini-sd, sd15, a hub id or a folder.")] = "mini-sd",
    steps: Annotated[int, typer.Option(help="Steps in all.")] = 300,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 3e-5,
    frames: Annotated[int, typer.Option(help="How many frames.")] = 8,
    start: Annotated[float, typer.Option(help="Where to begin, in seconds.")] = 0.0,
    fps: Annotated[str, typer.Option(help="Frames a second, or auto.")] = "auto",
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT; the backbone's own where left out.")] = "",
    seed: Annotated[int, typer.Option(help="Of the noise and of the new layers.")] = 0,
) -> None:
    """Tune an image model on a clip, as FateZero does before it edits shapes (Tune-A-Video); then edit the clip with
    --backbone OUT.

    An interrupted tuning goes on where it stopped when the same command runs again, and a finished one with more
    --steps. With mini-sd 300 steps take about 3 minutes of one CPU core.
    """
    with refusals():
        from ..jobs.tuning import Tuning, tune_steps

        tuning = validated(
            Tuning,
            dict(
                source=source,
                backbone=backbone,
                steps=steps,
                lr=lr,
                frames=frames,
                start=start,
                fps=read_fps(fps),
                size=read_size(size),
                seed=seed,
            ),
            "",
        )
        refuse_or_warn(backbone)
        figures = watch(tune_steps(clip, tuning, out))
    console.print(f"Edit with it: python -m freemask edit … --backbone {out}", markup=False, soft_wrap=True)
    print(json.dumps(figures))
