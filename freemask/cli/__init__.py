"""`python -m freemask …`: thin commands over the same `Editor` as the page.

Every command that prints figures ends its standard output with one line of JSON that holds them. Input that
cannot be used ends with exit code 2 and one sentence, a model that cannot be loaded with 1.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..clips.strides import MOST_FRAMES
from ..errors import SettingError
from ..settings import make_settings, read_size
from ..steps import Step, mapped
from ..validation import refuse_unknown
from . import toyworld
from .batch import batch, score_batch
from .common import (
    BACKBONE,
    DTYPE,
    FEATURES,
    SIZED,
    console,
    load,
    load_or_full,
    processes,
    refusals,
    refuse_or_warn,
    told_when_stopped,
    watch,
)
from .edit import edit
from .tune import tune

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(toyworld.app, name="toyworld")
app.command()(tune)


@app.callback()
def main() -> None:
    """FreeMask: zero-shot, text-driven video editing with the masks that made the edit."""


app.command("edit")(edit)
app.command("batch")(batch)


@app.command()
def download(
    backbone: Annotated[str, typer.Argument(help="zeroscope, modelscope or a hub id.")],
) -> None:
    """Download a backbone's weights, after showing their licence and size; an interrupted download goes on.

    Only what is needed is fetched, and of each part the smallest file that is safe. `edit` and the page do the same
    when they first need a backbone.
    """
    with refusals():
        from ..families.specs import backbone_folder
        from ..families.weights import plan_downloads

        folder = backbone_folder(backbone)
        if folder is not None:
            raise SettingError(f"{backbone} is no download: it is the folder {folder}.")
        plans = plan_downloads(backbone)
        for plan in plans:
            console.print(str(plan), markup=False, soft_wrap=True)
        figures = [
            {"hub_id": plan.hub_id, "licence": plan.licence, "bytes": plan.bytes, "folder": str(plan.run())}
            for plan in plans
        ]
    console.print(f"Try it: python -m freemask selftest --backbone {backbone}", markup=False, soft_wrap=True)
    print(json.dumps({**figures[0], **({"motion_adapter": figures[1]} if figures[1:] else {})}))


@app.command()
def selftest(
    backbone: Annotated[str, typer.Option(help=BACKBONE)] = "mini",
    out: Annotated[Path, typer.Option(help="The folder for masks.png, the sheet of word maps.")] = Path("out/selftest"),
    steps: Annotated[int, typer.Option(help="Inversion steps.", min=2, max=200)] = 10,
    dtype: Annotated[str, typer.Option(help=DTYPE)] = "",
) -> None:
    """Test a backbone on a shipped clip: does it draw, invert, and look at the right words? The first thing to run.

    Says what each figure should be and what to do where it is not; ends with exit code 1 where it does not look right.
    """
    with refusals():
        refuse_or_warn(backbone)
        from ..bench import selftest_steps
        from ..families.devices import named_dtype

        figures = watch(selftest_steps(backbone, out, dtype=named_dtype(dtype), steps=steps))
    for line in figures.pop("words"):
        console.print(line, markup=False, soft_wrap=True)
    print(json.dumps(figures))
    if not figures["passed"]:
        raise typer.Exit(1)


@app.command()
def score(
    folder: Annotated[Path, typer.Argument(help="What an edit wrote: report.json and its videos; or a batch.")],
    five: Annotated[
        Path | None, typer.Option(help="FiVE-Bench's folder: its own figures of a batch that was made from it.")
    ] = None,
) -> None:
    """Score an edit: CLIP against its prompt and from frame to frame, SSIM and LPIPS against its source.

    Real clips are scored by CLIP ViT-L/14 and the Pick score, 1.7 and 4 GB from the hub on the first call; LPIPS wants
    `pip install lpips`. Masked figures are of what the edit was to keep.
    What is not to be had is null, with the reason. With --five: FiVE-Bench's figures by task and overall, beside ours,
    and those of each edit in five.jsonl (`pip install -r requirements-batch.txt`).
    """
    if five:
        return score_batch(folder, five)
    with refusals():
        from ..jobs.files import read_kept, read_report, read_videos
        from ..jobs.metrics import score as measure

        try:
            report = read_report(folder)
            settings, shape = report["settings"], report["clip"]
            prompts = {"source": settings["source"], "edit": settings["edit"], "backbone": settings["backbone"]}
            shown, kept = {"frames": shape["frames"], "fps": shape["fps"]}, report["mask"]["kept"]
        except (OSError, ValueError, KeyError, TypeError):
            raise SettingError(
                f"{folder} holds no report.json of an edit: give a folder that `edit --out` wrote."
            ) from None
        before, after = read_videos(folder, "source", "edited", **shown)
        figures = measure(before, after, **prompts, keep=read_kept(folder, kept, before.shape[:3]))
    print(json.dumps(figures))


@app.command()
def profile(
    backbone: Annotated[str, typer.Option(help=SIZED)] = "mini",
    steps: Annotated[int, typer.Option(help="Steps in each direction.", min=2, max=200)] = 10,
    frames: Annotated[int, typer.Option(help="How many frames.")] = 8,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT; the backbone's own where left out.")] = "",
    repeats: Annotated[int, typer.Option(help="Interleaved repetitions; medians are reported.", min=1)] = 5,
    ratio_steps: Annotated[
        int | None,
        typer.Option(help="Steps of each repetition; 6 on CUDA, else as --steps, where left out.", min=2, max=200),
    ] = None,
    features: Annotated[str, typer.Option(help=FEATURES + " Of the whole edit in the table.")] = "auto",
    dtype: Annotated[str, typer.Option(help=DTYPE)] = "",
) -> None:
    """Time inversion and edit against the plain UNet forwards that they cannot avoid, and against the arithmetic.

    A line with the table of one whole edit is printed as soon as it is there; the last line has all figures. Stopped by
    Ctrl-C or SIGTERM, it prints those that it has, of the whole edit what its stages took so far.
    """
    figures: dict[str, Any] = {}
    with refusals(), told_when_stopped(figures):
        make_settings(source="a car", edit="a bus", features=features)  # refused before anything is loaded
        shape = read_size(size)
        from ..bench import profile_steps

        editor = load_or_full(backbone, dtype)
        steps_of = profile_steps(
            editor,
            steps=steps,
            frames=frames,
            size=shape,
            repeats=repeats,
            features=features,
            ratio_steps=ratio_steps,
            figures=figures,
        )

        def told(step: Step) -> Step:
            figures["backbone"] = backbone  # "full" is not what the figures call it
            if (step.stage, step.index) == ("profile", 1):
                print(json.dumps(figures), flush=True)
            return step

        watch(mapped(steps_of, told))
    print(json.dumps(figures))


@app.command()
def levers(
    backbone: Annotated[str, typer.Option(help=SIZED)] = "mini",
    frames: Annotated[int, typer.Option(help="How many frames.", min=1)] = 8,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT; the backbone's own where left out.")] = "",
    lever: Annotated[list[str] | None, typer.Option(help="One of them by its name; may be given again.")] = None,
    rounds: Annotated[int, typer.Option(help="How often each is taken in turn with the plain forward.", min=2)] = 20,
    dtype: Annotated[str, typer.Option(help=DTYPE)] = "",
) -> None:
    """Time what might make a plain UNet forward faster, each alone, beside the forward as it is.

    On 2 CPU cores mini takes some minutes, most of them in torch.compile.
    """
    with refusals():
        shape = read_size(size)
        from ..bench import LEVERS, lever_steps

        for name in lever or ():
            refuse_unknown("lever", name, LEVERS)
        editor = load_or_full(backbone, dtype)
        figures = watch(lever_steps(editor, frames=frames, size=shape, only=lever or (), rounds=rounds))
    print(json.dumps(figures | {"backbone": backbone}))


@app.command()
def calibrate(
    dataset: Annotated[
        Path | None, typer.Argument(help="A folder of clips: <clip>/frames/*, <clip>/masks/*, <clip>/prompt.yaml.")
    ] = None,
    suite: Annotated[str, typer.Option(help="toyworld: rendered scenes in the place of a folder.")] = "",
    out: Annotated[Path, typer.Option(help="The codebook (JSON); the figure goes beside it.")] = Path("codebook.json"),
    backbone: Annotated[str, typer.Option(help=BACKBONE)] = "mini",
    clips: Annotated[int, typer.Option(help="How many scenes of the suite.", min=1)] = 60,
    steps: Annotated[int, typer.Option(help="Inversion steps.", min=2, max=200)] = 25,
    frames: Annotated[int, typer.Option(help="How many frames of each clip.", min=1, max=MOST_FRAMES)] = 8,
    tau: Annotated[float, typer.Option(help="Mask threshold, between 0 and 1.")] = 0.4,
    dtype: Annotated[str, typer.Option(help=DTYPE)] = "",
) -> None:
    """Measure a backbone's codebook on clips with known masks: its best site and timestep.

    Inverts every clip once: on 2 CPU cores mini takes about 8 seconds a clip. An interrupted run goes on where it
    stopped when the same command runs again.
    """
    with refusals():
        if (dataset is None) == (suite == "") or suite not in ("", "toyworld"):
            raise SettingError("Give a folder of clips, or --suite toyworld.")
        if not 0 < tau < 1:
            raise SettingError(f"tau is {tau}. Allowed: 0 to 1, ends excluded.")
        refuse_or_warn(backbone)
        from dataclasses import asdict

        from ..bench import calibrate_steps, davis_samples, example_maps, toyworld_samples
        from ..masks.mmc import write_codebook
        from ..pictures.sheets import save_codebook_figure

        samples = davis_samples(dataset) if dataset else toyworld_samples(clips)
        editor = load(backbone, dtype)
        part = out.with_suffix(".part")
        out.parent.mkdir(parents=True, exist_ok=True)
        name = dataset.resolve().name if dataset else suite
        book = watch(calibrate_steps(editor, samples, dataset=name, part=part, steps=steps, frames=frames, tau=tau))
        write_codebook(out, book)
        first = next(sample for sample in samples if sample.name == book.clips[0].name)
        frame, maps = example_maps(editor, first, steps=steps, frames=frames)
        save_codebook_figure([out.with_suffix(".png"), out.with_suffix(".pdf")], asdict(book), frame, maps)
        part.unlink(missing_ok=True)
    for reason in book.skipped:
        console.print(f"Skipped {reason}", markup=False, soft_wrap=True)
    figures = {
        "backbone": book.backbone,
        "dataset": book.dataset,
        "clips": len(book.clips),
        "skipped": len(book.skipped),
        "site": book.site,
        "timestep": book.timestep,
        "capped": book.capped,
        "candidates": book.candidates,
        "best_iou": max(map(max, book.iou)),
    }
    print(json.dumps(figures))


@app.command()
def benchmark(
    out: Annotated[Path, typer.Option(help="The folder for the table, the figure and the strips of frames.")],
    suite: Annotated[
        str,
        typer.Option(help="toyworld: rendered scenes, whose true edits are known; toyworld-pairs: of two objects."),
    ] = "toyworld",
    limit: Annotated[int, typer.Option(help="Scenes a task.", min=1)] = 12,
    tasks: Annotated[
        str,
        typer.Option(help="A list with commas; left out: all. Of pairs: colours, objects, one, swap, all (of these)."),
    ] = "",
    methods: Annotated[
        str, typer.Option(help="A list with commas; left out: all but videodirector's, or with motion modules those.")
    ] = "",
    backbone: Annotated[str, typer.Option(help="mini or a folder.")] = "mini",
    steps: Annotated[int, typer.Option(help="Steps in each direction.", min=2, max=200)] = 12,
    guidance: Annotated[
        float | None, typer.Option(help="Classifier-free guidance; the backbone's own.", min=1, max=30)
    ] = None,
    frames: Annotated[int, typer.Option(help="How many frames.", min=2, max=MOST_FRAMES)] = 8,
    seed: Annotated[int, typer.Option(help="The first scene's seed.")] = 3_000_000,
    workers: Annotated[int | None, typer.Option(help="Processes; one a core without a GPU when left out.")] = None,
) -> None:
    """Edit scenes whose true result is known by every method, and print the table.

    All of it (4 tasks of 12 scenes, 23 methods, 12 steps) takes about 75 minutes on 2 CPU cores.
    An interrupted run goes on where it stopped when the same command runs again, and measures only methods whose
    settings have changed since.
    """
    with refusals():
        refuse_unknown("suite", suite, ["toyworld", "toyworld-pairs"])
        refuse_or_warn(backbone)
        from ..bench import METHODS, Options, benchmark_steps, markdown, save_figure, usual_methods
        from ..bench.pairs import PAIR_METHODS, pair_markdown, pairs_steps
        from ..families.specs import usual_guidance
        from ..jobs.run import load_editor
        from ..toyworld.cases import CASE_TASKS
        from ..toyworld.pairs import PAIR_CASES

        pairs = suite == "toyworld-pairs"
        chosen: dict[str, tuple[str, ...]] = {}
        every, kinds = (PAIR_METHODS, PAIR_CASES) if pairs else (METHODS, tuple(CASE_TASKS))
        for name, given, known in (("task", tasks, kinds), ("method", methods, every)):
            chosen[name] = tuple(one.strip() for one in given.split(",") if one.strip())
            for one in chosen[name]:
                refuse_unknown(name, one, known)
        guidance = usual_guidance(backbone) if guidance is None else guidance
        asked = chosen["method"] or (PAIR_METHODS if pairs else usual_methods(backbone))
        options = Options(methods=asked, steps=steps, guidance=guidance, frames=frames)
        editor = load_editor(backbone)
        about: dict[str, Any] = {"limit": limit, "seed": seed, "workers": processes(workers, editor)}
        if pairs:
            measured = pairs_steps(backbone, out, options, kinds=chosen["task"] or kinds, **about)
        else:
            measured = benchmark_steps(backbone, out, options, tasks=chosen["task"] or kinds, **about)
        table = watch(measured)
        text = pair_markdown(table) if pairs else markdown(table)
        (out / "table.json").write_text(json.dumps(table, indent=1) + "\n")
        (out / "table.md").write_text(text + "\n")
        if not pairs:
            save_figure(out / "table.png", table)
    console.print(text, markup=False, soft_wrap=True)
    print(json.dumps(table))
