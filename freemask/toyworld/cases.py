"""Edits of rendered scenes whose true result is known: the bench's questions.

A case is a scene, one of its fields changed, and what a person would write to ask for that.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from .scenes import COLOURS, OBJECTS, PLACES, STYLES, Scene, caption, sample_scene

__all__ = ["CASE_TASKS", "Case", "sample_case"]

# task -> the field of the scene that it changes
CASE_TASKS = {"style": "style", "attribute": "colour", "shape": "object", "place": "place"}


@dataclass(frozen=True)
class Case:
    """An edit of one scene: `scene` is the source, `true` the wanted result, `word` the edited object's noun."""

    task: str
    seed: int
    scene: Scene
    true: Scene

    @property
    def word(self) -> str:
        return self.scene.object

    @property
    def field(self) -> str:
        """What changes, and the head of the classifier that sees it."""
        return CASE_TASKS[self.task]

    @property
    def prompts(self) -> tuple[str, str]:
        """What the clip shows and what it should show."""
        return caption(self.scene), caption(self.true)


def sample_case(task: str, seed: int) -> Case:
    """The case of a seed; the source never has a style, and only the task's field and its words change.

    An attribute edit recolours a coloured object; a shape edit gives another object that moves by the same
    verb; a place edit another place with the same preposition.
    """
    rng = random.Random(f"{task} {seed}")
    scene = replace(sample_scene(seed), style=None)
    if task == "style":
        return Case(task, seed, scene, replace(scene, style=rng.choice(STYLES)))
    if task == "attribute":
        scene = replace(scene, colour=scene.colour or rng.choice(tuple(COLOURS)))
        return Case(task, seed, scene, replace(scene, colour=_other(rng, list(COLOURS), scene.colour)))
    if task == "place":
        like = [place for place, words in PLACES.items() if words.split()[0] == PLACES[scene.place].split()[0]]
        return Case(task, seed, scene, replace(scene, place=_other(rng, like, scene.place)))
    if task == "shape":
        kin = [name for name, verb in OBJECTS.items() if verb == OBJECTS[scene.object]]
        if len(kin) == 1:
            scene = replace(scene, object=rng.choice([name for name in OBJECTS if name != scene.object]))
            kin = [name for name, verb in OBJECTS.items() if verb == OBJECTS[scene.object]]
        return Case(task, seed, scene, replace(scene, object=_other(rng, kin, scene.object)))
    raise ValueError(f"there is no task {task!r}; known: {', '.join(CASE_TASKS)}")


def _other(rng: random.Random, names: list[str], than: str | None) -> str:
    return rng.choice([name for name in names if name != than])
