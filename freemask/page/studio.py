"""The studio: players and attention explorer of a finished edit, drawn in the browser by `static/studio/`.

Python gives it the files and their index, and hears which mask the visitor picked or painted there. What it hears is
not trusted: a cell is validated like any setting, a painting must fill its shape.
"""

from __future__ import annotations

import html
import json
from dataclasses import asdict
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np

from ..clips.strides import MOST_FRAMES
from ..errors import SettingError
from ..families.sites import short_site
from ..pictures.sheets import Ink, curves_figure
from ..pictures.word_maps import read_index, word_file, word_sheet
from ..settings import DRAWN, NULL_TEXT
from ..words.differences import align_phrases
from ..words.positions import numbered
from ..words.prompts import align, find_word, words
from . import status
from .changes import change_shown, with_cell
from .curves import first_tau
from .desk import VIDEOS
from .fields import changed_fields, fill_run, link, same_clip
from .visits import Run
from .wire import file_data, hear, shown

if TYPE_CHECKING:
    from ..masks.mmc import Codebook

__all__ = [
    "draw_masks",
    "open_studio",
    "open_tabs",
    "take_bend",
    "take_cell",
]

WHY = {
    "measured": "Mask Matching Cost chose {}: the lowest points of the curves.",
    "adaptive": "Of this clip's maps, {} gives the mask: it is nearest to what the sharper ones agree on.",
    "consensus": "The mask is what this clip's sharper maps, outlined, agree on. The nearest single one: {}.",
    "picked": "You picked {}.",
    "painted": "The mask in use was painted or uploaded.",
    "fallback": "No codebook was measured for this backbone, so the mask is that of {}.",
    "level": "This task's mask is the mean of one grid's layers, at the same timestep.",
    "mean": "This task's mask is the mean of all layers.",
    "none": "This task fuses without a mask.",
}


def open_studio(run: Run | None) -> dict[str, Any] | None:
    """Everything that `static/studio/` draws from, or None before the first edit; files are fetched by the browser. The
    reconstruction may be yet to come."""
    if run is None:
        return None
    from ..masks.mmc import read_codebook

    index, report = read_index(run.folder), run.report
    settings = report["settings"]
    book = read_codebook(settings["backbone"])
    aligned = align_phrases if settings.get("changes") else align  # as the edit was made
    change = aligned(settings["source"], settings["edit"])
    known = len(index["tokens"]) - len(index["edit_words"])
    own = {j: known + n for n, j in enumerate(index["edit_words"])}
    tokens = index.pop("tokens")
    index["words"] = [
        {"text": token, "name": name, "maps": file_data(word_file(run.folder, k))}
        for k, (token, name) in enumerate(zip(tokens, numbered(tokens), strict=True))
    ]
    return index | {
        "run": run.folder.name,
        "videos": {name: file_data(path) for name in VIDEOS if (path := run.folder / f"{name}.mp4").exists()},
        "drawn": report.get("inversion") == DRAWN,
        "fps": report["clip"]["fps"],
        "size": [report["clip"]["width"], report["clip"]["height"]],
        "edit_words": [
            {"text": text, "at": own.get(j, change.source_of[j])} for j, text in enumerate(words(settings["edit"]))
        ],
        "source_words": known,
        "word": find_word(settings["source"], report["words"]["word"]),
        "changes": [
            find_word(settings["source"], one["word"])
            for one in settings.get("changes") or []
            if one["task"] != "place"
        ],
        "reason": status.note(_reason(report)),
        "tau": first_tau(report),
        "cell": _cell(report, index["timesteps"], book.timestep if book else None),
        **_costs(book, index),
    }


