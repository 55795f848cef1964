"""The fields of the page as they are filled in: what an upload is, which word is edited, examples, links, files."""

from __future__ import annotations

import html
import json
import reprlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import fields as dataclass_fields
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import gradio as gr
import numpy as np

from ..changes import written
from ..clips.video import probe, read_clip
from ..errors import FreeMaskError, InputError, SettingError
from ..families.reach import obstacle, refusal
from ..families.specs import backbone_name, known_backbone, usual_guidance
from ..pictures.mask_zip import read_mask_zip
from ..presets import load_method, load_preset
from ..settings import Example, Settings, make_settings, read_settings, read_size
from ..words.positions import frames_told
from ..words.prompts import usual_task
from . import status
from .advanced import TASK_OWN, Advanced, task_own
from .changes import ONE
from .visits import Run
from .wire import file_data, hear, picture_uri, shown

__all__ = [
    "FIELDS",
    "NAMES",
    "changed_fields",
    "describe_clip",
    "drop_mask",
    "edit_fields",
    "field_values",
    "fill_example",
    "fill_run",
    "fill_settings",
    "follow_link",
    "follow_method",
    "follow_task",
    "follow_trim",
    "is_light",
    "is_link",
    "link",
    "made_with",
    "optional",
    "own_mask",
    "read_fields",
    "same_clip",
    "take_trim",
]


def describe_clip(clip: str | None) -> str:
    """One line on an upload: what it is, or why it cannot be used."""
    if clip is None:
        return status.CLIPS
    try:
        info = probe(Path(clip))
    except InputError as error:
        return status.note(html.escape(str(error)), bad=True)
    lasts = ["a still, edited as one frame"] if info.still else [f"{info.fps:.3g} fps", f"{info.duration:.1f} s"]
    facts = [f"{info.width}×{info.height}", *lasts, info.codec]
    return status.note(html.escape(" · ".join(facts)))


STRIP, HIGH = 12, 48  # thumbnails of a whole clip, and the pixels of their height


@lru_cache(maxsize=32)
def _strip(clip: str, changed: float, duration: float, size: tuple[int, int]) -> str:
    """A strip of the whole clip as a data URI; decoding it takes as long as the clip is."""
    return picture_uri(np.hstack(list(read_clip(clip, frames=STRIP, fps=0.999 * STRIP / duration, size=size).frames)))


def follow_trim(clip: str | None, frames: float, start: float | None, fps: str) -> dict[str, Any] | None:
    """What the trimmer shows: a strip of the whole clip, and the frames that will really be used, or why they cannot
    be; None for no clip, a still, or what is no video."""
    if not clip:
        return None
    try:
        info = probe(Path(clip))
        if info.still:
            return None
        size = max(16, round(HIGH * info.width / info.height)), HIGH
        strip = _strip(clip, Path(clip).stat().st_mtime, info.duration, size)
    except (FreeMaskError, OSError):
        return None
    begin, used, problem = start or 0.0, [], ""
    length = info.duration
    try:
        rate = optional(fps)
        found = read_clip(clip, frames=int(frames), start=begin, fps=float(rate) if rate else None, size=size)
        used, length = [picture_uri(frame) for frame in found.frames], len(found.frames) / found.fps
    except FreeMaskError as error:
        problem = str(error)
    except ValueError:
        problem = f"{fps!r} is no number of frames a second: write one, such as 8, or leave it empty."
    begin = min(begin, max(0.0, info.duration - 0.1))
    return {
        "duration": round(info.duration, 2),
        "strip": strip,
        "start": begin,
        "end": round(begin + length, 2),
        "frames": int(frames),
        "rate": info.fps,
        "used": used,
        "problem": problem,
    }


def own_mask(site: str | None, timestep: str | None, masks: str | None, changes: str | None = None) -> Any:
    """The button that tells of a mask of the visitor's own, which every edit takes until it is dropped."""
    site = (site or "").strip()
    layer = f"{site}, " + (f"timestep {timestep}" if timestep else "each step its own") if site else ""
    several = (changes or "").strip() not in ("", ONE)
    what = f"painted or uploaded{'' if several else _empty(Path(masks))}" if masks else layer
    return gr.Button(f"Mask in use: {what}. Click for the task's own", visible=bool(what))


