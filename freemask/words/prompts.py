"""Words of prompts: which are the same, which changed, and which one is edited.

Words are matched without case and punctuation. The source and the edit prompt are aligned by their
longest common runs; what differs is the edit. p0, the edited word, is always a word of the source prompt: one position
of it, so that of a word that stands twice, "dog" is the first and "dog#2" the second.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ..errors import PromptError
from .positions import listed, locate, named, numbered, occurrence, plain

__all__ = [
    "DETERMINERS",
    "PLACED",
    "STYLES",
    "Alignment",
    "align",
    "find_word",
    "folded",
    "infer_task",
    "infer_word",
    "is_noun",
    "role",
    "same_words",
    "unseen",
    "usual_task",
    "warnings",
    "word_spans",
    "words",
]

LONGEST, MOST = 1000, 100  # characters and words of a prompt; a text encoder of CLIP's reads 75 words at best
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_FUNCTION = frozenset(
    "a an the this that these those some on in at of to by with and or from into over under near through "
    "above across after against along among around before behind below beneath beside between beyond down during "
    "inside next off onto outside past toward towards up upon within without "
    "is are was were be being its his her their it style painting photo picture video film".split()
)
DETERMINERS = frozenset("a an the this that these those some its his her their".split())
PLACED = frozenset("in on at under over through into across along beside inside outside behind".split())
STYLES = frozenset(
    "style styled painting painted sketch drawing watercolor watercolour cartoon anime comic photo picture".split()
)


def word_spans(prompt: str) -> list[tuple[int, int]]:
    """Start and end of every word of a prompt, in characters."""
    return [m.span() for m in _WORD.finditer(prompt)]


def words(prompt: str) -> list[str]:
    """The words of a prompt as written, without punctuation; raises PromptError where it is too long for any model."""
    if len(prompt) > LONGEST:
        raise PromptError(f"A prompt of {len(prompt):,} characters is over the limit of {LONGEST:,}: shorten it.")
    found = _WORD.findall(prompt)
    if len(found) > MOST:
        raise PromptError(f"A prompt of {len(found)} words is over the limit of {MOST}: shorten it.")
    return found


def folded(prompt: str) -> list[str]:
    """The words of a prompt without case."""
    return [w.casefold() for w in words(prompt)]


@dataclass(frozen=True)
class Alignment:
    """How the words of two prompts correspond.

    `source_of[j]` is the source word that edit word j stands for, or None where it was added;
    `changed` are the edit words that differ, `removed` the source words that are gone or replaced.
    """

    source_of: tuple[int | None, ...]
    changed: tuple[int, ...]
    removed: tuple[int, ...]


def align(source: str, edit: str) -> Alignment:
    """Aligns two prompts word by word; replaced runs of equal length correspond in order."""
    a, b = folded(source), folded(edit)
    source_of: list[int | None] = [None] * len(b)
    changed: list[int] = []
    removed: list[int] = []
    for op, i0, i1, j0, j1 in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if op == "equal" or (op == "replace" and i1 - i0 == j1 - j0):
            for i, j in zip(range(i0, i1), range(j0, j1), strict=True):
                source_of[j] = i
        if op != "equal":
            changed += range(j0, j1)
            removed += range(i0, i1)
    return Alignment(tuple(source_of), tuple(changed), tuple(removed))


def is_noun(word: str) -> bool:
    """Content words that are no participle; enough for captions, and the user may override it."""
    return word not in _FUNCTION and not (word.endswith("ing") and len(word) > 5)


def _phrase_end(found: Sequence[str], at: int) -> int | None:
    """The last word of the run of content words that starts at `at` or after; None where there is none."""
    while at < len(found) and not is_noun(found[at]):
        at += 1
    if at >= len(found):
        return None
    while at + 1 < len(found) and is_noun(found[at + 1]):
        at += 1
    return at


def infer_word(source: str, edit: str, task: str) -> str:
    """p0: for shape the replaced noun, for attribute the head noun of the changed phrase, for style and
    place the main moving noun (the one before the first verb). One that stands there twice is numbered, as `find_word`
    reads it. Raises PromptError where no word fits."""
    a = folded(source)
    removed = align(source, edit).removed
    at: int | None = None
    if task == "place":
        kept = [word if i not in removed else "the" for i, word in enumerate(a)]
        at = _phrase_end(kept, 0)
    elif task == "style":
        opening = a.index("of") + 1 if "painting" in a and "of" in a else 0
        at = _phrase_end(a, opening)
    else:
        nouns = [i for i in removed if is_noun(a[i])]
        if task == "attribute":
            start = nouns[0] if nouns else _first_difference(a, folded(edit))
            at = _phrase_end(a, start)
        elif nouns:
            heads = [i for i in nouns if role(a, i) == "noun"]  # rather than an attribute or a place
            at = (heads or nouns)[-1]
    if at is None:
        at = _phrase_end(a, 0)
    if at is None:
        raise PromptError("The source prompt names no object; write what the clip shows, such as 'a red car driving'.")
    return named(words(source), [at])


def _first_difference(a: list[str], b: list[str]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def infer_task(source: str, edit: str) -> str | None:
    """The task that the difference of two prompts asks for; None where it is unclear.

    A phrase such as "sketch style painting of" is a style, a phrase after "in" or "on" a place; of the rest, the last
    word of a phrase is its noun, which replaced is a shape, and those before it are attributes.
    """
    if not (words(source) and words(edit)):
        return None
    change = align(source, edit)
    removed, added = _changes(folded(source), change.removed), _changes(folded(edit), change.changed)
    kinds = removed | added
    if "noun" in kinds:  # replaced, not only added or only left out
        kinds = kinds - {"noun", "attribute"} | {"shape" if {"noun"} <= removed & added else "unclear"}
    kind = kinds.pop() if len(kinds) == 1 else None
    return None if kind == "unclear" else kind


def usual_task(source: str, edit: str) -> str:
    """The task of an edit that names none: what the prompts ask for, or where that is unclear, style."""
    return infer_task(source, edit) or "style"


def _changes(found: list[str], at: Collection[int]) -> set[str]:
    """What the words at some positions are: of a style or a place, a noun or its attribute."""
    kinds = set()
    runs: list[list[int]] = []
    for i in sorted(at):
        if runs and runs[-1][-1] == i - 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    for run in runs:
        if STYLES & {*found[run[0] : run[-1] + 2], *found[max(0, run[0] - 2) : run[0]]}:
            kinds.add("style")
            continue
        kinds |= {role(found, i) for i in run if is_noun(found[i])}
    return kinds


def role(found: list[str], i: int) -> str:
    """A content word's part in its phrase."""
    start = i
    while start and is_noun(found[start - 1]):
        start -= 1
    while start and found[start - 1] in DETERMINERS:
        start -= 1
    if start and found[start - 1] in PLACED:
        return "place"
    return "noun" if _phrase_end(found, i) == i else "attribute"


