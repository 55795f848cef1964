"""Several changes of one edit, as people write them; `methods.several` makes them in one pass."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from .errors import PromptError, SettingError
from .presets import Cells, Selection, Share, Threshold, Timestep
from .validation import STRICT, validated
from .words.differences import differences
from .words.positions import named
from .words.prompts import find_word, words

__all__ = [
    "AUTO",
    "MOST_CHANGES",
    "Change",
    "check_changes",
    "every_change",
    "found_changes",
    "new_words",
    "read_changes",
    "written",
]

AUTO = "auto"  # for changes: those that the prompts say
MOST_CHANGES = 6
LONGEST = 20_000  # characters of JSON
Name = Annotated[str, Field(min_length=1, max_length=100)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Change:
    """The source prompt's `word`, the edit prompt's words that it comes `to` (left out: as the prompts say), and its
    `task`: attribute, shape, place (what is left of the picture), or keep, which holds the object as it is.

    The others are as for one edit, and the edit's own where they are left out: τ, the windows, and the mask's
    selection, or layer and timestep.
    """

    word: Name
    to: Name | None = None
    task: Literal["attribute", "shape", "place", "keep"]
    tau: Threshold | None = None
    alpha_self: Share | None = None
    alpha_cross: Share | None = None
    alpha_temporal: Share | None = None
    alpha_latent: Share | None = None
    dilate: Cells | None = None
    selection: Selection | None = None
    site: Name | None = None
    timestep: Timestep | None = None

    @property
    def done_as(self) -> str:
        """The task whose preset it has: what is kept has an attribute's."""
        return "attribute" if self.task == "keep" else self.task


def every_change(source: str, edit: str) -> tuple[Change, ...]:
    """What changes from one prompt to another, and the objects that stay."""
    return tuple(Change(word=one.word, to=one.to, task=one.task) for one in differences(source, edit))  # type: ignore[arg-type]


def found_changes(source: str, edit: str) -> tuple[Change, ...]:
    """`every_change`, but none where that is at most one change."""
    found = every_change(source, edit)
    if sum(one.task != "keep" for one in found) < 2 or len(found) > MOST_CHANGES or found[0].task == "place":
        return ()
    return found


def read_changes(given: Any, source: str, edit: str) -> tuple[Change, ...]:
    """From JSON, or what JSON was read as: a list of objects with a `Change`'s fields; AUTO finds them in the prompts.
    Raises SettingError for anything else."""
    if isinstance(given, str):
        if given.strip() == AUTO:
            return found_changes(source, edit)
        try:
            given = json.loads(given[:LONGEST]) if given.strip() else []
        except (ValueError, RecursionError):
            given = None
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise SettingError(
            f'changes is no list: write {AUTO}, or JSON such as [{{"word": "car", "to": "blue car", "task": '
            '"attribute"}].'
        )
    return tuple(one if isinstance(one, Change) else _change(one, n) for n, one in enumerate(given, 1))


def _change(values: Any, n: int) -> Change:
    if not isinstance(values, dict):
        raise SettingError(f"changes: the {n}. is no object with a word and a task.")
    change: Change = validated(Change, values, f"changes, {n}.: ")
    return change


def check_changes(changes: Sequence[Change], source: str, edit: str) -> None:
    """Raises SettingError or PromptError for changes that cannot be made of two prompts."""
    if len(changes) > MOST_CHANGES:
        raise SettingError(f"changes: {len(changes)} are over the limit of {MOST_CHANGES}; edit some of them later.")
    at: dict[int, str] = {}
    for change in changes:
        for i in find_word(source, change.word) if change.task != "place" else ():
            if i in at:
                raise SettingError(f"changes: '{change.word}' and '{at[i]}' are the same word; name each once.")
            at[i] = change.word
        if change.task != "keep" and not new_words(change, source, edit):
            raise SettingError(
                f"changes: '{change.word}' becomes nothing new; give the edit prompt's words in `to`, or keep it."
            )
        if change.timestep is not None and change.site is None:
            raise SettingError(f"changes: '{change.word}' has a timestep without a site: name the layer too.")
    if changes and not at:
        raise SettingError("changes: none is of an object; a place alone is an edit without changes.")
    if changes and all(change.task == "keep" for change in changes):
        raise SettingError("changes: every object is kept; give at least one that changes.")
    if sum(change.task == "place" for change in changes) > 1:
        raise SettingError("changes: there is one place, what is left of the picture; name it once.")


def new_words(change: Change, source: str, edit: str) -> tuple[int, ...]:
    """The positions of the edit prompt's words that a change brings. Raises PromptError for words that are not there.

    Those are the words of `to` that the prompts' phrases do not share; of a `to` that no phrase is, all but the word
    itself.
    """
    if change.task == "keep":
        return ()
    found = differences(source, edit)
    told = named(words(source), find_word(source, change.word))
    for one in found:
        if (change.to is None and one.word == told) or (change.to is not None and _same(change, one.word, one.to)):
            return one.changed
    if change.to is None:
        raise PromptError(f"The prompts do not say what '{change.word}' becomes; give the words in `to`.")
    return tuple(j for j in find_word(edit, change.to) if words(edit)[j].casefold() != change.word.casefold())


def _same(change: Change, word: str, to: str) -> bool:
    return (change.word.casefold(), str(change.to).casefold()) == (word.casefold(), to.casefold())


def written(changes: Sequence[Change]) -> list[dict[str, Any]]:
    """Changes as settings.json has them: what is left out is left out."""
    return [{name: value for name, value in asdict(one).items() if value is not None} for one in changes]
