"""The cards of several changes: which word becomes what, its task, and once an edit is there the mask that it had."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

import cv2
import gradio as gr
import numpy as np

from ..changes import AUTO, Change, check_changes, found_changes, read_changes, written
from ..errors import FreeMaskError, PromptError
from ..pictures.mask_zip import read_label_zip
from ..presets import load_preset
from ..settings import CHANGE_PICTURE
from ..words.prompts import find_word
from . import status
from .visits import Run
from .wire import hear, picture_uri

__all__ = ["CHOOSE", "ONE", "change_shown", "follow_changes", "painted_change", "take_changes", "with_cell"]

ONE = "[]"  # in the field: one change, whatever the prompts say
TITLES = {name: load_preset(name).title for name in ("attribute", "shape", "place")} | {"keep": "Keep as it is"}
# What is chosen on the cards goes into the field of the changes.
CHOOSE = """const chosen = () => [...element.querySelectorAll("li")].map((card) => ({
    ...JSON.parse(card.dataset.change), task: card.querySelector("select").value }));
element.addEventListener("change", () => trigger("choose", { text: JSON.stringify(chosen()) }));
element.addEventListener("click", (event) => {
    const pressed = event.target.closest("button[data-text]");
    if (pressed) trigger("choose", { text: pressed.dataset.text });
});"""


def take_changes(event: gr.EventData) -> str:
    """What was chosen on the cards, for the field of the changes; it is validated like any setting."""
    return hear(event, "text", str)[:5000]


def follow_changes(source: str, edit: str, text: str | None, method: str, run: Run | None) -> tuple[Any, str]:
    """The field of the changes and the cards, by the prompts: an empty field takes what these say, `AUTO`, and one that
    was chosen stays while the prompts still have such changes."""
    text = (text or "").strip()
    try:
        found = found_changes(source or "", edit or "") if method == "freemask" else ()
    except PromptError:  # too long, which the prompts' own line tells
        found = ()
    if text in ("", AUTO, ONE):
        field = text if text == ONE and found else AUTO if found else ""
        shown = "" if not found else _as_one(len(found)) if field == ONE else _cards(found, run)
        return gr.skip() if field == text else field, shown
    try:
        changes = read_changes(text, source, edit)
        check_changes(changes, source, edit)
    except FreeMaskError as error:
        again = _button(AUTO if found else "", "Take what the prompts say")
        return gr.skip(), f'<div class="fm-changes">{status.note(html.escape(str(error)), bad=True)}{again}</div>'
    return gr.skip(), _cards(changes, run)


def _button(text: str, title: str) -> str:
    return f'<button type=button data-text="{html.escape(text)}">{title}</button>'


def _as_one(count: int) -> str:
    told = status.note("The edit is one change under one mask: that of the word and the task chosen here.")
    return f'<div class="fm-changes">{told}{_button(AUTO, f"Make the {count} changes each under its own mask")}</div>'


def _cards(changes: Sequence[Change], run: Run | None) -> str:
    masks = _masks(changes, run)
    items = []
    for change, told, (picture, line) in zip(changes, written(changes), masks, strict=True):
        word = html.escape(change.word)
        becomes = "stays" if change.task == "keep" else f"→ <b>{html.escape(change.to or 'as the prompts say')}</b>"
        options = "".join(
            f"<option value={name}{' selected' if name == change.task else ''}>{html.escape(title)}</option>"
            for name, title in TITLES.items()
        )
        data = html.escape(json.dumps(told), quote=True)
        items.append(
            f'<li data-change="{data}">{picture}<span><b>{word}</b> {becomes}</span>'
            f'<select aria-label="What changes of {word}">{options}</select><small>{line}</small></li>'
        )
    count = sum(change.task != "keep" for change in changes)
    head = status.note(f"<b>{count} changes in one pass</b>, each under its own mask.")
    return f'<div class="fm-changes" data-on>{head}<ul>{"".join(items)}</ul>{_button(ONE, "Edit as one change")}</div>'


def _masks(changes: Sequence[Change], run: Run | None) -> list[tuple[str, str]]:
    """By change a picture of its mask and a line about it, of the edit that is shown where it made these changes."""
    of_run = run.report.get("changes", []) if run else []
    same = [(one["word"], one.get("to")) for one in of_run] == [(change.word, change.to) for change in changes]
    found = []
    for n, change in enumerate(changes, 1):
        mask = of_run[n - 1].get("mask") if same else None
        path = run.folder / CHANGE_PICTURE.format(n) if run else None
        picture = cv2.imread(str(path)) if mask and path and path.exists() else None
        if mask is None or picture is None:
            rest = "what the other masks leave of the picture" if change.task == "place" else "shown once edited"
            found.append(("", f"mask: {rest}"))
            continue
        drawn = "painted " if mask["origin"] == "painted" else ""
        told = f"{drawn}mask of {html.escape(change.word)}, {100 * mask['area']:.0f} % of the picture"
        found.append((f'<img src="{picture_uri(picture[..., ::-1])}" alt="The {told}">', told))
    return found


def painted_change(run: Run, masks: np.ndarray, event: gr.EventData) -> tuple[np.ndarray, str]:
    """A painted mask (f, h, w) bool and the changes of the edit that it is for: all as one change; or, where a run's
    change is of the word which is shown, that change's, as labels beside those that were painted before."""
    changes, at = run.report["settings"].get("changes") or [], change_shown(run, event)
    if at is None:
        return masks, ONE
    labels = np.zeros(masks.shape, np.uint8)
    if given := run.report["settings"].get("masks"):
        before = read_label_zip(run.folder / given, frames=len(masks), count=len(changes))
        labels = np.stack([cv2.resize(one, masks.shape[:0:-1], interpolation=cv2.INTER_NEAREST) for one in before])
    labels[labels == at + 1] = 0
    labels[masks] = at + 1
    return labels, json.dumps(with_cell(changes, at, {}))


def with_cell(changes: list[dict[str, Any]], at: int, cell: dict[str, Any]) -> list[dict[str, Any]]:
    """Changes, one of them with a picked cell's mask or with none of its own."""
    own = {name: int(value) if name == "timestep" else value for name, value in cell.items() if value != ""}
    rest = {name: value for name, value in changes[at].items() if name not in {"site", "timestep", "selection", "tau"}}
    return [*changes[:at], rest | own, *changes[at + 1 :]]


def change_shown(run: Run, event: gr.EventData) -> int | None:
    """Which of a run's changes is of the word that is shown; None where none is."""
    settings = run.report["settings"]
    changes = settings.get("changes") or []
    at = hear(event, "words", lambda told: [int(i) for i in told]) if changes else []
    for n, one in enumerate(changes):
        if one["task"] != "place" and find_word(settings["source"], one["word"]) == at:
            return n
    return None
