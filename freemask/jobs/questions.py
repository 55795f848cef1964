"""What a visitor of the explorer asks about a finished edit: a word's maps, or one layer in full."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from ..errors import PromptError
from ..presets import Timestep
from ..validation import STRICT, validated
from ..words.prompts import words

__all__ = ["Question", "read_question"]

LONGEST = 100  # characters of a word to look for


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Question:
    """`concept`: the maps of the word `text`, which the source prompt lacks. The others are about the cell of `site`
    and `timestep`: `heads` of the source's words at the positions `words`, or of `text`; `features`; and `position`,
    the place (x, y), shares of the width and the height, of the latent frame `frame`."""

    kind: Literal["concept", "heads", "features", "position"]
    text: str = ""
    words: Annotated[tuple[Annotated[int, Field(ge=0, le=200)], ...], Field(max_length=20)] = ()
    site: Annotated[str, Field(max_length=200)] = ""
    timestep: Timestep = 0
    frame: Annotated[int, Field(ge=0, le=100)] = 0
    x: Annotated[float, Field(ge=0, lt=1)] = 0.0
    y: Annotated[float, Field(ge=0, lt=1)] = 0.0


def read_question(told: dict[str, Any]) -> Question:
    """A question as the page tells it; raises SettingError for anything else, PromptError for a word that is none."""
    given = {name: value for name, value in told.items() if name in Question.__dataclass_fields__}
    given["text"] = " ".join(str(given.get("text") or "").split())
    if isinstance(given.get("words"), list):
        given["words"] = tuple(given["words"])
    question: Question = validated(Question, given, "The question: ")
    asks = question.kind == "concept" or question.kind == "heads" and not question.words
    if asks and (not words(question.text) or len(question.text) > LONGEST):
        raise PromptError(f"Write a word or a few, {LONGEST} characters at most, such as 'wheels'.")
    return question