def _empty(masks: Path) -> str:
    """On which frames there is none; what cannot be read is told of when it is used."""
    try:
        none = np.flatnonzero(~read_mask_zip(masks, frames=None).any((1, 2)))
    except SettingError:
        return ""
    return f", none on {frames_told(none.tolist())}" if len(none) else ""


def drop_mask(site: str | None, tau: str | None) -> tuple[Any, ...]:
    """Site, timestep, masks and τ of an edit with the task's own mask; the τ that came with a cell goes with it."""
    return "", "", None, "" if (site or "").strip() else tau


def take_trim(frames: float, event: gr.EventData) -> tuple[float, str]:
    """Start and frames a second from the trimmer's two handles."""
    start, end = hear(event, "start", float), hear(event, "end", float)
    return round(start, 2), f"{min(60.0, max(0.5, frames / max(0.1, end - start))):.3g}"


def follow_task(task: str, method: str) -> tuple[Any, ...]:
    """The task in a sentence, and its own values as the placeholders of the numbers it sets."""
    preset = load_preset(task, method)
    shown = (task_own(preset, name) for name in TASK_OWN)
    own = (gr.Textbox(**one) if one["visible"] else gr.Textbox("", **one) for one in shown)  # hidden, it asks nothing
    return status.note(html.escape(preset.summary)), *own


def follow_method(method: str) -> Any:
    """The chooser with what the method does in a sentence."""
    return gr.update(info=load_method(method).summary)


def fill_example(example: Example) -> list[Any]:
    """An example's values for every field, in the order of `Inputs.all`."""
    return edit_fields(example.clip, example.settings)


def fill_settings(file: str | None, offered: Sequence[str]) -> list[Any]:
    """The values of a settings.json or report.json for every field but the clip.

    What the page has no field for, a backbone that it does not offer and masks are told of, not taken.
    """
    if not file:
        return [gr.skip()] * (FIELDS - 1)
    try:
        values = read_settings(Path(file))
        masks = values.pop("masks", None)
        notes = ["These settings go with masks of their own: add the masks.zip of that edit too."] if masks else []
        return _filled(values, offered, notes)
    except FreeMaskError as error:
        raise shown(error) from None


def is_light(query: str) -> bool:
    """Whether the page of a query told that it is light, as `browser.QUERY` does."""
    return dict(parse_qsl(query.removeprefix("?"))).get("__theme") == "light"


def is_link(query: str) -> bool:
    """Whether a page's query names a field."""
    return any(name in _LINKED for name, _ in parse_qsl(query.removeprefix("?")))


def follow_link(query: str, offered: Sequence[str]) -> list[Any] | None:
    """The values of a link's query for every field but the clip; None for a query that names none. A value that cannot
    be is told of, and the others taken.

    What it does not name has its default, the task is what the prompts ask for, the guidance what suits the backbone,
    and the pace stays what suits this server.
    """
    if not is_link(query):
        return None
    told = dict(parse_qsl(query.removeprefix("?")))
    # in this order: a timestep needs a site; but for the backbone, of whose folder nobody may ask the disk by a link
    given = [name for name in _LINKED if name in told and name != "backbone"]
    values: dict[str, Any] = {"source": "", "edit": ""}
    notes: list[str] = []
    for name in given:
        try:
            more = values | {name: read_size(told[name]) if name == "size" else told[name]}
            make_settings(**more)
            values = more
        except FreeMaskError as error:
            notes.append(f"The link's {name} is left out: {error}")
    inferred = {"task": usual_task(values["source"], values["edit"]), "backbone": told.get("backbone")}
    filled = _filled(inferred | values, offered, notes)
    left = {name: gr.skip() for name in ("guidance", "steps", "solver") if name not in values}
    if "guidance" in left and filled[NAMES.index("backbone") - 1] != gr.skip():
        left["guidance"] = usual_guidance(told["backbone"])
    return [left.get(name, value) for name, value in zip(NAMES[1:], filled, strict=True)]


NO_FIELD = ("alpha_changed", "reweight", "rescale", "deep_cache")  # on the page


def _filled(values: dict[str, Any], offered: Sequence[str], notes: list[str]) -> list[Any]:
    """The fields of settings from elsewhere. One toast tells what was not taken: `notes`, and what is found here."""
    backbone = values.pop("backbone", None)
    backbone = backbone_name(backbone) if backbone else None
    settings = make_settings(**values)
    filled = field_values(settings)
    filled[NAMES.index("backbone") - 1] = backbone if backbone in offered else gr.skip()
    lost = [name for name in NO_FIELD if getattr(settings, name) is not None]
    if backbone not in (None, *offered):
        notes.append(_not_offered(str(backbone)))
    if lost:
        notes.append(f"This page has no place for: {', '.join(lost)}. The edit goes without.")
    if notes:
        gr.Warning("<br>".join(map(html.escape, notes)))
    return filled


