"""The fields of the page as they are filled in: what an upload is, which word is edited, examples, links, files."""

from __future__ import annotations

import html
import re
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import gradio as gr
import numpy as np

from ..errors import FreeMaskError, InputError, SettingError
from ..presets import Example, Settings, load_preset, make_settings, read_settings
from ..prompts import align, find_word, infer_word, word_spans, words
from ..video import probe, read_clip
from . import status
from .parts import TASK_OWN
from .wire import file_data, picture_uri, shown

__all__ = [
    "FIELDS",
    "describe_clip",
    "field_values",
    "fill_example",
    "fill_settings",
    "follow_link",
    "follow_prompts",
    "follow_task",
    "follow_trim",
    "link",
    "optional",
    "read_size",
    "take_trim",
]

PLAYED = ("h264", "vp8", "vp9", "av1")


def describe_clip(clip: str | None) -> str:
    """One line on an upload: what it is, or why it cannot be used."""
    if clip is None:
        return status.note("H.264, HEVC and most others; up to 5 minutes. Only the frames in use are decoded.")
    try:
        info = probe(Path(clip))
    except InputError as error:
        return status.note(html.escape(str(error)), bad=True)
    facts = [f"{info.width}×{info.height}", f"{info.fps:.3g} fps", f"{info.duration:.1f} s", info.codec]
    if info.codec.lower() not in PLAYED:
        facts.append("the preview may stay black in this browser, the edit works")
    return status.note(html.escape(" · ".join(facts)))


STRIP, HIGH = 12, 48  # thumbnails of a whole clip, and the pixels of their height


def follow_trim(clip: str | None, frames: float, start: float | None, fps: str) -> dict[str, Any] | None:
    """What the trimmer shows: a strip of the whole clip, and the frames that will really be used; None for no clip."""
    if not clip:
        return None
    try:
        info = probe(Path(clip))
        size = max(16, round(HIGH * info.width / info.height)), HIGH
        rate = optional(fps)
        used = read_clip(clip, frames=int(frames), start=start or 0.0, fps=float(rate) if rate else None, size=size)
        whole = read_clip(clip, frames=STRIP, fps=0.999 * STRIP / info.duration, size=size)
    except (FreeMaskError, ValueError):  # the line above tells what is wrong with the clip, the edit what with a number
        return None
    return {
        "duration": round(info.duration, 2),
        "strip": picture_uri(np.hstack(list(whole.frames))),
        "start": start or 0.0,
        "end": round((start or 0.0) + len(used.frames) / used.fps, 2),
        "frames": len(used.frames),
        "used": [picture_uri(frame) for frame in used.frames],
    }


def take_trim(frames: float, event: gr.EventData) -> tuple[float, str]:
    """Start and frames a second from the trimmer's two handles."""
    start, end = float(event._data["start"]), float(event._data["end"])
    return round(start, 2), f"{min(60.0, max(0.5, frames / max(0.1, end - start))):.3g}"


def follow_prompts(source: str, edit: str, task: str, word: str, inferred: str) -> tuple[str, str, str]:
    """The word in use, the word last inferred, and the two prompts with what changes marked.

    A word that the visitor typed stays as long as the prompt holds it.
    """
    try:
        fresh = infer_word(source, edit, task)
    except InputError:
        fresh = ""
    if not word.strip() or word == inferred or not _holds(source, word):
        word = fresh
    return word, fresh, _aligned(source, edit, word, task)


def follow_task(task: str) -> tuple[Any, ...]:
    """The task in a sentence, and its own values as the placeholders of the numbers it sets."""
    preset = load_preset(task)
    own = (gr.Textbox(placeholder=f"{getattr(preset, name):g}") for name in TASK_OWN)
    return status.note(html.escape(preset.summary)), *own


def fill_example(example: Example) -> list[Any]:
    """An example's values for every field, in the order of `Inputs.all`."""
    return [file_data(example.clip), *field_values(example.settings)]


def fill_settings(file: str | None) -> list[Any]:
    """The values of a settings.json or report.json for every field but the clip; masks are told of, not taken."""
    if not file:
        return [gr.skip()] * (FIELDS - 1)
    try:
        values = read_settings(Path(file))
        painted = values.pop("masks", None)
        filled = field_values(make_settings(**values))
    except FreeMaskError as error:
        raise shown(error) from None
    if painted:
        gr.Info("These settings go with masks of their own: add the masks.zip of that edit too.")
    return filled


