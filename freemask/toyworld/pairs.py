"""Scenes of two objects in one place, and edits of them whose true result is known.

A `Pair` is two scenes of `scenes`, the one behind and the one in front of it, in the place of the first. A `PairCase`
changes one of them or both.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np

from .scenes import COLOURS, OBJECTS, PLACES, Rendered, Scene, draw, named, render_seed, sample_scene

__all__ = [
    "PAIR_CASES",
    "Pair",
    "PairCase",
    "RenderedPair",
    "pair_caption",
    "render_any",
    "render_pair",
    "sample_pair",
    "sample_pair_case",
]

SIDES = (0.28, 0.72)  # where the two objects are, as shares of the frame's width
PAIR_CASES = ("colours", "objects", "one", "swap", "all")


@dataclass(frozen=True)
class Pair:
    """Two objects: `scenes` from the back to the front, which share the first's place, style and background. The
    caption names the one on the left first, or with `turned` the other."""

    scenes: tuple[Scene, Scene]
    turned: bool = False

    @property
    def order(self) -> tuple[int, int]:
        """The indexes of the scenes as the caption names them."""
        left = 0 if self.scenes[0].x < self.scenes[1].x else 1
        return (1 - left, left) if self.turned else (left, 1 - left)

    @property
    def told(self) -> tuple[Scene, Scene]:
        """The scenes as the caption names them."""
        first, second = self.order
        return self.scenes[first], self.scenes[second]


class RenderedPair(NamedTuple):
    """`frames` (f, h, w, 3) uint8 RGB; `masks` (2, f, h, w) bool, what is seen of each object, in the order of the
    caption; `caption` the words."""

    frames: np.ndarray
    masks: np.ndarray
    caption: str


def sample_pair(seed: int) -> Pair:
    """The pair of a seed: two different objects, of which the one in front hides at most a part of the other."""
    rng = random.Random(f"pair {seed}")
    like = sample_scene(seed)
    kinds = rng.sample(tuple(OBJECTS), 2)
    sides = list(SIDES)
    rng.shuffle(sides)
    scenes = []
    for kind, side in zip(kinds, sides, strict=True):
        scale = rng.uniform(0.4, 0.52)
        scene = replace(
            like,
            object=kind,
            colour=rng.choice(tuple(COLOURS)) if rng.random() < 0.7 else None,
            scale=scale,
            x=side + rng.uniform(-0.04, 0.06) * (1 if side < 0.5 else -1),
            y=0.5 + rng.uniform(-1, 1) * (0.48 - scale / 2),
            dx=rng.uniform(0.03, 0.12) * rng.choice((-1, 1)),
            bob=rng.uniform(0, 0.03),
            phase=rng.random(),
        )
        scenes.append(scene)
    return Pair((scenes[0], scenes[1]), turned=rng.random() < 0.5)


def pair_caption(pair: Pair) -> str:
    """What a pair shows, such as "a red car and a yellow dog on the grass"."""
    first = pair.scenes[0]
    one, other = map(named, pair.told)
    style = f"{first.style} style painting of " if first.style else ""
    return f"{style}{one} and {other} {PLACES[first.place]}"


def render_pair(pair: Pair, size: int, *, frames: int = 8) -> RenderedPair:
    """Frames, both objects' masks and the caption of a pair at `size` × `size` pixels."""
    video, masks = draw(pair.scenes, size, frames=frames)
    return RenderedPair(video, masks[list(pair.order)], pair_caption(pair))


def render_any(seed: int, size: int, frames: int) -> Rendered:
    """The clip of a seed as a network learns from it, drawn on one thread: of every third seed a pair, with the masks
    of both objects together."""
    if seed % 3:
        return render_seed(seed, size, frames)
    cv2.setNumThreads(1)
    pair = render_pair(sample_pair(seed), size, frames=frames)
    return Rendered(pair.frames, np.any(pair.masks, axis=0), pair.caption)


@dataclass(frozen=True)
class PairCase:
    """An edit of a pair: `pair` is the source, `true` the wanted result.

    `kind` says what changes: both "colours", both "objects" with theirs, the colour of the "one" that the caption names
    first, "swap": each object becomes the other where it is; or "all": the colour of one, the other with its colour,
    and the place.
    """

    kind: str
    seed: int
    pair: Pair
    true: Pair

    @property
    def prompts(self) -> tuple[str, str]:
        """What the clip shows and what it should show."""
        return pair_caption(self.pair), pair_caption(self.true)

    @property
    def stages(self) -> list[Pair]:
        """The pair after each of the edits that would change one thing after the other: the objects as the caption
        names them, then the place."""
        found, scenes = [self.pair], list(self.pair.scenes)
        for at in self.pair.order:
            scenes[at] = replace(self.true.scenes[at], place=self.pair.scenes[0].place)
            found.append(replace(self.pair, scenes=(scenes[0], scenes[1])))
        found.append(self.true)
        return [after for before, after in pairwise(found) if after != before]


def sample_pair_case(kind: str, seed: int) -> PairCase:
    """The case of a seed; both objects have a colour and nothing a style. Raises ValueError for an unknown kind."""
    if kind not in PAIR_CASES:
        raise ValueError(f"there is no kind of case {kind!r}; known: {', '.join(PAIR_CASES)}")
    rng = random.Random(f"{kind} {seed}")
    pair = sample_pair(seed)
    hues = rng.sample(tuple(COLOURS), 4)
    scenes = [replace(scene, style=None, colour=hues[i]) for i, scene in enumerate(pair.scenes)]
    pair = replace(pair, scenes=(scenes[0], scenes[1]))
    first, second = pair.order
    kinds = rng.sample([name for name in OBJECTS if name not in {scene.object for scene in scenes}], 2)
    if kind == "swap":
        scenes = [replace(scenes[i], object=scenes[1 - i].object, colour=scenes[1 - i].colour) for i in range(2)]
    else:
        if kind != "objects":
            scenes[first] = replace(scenes[first], colour=hues[2])
        if kind == "colours":
            scenes[second] = replace(scenes[second], colour=hues[3])
        if kind == "objects":
            scenes = [replace(scene, object=name) for scene, name in zip(scenes, kinds, strict=True)]
        if kind == "all":
            scenes[second] = replace(scenes[second], object=kinds[1], colour=hues[3])
            place = rng.choice([p for p in PLACES if p not in ("flowers", "night", scenes[0].place)])
            scenes = [replace(scene, place=place) for scene in scenes]
    return PairCase(kind, seed, pair, replace(pair, scenes=(scenes[0], scenes[1])))