def same_words(source: str, edit: str) -> bool:
    """Whether two prompts say the same, without case and punctuation."""
    return folded(source) == folded(edit)


def find_word(prompt: str, word: str) -> list[int]:
    """Where a word, or several in a row, stand in a prompt: first, or for "dog#2" the second time.

    Raises PromptError listing the prompt's words, numbered where they stand again.
    """
    found = words(prompt)
    if at := locate(found, words(plain(word)), occurrence(word)):
        return at
    raise PromptError(f"The word {reprlib.repr(word)} is not in the prompt; choose one of: {listed(numbered(found))}.")


def warnings(source: str, edit: str, word: str, delta: int) -> list[str]:
    """What the aligned words say against the task's δ (Eq. 7), for the user to decide."""
    kept = not set(find_word(source, word)) & set(align(source, edit).removed)
    if delta and not kept:
        return [
            f"'{word}' is replaced, but this task keeps its shape (δ = 1): use the task 'shape'; or to change a place, "
            "name what stays there as the edited word and use 'place'."
        ]
    if not delta and kept:
        return [f"'{word}' stays the same, but this task changes its shape (δ = 0): 'attribute' or 'place' keep it."]
    return []


def unseen(prompt: str, known: Collection[str]) -> list[str]:
    """The words of a prompt, each once and without case, that are none of the known."""
    return [word for word in dict.fromkeys(folded(prompt)) if word not in known]