def _not_offered(backbone: str) -> str:
    """Why a backbone is not taken. Of a name that is none of ours nothing is asked: it comes from elsewhere."""
    met = obstacle(backbone) if known_backbone(backbone) else None
    why = str(refusal(backbone, met)) if met else f"This page does not offer the backbone {reprlib.repr(backbone)}."
    return f"{why} The field stays as it is."


def link(settings: dict[str, Any]) -> str:
    """The query of a link to the settings of a report: all but the clip and the masks."""
    named = {name: settings[name] for name in _LINKED if settings.get(name) is not None}
    if named.get("changes"):
        named["changes"] = json.dumps(named["changes"])
    if named.get("size"):
        named["size"] = "x".join(map(str, named["size"]))
    return "?" + urlencode(named)


_LINKED = [one.name for one in dataclass_fields(Settings) if one.name != "masks"]
NAMES = ["clip", "source", "edit", "task", "word", *(one.name for one in dataclass_fields(Advanced))]
FIELDS = len(NAMES)
# what a trace is made with
SHARED = ("source", "word", "backbone", "steps", "solver", "frames", "start", "fps", "size")


def field_values(own: Settings) -> list[Any]:
    """Settings as the fields show them, in the order of `NAMES` without the clip; masks are left out."""
    text: dict[str, Any] = {
        "word": own.word or "",
        "fps": "" if own.fps is None else f"{own.fps:g}",
        "size": "x".join(map(str, own.size or ())),
        "union": bool(own.union),
        "selection": own.selection or "",
        "site": own.site or "",
        "bend": own.bend or "",
        "changes": "" if own.changes is None else json.dumps(written(own.changes)),
        "timestep": "" if own.timestep is None else str(own.timestep),
        "masks": None,
    }
    text |= {name: "" if getattr(own, name) is None else f"{getattr(own, name):g}" for name in TASK_OWN}
    return [text[name] if name in text else getattr(own, name) for name in NAMES[1:]]


def fill_run(run: Run) -> list[Any]:
    """A run's values for every field, so that what is shown is what is edited on. Its masks are copied: its folder may
    go before the page does."""
    masks = None
    if name := run.report["settings"].get("masks"):
        masks = run.folder.parent / f"masks-{run.folder.name}.zip"
        shutil.copyfile(run.folder / name, masks)
    return edit_fields(run.clip, made_with(run), masks)


def edit_fields(clip: Path, own: Settings, masks: Path | None = None) -> list[Any]:
    """All fields as an edit has them, with those of its files that are there still."""
    fields = [file_data(clip) if clip.exists() else gr.skip(), *field_values(own)]
    return changed_fields(fields, masks=file_data(masks)) if masks and masks.exists() else fields


def made_with(run: Run) -> Settings:
    """The settings of a run without its masks, whose place is not the one where they were given."""
    return make_settings(**run.report["settings"] | {"masks": None})


def changed_fields(fields: Sequence[Any] = (), **changed: Any) -> list[Any]:
    """All fields with some changed, the others as given, or as they are."""
    values = list(fields) or [gr.skip()] * FIELDS
    for name, value in changed.items():
        values[NAMES.index(name)] = value
    return values


def same_clip(run: Run, **mask: Any) -> list[Any]:
    """All fields for another edit of the clip that a run shows, from its inversion, with another mask."""
    own = dict(zip(NAMES[1:], field_values(made_with(run)), strict=True))
    return changed_fields(clip=file_data(run.clip), **{name: own[name] for name in SHARED}, **mask)


def read_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings from fields as `field_values` shows them, without what is left empty. Numbers that were typed are read,
    and refused, by the settings."""
    values: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, str):
            value = value.strip()
            if name == "size":
                value = read_size(value)
            elif name in (*TASK_OWN, "fps"):
                value = optional(value)
        if value is not None and value != "" and value is not False:
            values[name] = value
    return values


def optional(text: str | None) -> str | None:
    """What was typed into a field of a number that may be empty."""
    return (text or "").strip().replace(",", ".") or None
