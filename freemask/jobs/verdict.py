"""Whether an edit is to be trusted, in words, from the figures of its report.

The shipped examples are reconstructed at 27 dB and more; under 20 dB a picture is visibly another one, under 15 dB
little of it is left. A clip is like the toy world from `LIKE` on (measured in `toyworld.likeness`). The judge is that
world's CLIP: of 17 edits in it, in 8 or 25 steps, it gave all but one 0.70 or more against the edit prompt, a sketch
0.31; of 9 edits of real clips, noise all, all but one 0.59 or less. It knows no other world, so whichever of the two
prompts it finds nearer in such noise says little.

Both were taught one object a scene. Of two objects the likeness is not to be trusted (of 30 rendered pairs 30 % have
`LIKE`), nor the cosine (of 24 true edits 0.39 to 0.90), but which prompt is nearer is right: in every frame of all 24.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..words.differences import objects

__all__ = ["LIKE", "Level", "Verdict", "judged", "outside"]

Level = Literal["good", "doubtful", "poor"]
LEVELS: tuple[Level, ...] = ("good", "doubtful", "poor")
LIKE = 0.8  # likeness from which a clip is one of the toy world
# below the first an edit is doubtful, below the second poor
PSNR = 20.0, 15.0  # dB of the reconstruction
FOUND = 0.75, 0.5  # share of the frames that fit the edit prompt better than the source's
MATCH = 0.6  # cosine of the frames and the edit prompt under which an edit is doubtful, and of a strange clip poor


@dataclass(frozen=True)
class Verdict:
    """`level` is the worst of what the `sentences` tell."""

    level: Level
    sentences: list[str]


def outside(likeness: float | None, prompt: str = "") -> str | None:
    """What to tell of a clip, which its `prompt` describes, that is not like the toy world; None for one that is, or
    where it was not measured."""
    if likeness is None or likeness >= LIKE:
        return None
    if (count := len(objects(prompt))) > 1:
        return (
            "Whether the clip is like the toy world is not sure: its judge was taught one object a scene, and the "
            f"prompt names {count}. Look at the edit itself."
        )
    return (
        f"The clip is not like the toy world, all that this backbone has seen (likeness {likeness:.2f}, where "
        f"{LIKE:.2f} is like it): such clips turn into noise. For real clips choose zeroscope, on a machine with a GPU."
    )


def judged(metrics: Mapping[str, Any], prompt: str = "") -> Verdict:
    """The verdict on an edit of a clip, which its `prompt` describes, from its report's `metrics`; a figure that is
    absent or None says nothing."""
    strange, alone = outside(metrics.get("toy_likeness"), prompt), len(objects(prompt)) < 2
    unlike = strange is not None and alone
    levels, sentences = [int(strange is not None)], [strange] if strange else []
    psnr, found, match = (metrics.get(name) for name in ("reconstruction_psnr", "frame_accuracy", "clip"))
    if psnr is not None:
        level = _level(psnr, PSNR)
        levels.append(level)
        told = f"{psnr:.1f} dB, where {PSNR[0]:.0f} are good" if level else f"{psnr:.1f} dB"
        how = ("is near the clip", "is rough", "fails")[level]
        so = ("", ": what should stay may not", ": the inversion lost the clip")[level]
        cure = " More steps help." if level and not unlike else ""
        sentences.append(f"The reconstruction {how} ({told}){so}.{cure}")
    if found is not None:
        levels.append(_level(found, FOUND))
        if match is not None and match < MATCH and alone:
            levels.append(2 if strange else 1)
            sentences.append(f"The judge does not recognise the edit prompt ({match:.2f}, where {MATCH:.2f} is good).")
        elif unlike and levels[-1] == 0:
            sentences.append("The judge knows the toy world alone, so what it says counts for little here.")
        else:
            share = f"{100 * found:.0f} % of the frames, the others fit the source prompt better"
            where = {0.0: "no frame: all fit the source prompt better", 1.0: "every frame"}.get(found, share)
            doubt = ", if the clip is of its world" if strange else ""
            sentences.append(f"The judge finds the edit in {where}{doubt}.")
    return Verdict(LEVELS[max(levels)], sentences)


def _level(value: float, bounds: tuple[float, float]) -> int:
    return sum(value < bound for bound in bounds)
