"""`python -m freemask toyworld …`: train, judge and show the rendered world that mini knows."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ..validation import refuse_unknown
from .common import console, processes, refusals, watch

__all__ = ["app"]

FAMILY = (
    "unet3d, as mini; inflated: an image model, as mini-sd, of frames alone; motion: modules for --init mini-sd's; "
    "wan: a transformer that follows a flow, which --init mini lends its words and autoencoder."
)
SIZE = "Side of a frame in pixels; below 128 latents are of patches of 4 pixels, not 8. [128; judges 64]"
STAGES = ("decoder", "frames", "clips", "classifier", "clip")
app = typer.Typer(no_args_is_help=True, help="The rendered world that the mini backbone was trained on.")


@app.command()
def train(
    stage: Annotated[str, typer.Argument(help="decoder, frames, clips, in this order; or a judge: classifier, clip.")],
    run: Annotated[Path, typer.Option(help="The folder for checkpoints, logs and sample sheets.")],
    steps: Annotated[
        int | None, typer.Option(help="Steps; for frames and clips, more of them. [4000; clip 2000]")
    ] = None,
    minutes: Annotated[float, typer.Option(help="How long (decoder).")] = 25,
    batch: Annotated[int, typer.Option(help="Frames or clips a step (frames, clips).")] = 32,
    lr: Annotated[float, typer.Option(help="Peak learning rate (frames, clips).")] = 2e-3,
    scenes: Annotated[int, typer.Option(help="How many scenes are rendered to learn from.", min=1)] = 24_000,
    frames: Annotated[
        int, typer.Option(help="Of a clip; with fewer than 8 mini learns words alone (clips).", min=1)
    ] = 8,
    pairs: Annotated[bool, typer.Option(help="A third of the scenes have two objects (frames, clips).")] = False,
    size: Annotated[int | None, typer.Option(help=SIZE)] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda; judges train on the CPU.")] = "cpu",
    init: Annotated[
        Path | None, typer.Option(help="A backbone folder whose weights begin a new run (frames, clips).")
    ] = None,
    family: Annotated[str, typer.Option(help=FAMILY)] = "unet3d",
    graph: Annotated[bool, typer.Option(help="On a GPU, the step as one CUDA graph (frames, clips).")] = True,
) -> None:
    """Train a toy backbone, resuming from the run's checkpoints, or one of the models that judge its clips."""
    with refusals():
        refuse_unknown("stage", stage, STAGES)
        from ..toyworld.classify import train_classifier
        from ..toyworld.clip import train_clip
        from ..toyworld.decoder import train_decoder
        from ..toyworld.models import Recipe
        from ..toyworld.train import train_unet

        recipe = replace(Recipe.of(size or Recipe.size, family), scenes=scenes, frames=frames, pairs=pairs)
        if stage == "decoder":
            train_decoder(run, recipe, minutes=minutes, device=device)
        elif stage in ("frames", "clips"):
            steps = steps or 4000
            train_unet(run, recipe, stage=stage, steps=steps, batch=batch, lr=lr, device=device, init=init, graph=graph)
        elif stage == "classifier":
            train_classifier(run / "classifier.safetensors", size=size or 64, steps=steps or 4000)
        else:
            train_clip(run / "clip", size=size or 64, steps=steps or 2000)


@app.command()
def export(
    run: Annotated[Path, typer.Option(help="The folder of a training run.")],
    out: Annotated[Path, typer.Option(help="Where the backbone is saved.")],
    size: Annotated[int, typer.Option(help=SIZE)] = 128,
    family: Annotated[str, typer.Option(help=FAMILY)] = "unet3d",
) -> None:
    """Save a run's newest averaged weights as a backbone folder."""
    from ..toyworld.models import Recipe
    from ..toyworld.models import export as save

    with refusals():
        save(run, Recipe.of(size, family), out)


@app.command()
def evaluate(
    backbone: Annotated[str, typer.Option(help="mini or a folder.")] = "mini",
    clips: Annotated[int, typer.Option(help="How many scenes.", min=1)] = 64,
    steps: Annotated[int, typer.Option(help="Steps in each direction.")] = 25,
    seed: Annotated[int, typer.Option(help="The first scene's seed.")] = 3_000_000,
    guidance: Annotated[
        float | None, typer.Option(help="Classifier-free guidance of the generated clips; the backbone's own.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; one a core without a GPU when left out.")] = None,
) -> None:
    """Measure a backbone on the toy world: what it draws, how it reconstructs, where its words look."""
    with refusals():
        from ..jobs.run import load_editor
        from ..toyworld.evaluate import evaluate_steps

        editor = load_editor(backbone)
        figures = watch(
            evaluate_steps(
                editor, clips=clips, steps=steps, seed=seed, guidance=guidance, workers=processes(workers, editor)
            )
        )
    for name, value in figures.items():
        console.print(f"{name:>20}: {value}", markup=False)
    print(json.dumps(figures))


@app.command()
def render(
    out: Annotated[Path, typer.Argument(help="The MP4 to write.")],
    seed: Annotated[int, typer.Option(help="The scene; the options below replace its fields.")] = 0,
    object: Annotated[str, typer.Option(help="car, jeep, bus, …")] = "",
    colour: Annotated[str, typer.Option(help="red, yellow, …, or none.")] = "",
    place: Annotated[str, typer.Option(help="grass, snow, …")] = "",
    style: Annotated[str, typer.Option(help="sketch, watercolor, pixel, or none.")] = "",
    size: Annotated[int, typer.Option(help="Side of a frame in pixels.", min=16)] = 256,
    frames: Annotated[int, typer.Option(help="How many frames.", min=1)] = 8,
) -> None:
    """Render a scene of the toy world, a clip whose every word mini knows."""
    from dataclasses import replace

    from ..clips.video import Clip, write_clip
    from ..toyworld.scenes import COLOURS, OBJECTS, PLACES, STYLES, sample_scene
    from ..toyworld.scenes import render as draw

    with refusals():
        fields: dict[str, str | None] = {}
        given: dict[str, tuple[str, Collection[str]]] = {
            "object": (object, OBJECTS),
            "colour": (colour, COLOURS),
            "place": (place, PLACES),
            "style": (style, STYLES),
        }
        for name, (value, known) in given.items():
            if value == "none" and name in ("colour", "style"):
                fields[name] = None
            elif value:
                refuse_unknown(name, value, known)
                fields[name] = value
        scene = draw(replace(sample_scene(seed), **fields), size, frames=frames)  # type: ignore[arg-type]
        write_clip(out, Clip(scene.frames, 8.0))
    print(json.dumps({"caption": scene.caption, "frames": frames, "size": size}))


@app.command()
def showcase(
    static: Annotated[Path, typer.Option(help="The folder that the page serves.")] = Path("static"),
) -> None:
    """Make the edits that ship with the page's examples, and the pictures of its task cards (some minutes on a CPU)."""
    with refusals():
        from ..toyworld.showcase import showcase_steps

        made = watch(showcase_steps(static))
    print(json.dumps([str(folder) for folder in made]))
