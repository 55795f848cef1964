"""`python -m freemask edit`: one edit of one clip; its options are the `Settings`, each by its name."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from ..settings import Settings, fast_settings, infer_settings, read_settings, read_size
from .common import DTYPE, console, load, read_fps, refusals, refuse_or_warn, warn_of_outside, watch

__all__ = ["asked_settings", "edit"]


READ = {"fps": read_fps, "size": read_size}  # of what is written in a form of its own


def _written(name: str, hint: Any) -> type:
    """The type in which a command takes a setting."""
    while get_origin(hint) is not None and get_args(hint) and hint not in (int, float, bool, Path):
        if get_origin(hint) is tuple or name in READ:
            return str
        hint = next(one for one in get_args(hint) if one is not type(None))
    return hint if hint in (int, float, bool, Path) else str


def edit(
    clip: Annotated[Path, typer.Argument(help="The video or picture to edit.")],
    out: Annotated[Path, typer.Option(help="The folder for the results.")],
    settings_file: Annotated[
        Path | None,
        typer.Option("--settings", help="The settings.json of another edit; options given replace its own."),
    ] = None,
    fast: Annotated[
        bool,
        typer.Option(
            "--fast", help="--steps 15 --solver dpm, and no null-text optimisation: about as good as 50 of ddim."
        ),
    ] = False,
    every: Annotated[
        bool,
        typer.Option("--all/--few", help="Also the GIF, the comparison, the sheet of maps and the maps as arrays."),
    ] = True,
    dtype: Annotated[str, typer.Option(help=DTYPE)] = "",
    **options: Any,
) -> None:
    """Edit a clip by text; writes the videos, the masks and report.json into --out."""
    from ..jobs.check import check

    with refusals():
        given = {name: READ.get(name, lambda one: one)(one) for name, one in options.items() if one is not None}
        settings = asked_settings(settings_file, fast, given)
        chosen = check(clip, settings).word
        refuse_or_warn(settings.backbone)
        inferred = "" if settings.word else " (inferred; --word overrides it)"
        console.print(f"Edited word: {chosen}{inferred}", markup=False)
        from ..jobs.run import run_steps  # torch is imported only once the input is known to be good
        from ..toyworld.likeness import likeness

        warn_of_outside(clip, settings)
        editor = load(settings.backbone, dtype, settings.low_vram) if dtype else None
        report = watch(run_steps(clip, settings, out, editor=editor, likeness=likeness, extras=every))
    for warning in report["words"]["warnings"]:
        console.print(f"Note: {warning}", markup=False, soft_wrap=True)
    verdict = " ".join([f"Verdict: {report['verdict']['level']}.", *report["verdict"]["sentences"]])
    console.print(verdict, markup=False, soft_wrap=True)
    print(json.dumps(report))


def asked_settings(file: Path | None, fast: bool, given: dict[str, Any]) -> Settings:
    """The settings of a file, the quick ones and those given, each before those named after it; what none names is
    inferred. Raises as `infer_settings` does."""
    values: dict[str, Any] = read_settings(file) if file else {}
    values |= fast_settings(str((values | given).get("method") or Settings.method)) if fast else {}
    values |= given
    settings = infer_settings(values)
    if values.get("task") in (None, ""):
        console.print(f"Task: {settings.task} (inferred; --task overrides it)", markup=False)
    return settings


def _options() -> list[inspect.Parameter]:
    """An option for each setting, None where it is left out."""
    hints, made = get_type_hints(Settings), []
    for name, told in Settings.told().items():
        usual = getattr(Settings, name, None)
        shown = str(usual) if usual and name not in ("task", "guidance") else False
        option: Any = Annotated[_written(name, hints[name]) | None, typer.Option(help=told, show_default=shown)]
        made.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option))
    return made


_own = [one for one in inspect.signature(edit, eval_str=True).parameters.values() if one.name != "options"]
edit.__signature__ = inspect.Signature([*_own, *_options()])  # type: ignore[attr-defined]
