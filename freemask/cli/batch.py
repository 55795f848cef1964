"""`python -m freemask batch`: the edits of a manifest, on the machines that there are."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ..errors import SettingError
from ..settings import read_settings
from ..steps import Step, Steps
from .common import console, refusals, told_when_stopped, watch

__all__ = ["batch", "score_batch"]


def batch(
    manifest: Annotated[
        Path, typer.Argument(help="CSV, JSONL or YAML: clip, source, edit and any setting; or a folder of FiVE-Bench.")
    ],
    out: Annotated[Path, typer.Option(help="The folder for all results; run again, it goes on where it stopped.")],
    settings_file: Annotated[
        Path | None,
        typer.Option("--settings", help="A settings.json whose values are those of rows without their own."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="How many edits at once; one a GPU, or a core, when left out.", min=1)
    ] = None,
    part: Annotated[
        str, typer.Option("--shard", help="I/N: only the I-th of N parts, in this process and without Ray.")
    ] = "",
    every: Annotated[
        bool,
        typer.Option("--all/--few", help="Also the GIF, the comparison and every word's maps."),
    ] = False,
) -> None:
    """Make thousands of edits: one inversion serves all of a clip, and an edit that fails is a row of the results.

    Writes edits/, results.jsonl, results.parquet and index.html into --out. Several workers run on Ray
    (`pip install -r requirements-batch.txt`), on the cluster that RAY_ADDRESS names where it is set.
    """
    figures: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    with refusals(), told_when_stopped(figures):
        if part and workers:
            raise SettingError("A shard is made in this process alone: leave --workers out, or --shard.")
        from ..batch.manifest import grouped, read_manifest, shard

        edits = read_manifest(manifest, read_settings(settings_file) if settings_file else None)
        groups = shard(grouped(edits), part) if part else grouped(edits)
        from ..batch.engine import run_groups
        from ..batch.work import begin, is_done, make_group

        begin(out, [edit for group in groups for edit in group] + [edit for edit in edits if edit.wrong])
        groups = [left for group in groups if (left := [edit for edit in group if not is_done(out, edit)])]
        console.print(_told(edits, groups, out), markup=False, soft_wrap=True)
        try:
            made = (
                (folder for group in groups for folder in make_group(out, group, extras=every))
                if part
                else run_groups(out, groups, workers=workers, extras=every)
            )
            with closing(made):
                watch(_counted(made, sum(map(len, groups))))
        except KeyboardInterrupt:
            console.print("Stopped; what is done stays, and the same command goes on.", markup=False)
            raise
        finally:
            rows = _write(out, edits)
            figures |= {state: sum(row["state"] == state for row in rows) for state in ("done", "failed", "open")}
            figures |= {"edits": len(rows), "index": str(out / "index.html")}
    for row in rows:
        if row["state"] == "failed":
            console.print(f"{row['name']}: {row['error']}", markup=False, soft_wrap=True)
    print(json.dumps(figures))


def _counted(made: Iterable[str], total: int) -> Steps[None]:
    """A step for each edit that was dealt with."""
    for index, _ in enumerate(made, 1):
        yield Step("edits", index, total)


def _told(edits: list[Any], groups: list[list[Any]], out: Path) -> str:
    """What is about to be done."""
    wrong = sum(bool(edit.wrong) for edit in edits)
    told = f"{sum(map(len, groups))} of {len(edits)} edits to make into {out}, with {len(groups)} inversions."
    return told + (f" {wrong} cannot be made as they are written; the results say why." if wrong else "")


def _write(out: Path, edits: list[Any]) -> list[dict[str, Any]]:
    """The results as files: lines of JSON, a table where its library is there, and the page."""
    from ..batch.index import write_index
    from ..batch.work import collect
    from ..clips.ffmpeg import whole

    rows = collect(out, edits)
    with whole(out / "results.jsonl") as file:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        console.print("results.parquet wants pyarrow: pip install -r requirements-batch.txt.", markup=False)
    else:
        with whole(out / "results.parquet") as file:
            parquet.write_table(arrow.Table.from_pylist(rows), file)
    write_index(out / "index.html", rows)
    return rows


def score_batch(folder: Path, five: Path) -> None:
    """FiVE-Bench's figures of a batch's folder: each edit's into five.jsonl, the means as a table and as JSON."""
    with refusals():
        from ..batch.five import is_five, means, score_five

        if not is_five(five):
            raise SettingError(f'"{five}" is no folder of FiVE-Bench: give the one that holds edit_prompt and videos.')
        try:
            lines = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) for line in lines]
        except (OSError, ValueError):
            raise SettingError(f'"{folder}" holds no results.jsonl: give the --out of a batch.') from None
        scored = score_five(folder, five, rows)
        (folder / "five.jsonl").write_text("".join(json.dumps(one) + "\n" for one in scored), encoding="utf-8")
        table = means(scored)
    for name, reason in {name: reason for one in scored for name, reason in one["absent"].items()}.items():
        console.print(f"{name}: {reason}", markup=False, soft_wrap=True)
    shown = Table("", *(f"{row['task']} ({row['edits']})" for row in table))
    for name in [name for name in table[-1] if name not in ("task", "edits") and table[-1][name] is not None]:
        shown.add_row(name, *("" if row[name] is None else f"{row[name]:.4g}" for row in table))
    console.print(shown)
    print(json.dumps(table))
