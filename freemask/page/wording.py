"""The two prompts as they are written: which word and which task they ask for, and what changes between them."""

from __future__ import annotations

import html
import reprlib
from collections.abc import Sequence
from typing import Any

import gradio as gr

from ..errors import FreeMaskError, InputError, PromptError
from ..families.specs import known_words
from ..presets import Preset, load_preset
from ..words.positions import listed, numbered, plain
from ..words.prompts import align, find_word, infer_task, infer_word, unseen, warnings, word_spans, words
from . import status
from .wire import hear

__all__ = ["INFERRED", "follow_difference", "follow_prompts", "take_word"]

INFERRED = "inferred from the prompts"


def follow_prompts(source: str, edit: str, task: str, word: str, backbone: str, method: str) -> tuple[Any, str]:
    """The word field, which names the word that is inferred while it is empty, and the two prompts with what changes
    marked. Nothing is written into the field, where it could undo what is being typed."""
    try:
        words(source), words(edit)
    except PromptError as error:
        return gr.update(placeholder=INFERRED), status.prompts("", "", bad=[str(error)])
    fresh = _inferred(source, edit, task)
    told = f"{fresh} (inferred from the prompts)" if fresh else INFERRED
    return gr.update(placeholder=told), _aligned(
        source, edit, word.strip() or fresh, load_preset(task, method), backbone
    )


def take_word(event: gr.EventData) -> str:
    """A word of the source prompt that was clicked, by its name: "dog#2" for the second dog."""
    return hear(event, "word", str)[:200]


def follow_difference(source: str, edit: str, task: str, guessed: str | None) -> tuple[Any, str | None]:
    """The task that the prompts ask for, and that it was guessed: None once the visitor has chosen one.

    A task that came with an example, a link or a file stays where the prompts say another.
    """
    try:
        fresh = infer_task(source, edit)
    except PromptError:  # too long, which the prompts' own line tells
        fresh = None
    if guessed is None or fresh is None or task not in (guessed, fresh):
        return gr.skip(), guessed
    return gr.skip() if fresh == task else fresh, fresh


def _inferred(source: str, edit: str, task: str) -> str:
    """The word that an edit would take of itself, "" where there is none."""
    try:
        return infer_word(source, edit, task)
    except InputError:
        return ""


def _holds(prompt: str, word: str) -> bool:
    try:
        return bool(find_word(prompt, word))
    except InputError:
        return False


def _aligned(source: str, edit: str, word: str, preset: Preset, backbone: str) -> str:
    """Both prompts as HTML: in the source the edited word and what goes, in the edit what comes; its meaning, and what
    speaks against it."""
    where = find_word(source, word) if _holds(source, word) else []
    change = align(source, edit)
    before = {i: "gone" for i in change.removed} | {i: "word" for i in where}
    before |= {i: "word gone" for i in set(where) & set(change.removed)}
    after = {j: "new" for j in change.changed}
    told = words(edit)
    becomes = " ".join(told[j] for j, i in enumerate(change.source_of) if i in where)
    meaning, against, bad = "", [], []
    if where and told:
        meaning, against = _meaning(word, becomes, preset), warnings(source, edit, word, preset.delta)
    elif words(source) and word and not where:
        bad = [f"{reprlib.repr(word)} is not in the first prompt: write a word of it, or leave the field empty."]
    if strange := _strange(f"{source} {edit}", backbone):
        bad.append(f"{backbone} has never seen {listed([*map(repr, strange)])}: choose words that it knows.")
    chosen = _marked(source, before, numbered(words(source)))
    return status.prompts(chosen, _marked(edit, after), meaning, against, bad)


def _strange(prompt: str, backbone: str) -> list[str]:
    """Words that the backbone has never seen, but those that may be half typed: a known word begins with them."""
    try:
        known = known_words(str(backbone))  # which Gradio lets through as a list too
    except FreeMaskError:  # no such backbone, which Edit tells of
        known = None
    if known is None:
        return []
    return [word for word in unseen(prompt, known) if not any(one.startswith(word) for one in known)]


def _meaning(word: str, becomes: str, preset: Preset) -> str:
    """What happens to the edited word, and with how many masks (FreeMask Eq. 7-8)."""
    if preset.mask == "none":
        how = "no mask"
    elif preset.mask != "mmc":
        how = "each step uses the mean mask of one grid level"
    elif preset.delta == 0 and preset.selection != "consensus":
        how = "each step uses the mask of its own timestep"
    else:
        how = "one accurate mask serves all steps"
    verb = "stays" if becomes.casefold() == plain(word).casefold() else "becomes"
    fate = f"{verb} <b>{html.escape(becomes)}</b>" if becomes else "is left out"
    return f"<b>{html.escape(word)}</b> {fate}: {how} (δ = {preset.delta})."


def _marked(prompt: str, marks: dict[int, str], names: Sequence[str] = ()) -> str:
    """A prompt with words marked by class; words with names are buttons that choose them."""
    parts, end = [], 0
    for i, (start, stop) in enumerate(word_spans(prompt)):
        text = html.escape(prompt[start:stop])
        if i in marks:
            text = f'<mark class="{marks[i]}">{text}</mark>'
        if names:
            pressed = str("word" in marks.get(i, "")).lower()
            text = f'<button type=button data-word="{html.escape(names[i])}" aria-pressed={pressed}>{text}</button>'
        parts += [html.escape(prompt[end:start]), text]
        end = stop
    return "".join([*parts, html.escape(prompt[end:])])