def _cell(report: dict[str, Any], timesteps: list[int], best: int | None) -> dict[str, Any]:
    """The cell to look at first: the mask's own or the nearest to it; where each step has its own, t*'s."""
    own = report["mask"]["timestep"]
    wanted = own if own != "every" else timesteps[len(timesteps) // 2] if best is None else best
    return {"site": report["mask"]["site"], "timestep": min(timesteps, key=lambda t: abs(t - wanted))}


def _reason(report: dict[str, Any]) -> str:
    mask = report["mask"]
    place = f"<b>{html.escape(short_site(mask['site']))}</b>"
    when = "at every timestep its own" if mask["timestep"] == "every" else f"at timestep <b>{mask['timestep']}</b>"
    reason = mask["origin"] if mask["kind"] == "mmc" or mask["origin"] == "painted" else mask["kind"]
    told = WHY[reason].format(f"{place}, {when}")
    if not report.get("changes"):
        return told
    word = html.escape(report["words"]["word"])
    return f"The mask in use is that of all changes together. Of <b>{word}</b>: {told[0].lower()}{told[1:]}"


def _costs(book: Codebook | None, index: dict[str, Any]) -> dict[str, Any]:
    """The codebook's curves on this edit's sites and timesteps; null where no codebook was measured."""
    if book is None:
        return {"lmmc": None, "tmmc": None}
    by_site = dict(zip(book.sites, book.lmmc, strict=True))
    return {
        "lmmc": [by_site.get(site["name"]) for site in index["sites"]],
        "tmmc": np.interp(index["timesteps"], book.timesteps, book.tmmc).round(3).tolist(),
    }


def _link(run: Run | None) -> str:
    """A link that fills the page's fields with a run's settings."""
    if run is None:
        return ""
    query = html.escape(link(run.report["settings"]))
    return status.note(
        f'<a href="{query}" target="_blank" rel="noopener">Link to these settings</a> (all but the clip)'
    )


def _null_text(run: Run | None) -> Any:
    """The curve of a run's null-text optimisation, where it had one."""
    curve = run.folder / NULL_TEXT if run else None
    return gr.Image(str(curve), visible=True) if curve and curve.exists() else gr.Image(None, visible=False)


def take_cell(run: Run | None, event: gr.EventData) -> list[Any]:
    """A picked layer, and a timestep or each step's own, as fields of the next edit of the clip that is shown."""
    if run is None:
        raise shown(SettingError("There is no edit yet: edit a clip first."))
    timestep = hear(event, "timestep", lambda told: "" if told is None else str(int(told)))
    cell = {"site": short_site(hear(event, "site", str)), "timestep": timestep}
    tau = hear(event, "tau", float)
    if changes := run.report["settings"].get("changes"):
        at = change_shown(run, event)
        if at is not None:
            changes = with_cell(changes, at, cell | {"tau": round(tau, 2)})
        return same_clip(run, changes=json.dumps(changes))
    return same_clip(run, selection="", masks=None, tau=f"{tau:.2f}", **cell)


def take_bend(run: Run | None, event: gr.EventData) -> list[Any]:
    """A bend of a word's attention, as a field of the edit that is shown, all others as it had them."""
    if run is None:
        raise shown(SettingError("There is no edit yet: edit a clip first."))
    return changed_fields(fill_run(run), bend=hear(event, "text", str)[:300])


def draw_masks(run: Run, word: str, frame: int, ink: Ink) -> tuple[Any, Any]:
    """The sheet of a word's maps on a frame, from 0, and the Mask Matching Costs of the edit's backbone, if known.
    Raises MaskError for a word or a frame without maps."""
    return word_sheet(run.folder, word, frame=frame, ink=ink), _curves(run, ink)


def open_tabs(run: Run | None) -> tuple[Any, ...]:
    """What the tabs offer of another edit: the sheet's word and frame, the curves' word and layer, the link to its
    settings and its null-text curve. The edited word and the mask's own layer are chosen."""
    if run is None:
        none = gr.Dropdown(choices=[], value=None)
        return none, gr.Slider(1, MOST_FRAMES, value=1), none, none, _link(None), _null_text(None)
    index = read_index(run.folder)
    names = numbered(index["tokens"])
    word = names[find_word(run.report["settings"]["source"], run.report["words"]["word"])[-1]]
    return (
        gr.Dropdown(choices=names, value=word),
        gr.Slider(1, max(2, index["frames"]), value=1, interactive=index["frames"] > 1),
        gr.Dropdown(choices=names, value=word),
        gr.Dropdown(choices=[site["short"] for site in index["sites"]], value=short_site(run.report["mask"]["site"])),
        _link(run),
        _null_text(run),
    )


def _curves(run: Run, ink: Ink) -> Any:
    from ..masks.mmc import read_codebook

    book = read_codebook(run.report["settings"]["backbone"])
    return _drawn(json.dumps(asdict(book)), ink) if book else None


@lru_cache(maxsize=16)  # two of a backbone
def _drawn(codebook: str, ink: Ink) -> Any:
    return curves_figure(json.loads(codebook), ink)
