"""What a hostile case is: a shape of file or request, made anew from a seed, and what has to become of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FINE, BAD, ANY = "accepted", "refused", "either"  # what has to become of a case
Make = Callable[[random.Random, Path], Any]


@dataclass(frozen=True)
class Shape:
    """Makes one kind of input in a folder of its own, and says what has to become of it. It is made in each
    round of all shapes, or, where that is slow, in one round of so many (`every`)."""

    name: str
    verdict: str
    make: Make
    every: int = 1


class Shapes(list[Shape]):
    """The shapes of one kind, each added by a decorator."""

    def add(self, verdict: str, *, every: int = 1) -> Callable[[Make], Make]:
        def decorate(make: Make) -> Make:
            self.append(Shape(make.__name__, verdict, make, every))
            return make

        return decorate

    def at(self, index: int) -> Shape:
        """The shape of a case by its number: all in turn, the slow ones in some rounds alone."""
        lap = 0
        while True:
            due = [shape for shape in self if (lap + 1) % shape.every == 0]
            if index < len(due):
                return due[index]
            index, lap = index - len(due), lap + 1


class Refused(Exception):
    """What the page, or Gradio before it, refused, with what the caller is told."""


class Unhandled(Exception):
    """What our own code let through in a thread of the server."""


def rng_of(seed: int, kind: str, index: int) -> random.Random:
    """What all of a case is drawn from."""
    return random.Random(f"{seed} {kind} {index}")


def damage(rng: random.Random, data: bytes, *, first: int = 0, last: int | None = None) -> bytes:
    """Data cut, with some bytes flipped, or with a stretch of zeros, between two places."""
    last = len(data) if last is None else min(last, len(data))
    how = rng.choice(("cut", "flip", "zero"))
    if how == "cut":
        return data[: rng.randrange(first, max(first + 1, last))]
    changed = bytearray(data)
    if how == "flip":
        for _ in range(rng.choice((1, 4, 32))):
            changed[rng.randrange(first, last)] ^= 1 << rng.randrange(8)
    else:
        begin = rng.randrange(first, last)
        end = min(last, begin + rng.randrange(1, max(2, (last - first) // 3)))
        changed[begin:end] = bytes(end - begin)
    return bytes(changed)