def follow_link(query: str) -> list[Any]:
    """The values of a link's query for every field but the clip; what it does not name stays as it is."""
    values: dict[str, Any] = {name: value for name, value in parse_qsl(query.removeprefix("?")) if name in _LINKED}
    if not values:
        return [gr.skip()] * (FIELDS - 1)
    try:
        values["size"] = read_size(values.get("size", ""))
        return field_values(make_settings(**{"source": "", "edit": ""} | values))
    except FreeMaskError as error:
        raise shown(error) from None


def link(settings: dict[str, Any]) -> str:
    """The query of a link to the settings of a report: all but the clip and the masks."""
    named = {name: settings[name] for name in _LINKED if settings.get(name) is not None}
    if named.get("size"):
        named["size"] = "x".join(map(str, named["size"]))
    return "?" + urlencode(named)


_LINKED = [one.name for one in dataclass_fields(Settings) if one.name not in ("masks", "backbone")]


def field_values(own: Settings) -> list[Any]:
    """Settings as the fields show them, in the order of `Inputs.all` without the clip."""
    return [
        own.source,
        own.edit,
        own.task,
        own.word or "",
        own.backbone,
        own.steps,
        own.guidance,
        own.frames,
        own.start,
        "" if own.fps is None else f"{own.fps:g}",
        "x".join(map(str, own.size or ())),
        *("" if getattr(own, name) is None else f"{getattr(own, name):g}" for name in TASK_OWN),
        bool(own.union),
        own.selection or "",
        own.site or "",
        "" if own.timestep is None else str(own.timestep),
        None,
        own.features,
        own.eta,
        own.seed,
    ]


FIELDS = 1 + len(field_values(Settings(source="", edit="")))  # the clip and the settings


def optional(text: str | None) -> str | None:
    """What was typed into a field that may be empty: its number is read, and refused, by the settings."""
    return (text or "").strip().replace(",", ".") or None


def read_size(text: str) -> tuple[int, int] | None:
    if not text.strip():
        return None
    found = re.fullmatch(r"\s*(\d{1,5})\s*[x×]\s*(\d{1,5})\s*", text, re.IGNORECASE)
    if found is None:
        raise SettingError(f"size is {text!r}: write width x height in pixels, such as 128x128, or leave it empty.")
    return int(found[1]), int(found[2])


def _holds(prompt: str, word: str) -> bool:
    try:
        return bool(find_word(prompt, word))
    except InputError:
        return False


def _aligned(source: str, edit: str, word: str, task: str) -> str:
    """Both prompts as HTML: in the source the edited word and what goes, in the edit what comes; and its meaning."""
    where = find_word(source, word) if _holds(source, word) else []
    change = align(source, edit)
    before = {i: "gone" for i in change.removed} | {i: "word" for i in where}
    before |= {i: "word gone" for i in set(where) & set(change.removed)}
    after = {j: "new" for j in change.changed}
    told = words(edit)
    becomes = " ".join(told[j] for j, i in enumerate(change.source_of) if i in where)
    return status.prompts(_marked(source, before), _marked(edit, after), _meaning(word, becomes, task) if where else "")


def _meaning(word: str, becomes: str, task: str) -> str:
    """What happens to the edited word, and with how many masks (FreeMask Eq. 7-8)."""
    preset = load_preset(task)
    if preset.mask != "mmc":
        how = "the released code's masks, one at each step"
    elif preset.delta == 0 and preset.selection != "consensus":
        how = "each step uses the mask of its own timestep"
    else:
        how = "one accurate mask serves all steps"
    verb = "stays" if becomes.casefold() == word.casefold() else "becomes"
    fate = f"{verb} <b>{html.escape(becomes)}</b>" if becomes else "is left out"
    return f"<b>{html.escape(word)}</b> {fate}: {how} (δ = {preset.delta})."


def _marked(prompt: str, marks: dict[int, str]) -> str:
    parts, end = [], 0
    for i, (start, stop) in enumerate(word_spans(prompt)):
        text = html.escape(prompt[start:stop])
        parts += [html.escape(prompt[end:start]), f'<mark class="{marks[i]}">{text}</mark>' if i in marks else text]
        end = stop
    return "".join([*parts, html.escape(prompt[end:])])
