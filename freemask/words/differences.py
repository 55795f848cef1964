"""Several changes from one prompt to another: which phrase becomes which.

Two prompts of the same build, such as "a red car and a yellow dog on the grass" and "a white cat and a blue bus on the
snow", correspond phrase by phrase, so that objects which change places are changes too. Other prompts correspond as
`prompts.align` has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from .positions import named
from .prompts import DETERMINERS, PLACED, STYLES, Alignment, align, folded, is_noun, role, words

__all__ = ["Difference", "align_phrases", "differences", "objects", "phrases"]

Run = tuple[int, ...]  # positions of the content words of a phrase, in a row


@dataclass(frozen=True)
class Difference:
    """A phrase of the source prompt and what the edit prompt has in its place.

    `word` is the source's noun by its name, `to` the words in its place; `task` says what changes: "attribute",
    "shape", "place", or with "keep" nothing. `edit` are the positions of `to`, `changed` those that are new there.
    """

    word: str
    to: str
    task: str
    edit: Run
    changed: Run


def differences(source: str, edit: str) -> list[Difference]:
    """What changes from one prompt to another in the source's order, and the objects that stay. A phrase that only one
    of the two has is none of these, nor is a style."""
    a, b = folded(source), folded(edit)
    found = []
    for one, other in _pairs(source, edit):
        task = _task(a, b, one, other)
        if task:
            told = named(words(source), one[-1:]), " ".join(words(edit)[j] for j in other)
            found.append(Difference(*told, task, other, _new(a, b, one, other)))
    return found


def objects(prompt: str) -> tuple[str, ...]:
    """The objects that a prompt names, by their nouns."""
    return tuple(one.word for one in differences(prompt, prompt))


def phrases(prompt: str) -> tuple[Run, ...]:
    """The positions of a prompt's content words, phrase by phrase; the last of a phrase is its noun."""
    return _phrases(_build(folded(prompt)))


def align_phrases(source: str, edit: str) -> Alignment:
    """`prompts.align`, but phrase by phrase where the two prompts are of the same build: words of a phrase correspond
    from its noun backwards."""
    a, b = folded(source), folded(edit)
    first, second = _build(a), _build(b)
    if not _alike(first, second):
        return align(source, edit)
    source_of: list[int | None] = [None] * len(b)
    for (_, one), (_, other) in zip(first, second, strict=True):
        for i, j in zip(reversed(one), reversed(other), strict=False):
            source_of[j] = i
    same = {j: i for j, i in enumerate(source_of) if i is not None and a[i] == b[j]}
    changed = tuple(j for j in range(len(b)) if j not in same)
    return Alignment(tuple(source_of), changed, tuple(sorted({*range(len(a))} - {*same.values()})))


def _build(found: Sequence[str]) -> list[tuple[str, Run]]:
    """A prompt's phrases and the words between them, each with its positions: a mark says what it is."""
    build: list[tuple[str, Run]] = []
    for i, word in enumerate(found):
        if is_noun(word):
            if build and build[-1][0] == "phrase":
                build[-1] = "phrase", (*build[-1][1], i)
            else:
                build.append(("phrase", (i,)))
        elif word in DETERMINERS:
            build.append(("determiner", (i,)))
        elif word in PLACED:
            build.append(("placed", (i,)))
        else:
            build.append(("verb" if word.endswith("ing") else word, (i,)))
    return build


def _phrases(build: list[tuple[str, Run]]) -> tuple[Run, ...]:
    return tuple(run for mark, run in build if mark == "phrase")


def _alike(first: list[tuple[str, Run]], second: list[tuple[str, Run]]) -> bool:
    """Whether two prompts are of the same build."""
    return [mark for mark, _ in first] == [mark for mark, _ in second]


def _pairs(source: str, edit: str) -> list[tuple[Run, Run]]:
    """The phrases that correspond."""
    first, second = _build(folded(source)), _build(folded(edit))
    before, after = _phrases(first), _phrases(second)
    if _alike(first, second):
        return list(zip(before, after, strict=True))
    source_of = align(source, edit).source_of
    pairs, taken = [], set[Run]()
    for other in after:
        told = [source_of[j] for j in reversed(other)]
        one = next((run for i in told if i is not None for run in before if i in run), None)
        if one and one not in taken:
            taken.add(one)
            pairs.append((one, other))
    return sorted(pairs)


def _task(a: list[str], b: list[str], one: Run, other: Run) -> str | None:
    """What changes where a phrase becomes another; None for what is no object and stays, and for a style."""
    if STYLES & {*a[one[0] : one[-1] + 2], *b[other[0] : other[-1] + 2]}:
        return None
    same = [a[i] for i in one] == [b[j] for j in other]
    if role(a, one[-1]) == "place":
        return None if same else "place"
    return "keep" if same else "attribute" if a[one[-1]] == b[other[-1]] else "shape"


def _new(a: list[str], b: list[str], one: Run, other: Run) -> Run:
    """The positions of the words that are new in a phrase, and of a new verb behind it."""
    pairs = zip_longest(reversed(one), reversed(other))
    new = [j for i, j in pairs if j is not None and (i is None or a[i] != b[j])]
    i, j = one[-1] + 1, other[-1] + 1
    if i < len(a) and j < len(b) and a[i] != b[j] and all(word.endswith("ing") for word in (a[i], b[j])):
        new.append(j)
    return tuple(sorted(new))
