"""A word of a prompt is a position: which one a name stands for, where a word stands twice.

A plain "dog" is the first of its prompt, "dog#2" the second; of several words in a row, "polar bear#2".
"""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["frames_told", "listed", "locate", "named", "numbered", "occurrence", "plain"]

_NUMBER = re.compile(r"#\s*(\d{1,9})\s*$")
TOLD = 30  # words that a message lists


def frames_told(at: Sequence[int]) -> str:
    """Indexes of frames, rising, as people count them: "frame 2" or "frames 1, 3 to 8"."""
    runs: list[list[int]] = []
    for index in at:
        if runs and runs[-1][-1] == index - 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    told = [f"{run[0] + 1}" if len(run) == 1 else f"{run[0] + 1} to {run[-1] + 1}" for run in runs]
    return f"frame{'s' if len(at) > 1 else ''} {', '.join(told)}"


def plain(word: str) -> str:
    """A word without the number of its occurrence."""
    return _NUMBER.sub("", word).rstrip()


def locate(tokens: Sequence[str], wanted: Sequence[str], occurrence: int = 1) -> list[int]:
    """The positions of the n-th run (from 1) of some words among others, without case; none where there is none."""
    starts, run = _starts(tokens, wanted), len(wanted)
    if not 1 <= occurrence <= len(starts):
        return []
    start = starts[occurrence - 1]
    return list(range(start, start + run))


def _starts(tokens: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Where every run of some words among others begins, without case."""
    found, run = [one.casefold() for one in tokens], [one.casefold() for one in wanted]
    return [i for i in range(len(found) - len(run) + 1) if run and found[i : i + len(run)] == run]


def occurrence(word: str) -> int:
    """Which occurrence a name asks for: 2 for "dog#2", 1 for "dog"."""
    number = _NUMBER.search(word)
    return int(number[1]) if number else 1


def named(tokens: Sequence[str], at: Sequence[int]) -> str:
    """The name of the words at some positions in a row, numbered where the same words stand before."""
    own = [tokens[i] for i in at]
    n = 1 + _starts(tokens, own).index(at[0])
    return " ".join(own) + (f"#{n}" if n > 1 else "")


def listed(names: Sequence[str]) -> str:
    """Words in a message: those of a long prompt are not all told."""
    more = len(names) - TOLD
    return ", ".join(names[:TOLD]) + (f" and {more} more" if more > 0 else "")


def numbered(tokens: Sequence[str]) -> list[str]:
    """Every word by a name of its own: "a", "dog", "chasing", "a#2", "dog#2"."""
    return [named(tokens, [i]) for i in range(len(tokens))]
