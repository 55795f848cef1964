"""Whether an edit is to be trusted, in words, from the figures of its report.

The shipped examples are reconstructed at 27 dB and more; under 20 dB a picture is visibly another one, under 15 dB
little of it is left. A clip is like the toy world from `LIKE` on (measured in `toyworld.likeness`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["LIKE", "Level", "Verdict", "judged", "outside"]

Level = Literal["good", "doubtful", "poor"]
LEVELS: tuple[Level, ...] = ("good", "doubtful", "poor")
LIKE = 0.8  # likeness from which a clip is one of the toy world
PSNR = 20.0, 15.0  # dB of the reconstruction under which an edit is doubtful, and poor
FOUND = 0.75, 0.5  # likewise the share of frames in which the judge finds the edit


@dataclass(frozen=True)
class Verdict:
    """`level` is the worst of what the `sentences` tell."""

    level: Level
    sentences: list[str]


def outside(likeness: float | None) -> str | None:
    """What to tell of a clip that is not like the toy world; None for one that is, or where it was not measured."""
    if likeness is None or likeness >= LIKE:
        return None
    return (
        f"The clip is not like the toy world, all that this backbone has seen (likeness {likeness:.2f}; its own clips "
        f"have {LIKE:.2f} or more): expect noise, not an edit. For real clips choose zeroscope, on a machine with a GPU."
    )


def judged(metrics: Mapping[str, Any]) -> Verdict:
    """The verdict on an edit from its report's `metrics`; a figure that is absent or None says nothing."""
    strange = outside(metrics.get("toy_likeness"))
    levels, sentences = [int(strange is not None)], [strange] if strange else []
    psnr, found = metrics.get("reconstruction_psnr"), metrics.get("frame_accuracy")
    if psnr is not None:
        levels.append(_level(psnr, PSNR))
        told = f"{psnr:.1f} dB" if psnr >= PSNR[0] else f"{psnr:.1f} dB, where {PSNR[0]:.0f} are good"
        cure = "" if strange or psnr >= PSNR[0] else " More steps help."
        how = ("is faithful", "is rough", "fails")[levels[-1]]
        so = ("", ": what should stay may not", ": the inversion lost the clip")[levels[-1]]
        sentences.append(f"The reconstruction {how} ({told}){so}.{cure}")
    if found is not None:
        levels.append(_level(found, FOUND))
        share = f"{100 * found:.0f} % of the frames, the others fit the source prompt better"
        where = {0.0: "no frame: all fit the source prompt better", 1.0: "every frame"}.get(found, share)
        sentences.append(f"The judge finds the edit in {where}.")
    return Verdict(LEVELS[max(levels)], sentences)


def _level(value: float, bounds: tuple[float, float]) -> int:
    return sum(value < bound for bound in bounds)
