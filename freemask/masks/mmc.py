"""Mask Matching Cost: how well each layer's and timestep's mask fits the object (FreeMask Eq. 2-8).

Cost = 1 / max(d, 0.01) with d the volume IoU over f × h × w, so one useless candidate costs at most 100.
LMMC is the mean over timesteps, TMMC the mean over sites, ties go to the first. What was measured for a
backbone is a codebook, a JSON file. Where none was measured, a clip chooses for itself (`plan`); a stated fallback
is then named for edits that read no map, those under a painted mask or under none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from json import dumps
from pathlib import Path

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated

from ..clips.ffmpeg import whole
from ..errors import SettingError
from ..families.sites import Site
from ..families.specs import PRESETS, kindred
from ..validation import unknown

__all__ = [
    "CAP",
    "Choice",
    "ClipCosts",
    "Codebook",
    "choose",
    "codebook_path",
    "cost",
    "find_site",
    "iou",
    "lmmc",
    "read_codebook",
    "summarise",
    "tmmc",
    "write_codebook",
]

CAP = 0.01


def iou(mask: np.ndarray, reference: np.ndarray) -> float:
    """d (Eq. 2): volume IoU of two bool arrays (f, h, w); two empty masks agree."""
    union = np.count_nonzero(mask | reference)
    return np.count_nonzero(mask & reference) / union if union else 1.0


def cost(d: np.ndarray) -> np.ndarray:
    """1 / max(d, 0.01), any shape."""
    return 1 / np.maximum(d, CAP)


def lmmc(d: np.ndarray) -> np.ndarray:
    """D_l (Eq. 3): d (t, l) -> (l,)."""
    return cost(d).mean(axis=0)


def tmmc(d: np.ndarray) -> np.ndarray:
    """D_t (Eq. 5): d (t, l) -> (t,)."""
    return cost(d).mean(axis=1)


@dataclass(frozen=True)
class Choice:
    """l* and t* (Eq. 4, 6) and their `origin`: measured, fallback, adaptive, consensus or painted (`plan`)."""

    site: Site
    timestep: int
    origin: str


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ClipCosts:
    """One clip of a codebook: its own LMMC by site and TMMC by timestep, its best IoU, and how many of its
    candidates were so bad that their cost was capped."""

    name: str
    lmmc: tuple[float, ...]
    tmmc: tuple[float, ...]
    best_iou: float
    capped: int


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Codebook:
    """What was measured for a backbone. `timesteps` rise; `iou[t][l]`, `lmmc[l]` and `tmmc[t]` are means over
    `clips`; `site` and `timestep` are l* and t* (Eq. 4, 6); `skipped` names the clips that could not be used,
    each with the reason; `candidates` counts those of all clips, `capped` those among them with a capped cost."""

    backbone: str
    dataset: str
    date: str
    tau: float
    steps: int
    frames: int
    sites: tuple[str, ...]
    timesteps: tuple[int, ...]
    site: str
    timestep: int
    lmmc: tuple[float, ...]
    tmmc: tuple[float, ...]
    iou: tuple[tuple[float, ...], ...]
    candidates: int
    capped: int
    clips: tuple[ClipCosts, ...]
    skipped: tuple[str, ...] = ()


def summarise(d: dict[str, np.ndarray], **about: object) -> Codebook:
    """The codebook of clips' IoUs, name -> (t, l) in [0, 1]; `about` gives the remaining fields.

    LMMC and TMMC are means over clips of each clip's own, so every clip counts alike. Ties go to the first.
    """

    def rounded(values: np.ndarray) -> tuple[float, ...]:
        return tuple(np.round(values.astype(float), 4).tolist())

    by_site = np.mean([lmmc(one) for one in d.values()], axis=0)
    by_timestep = np.mean([tmmc(one) for one in d.values()], axis=0)
    clips = [
        {
            "name": name,
            "lmmc": rounded(lmmc(one)),
            "tmmc": rounded(tmmc(one)),
            "best_iou": round(float(one.max()), 4),
            "capped": int((one < CAP).sum()),
        }
        for name, one in d.items()
    ]
    sites, timesteps = list(map(str, about["sites"])), list(map(int, about["timesteps"]))  # type: ignore[call-overload]
    values = about | {
        "site": sites[int(by_site.argmin())],
        "timestep": timesteps[int(by_timestep.argmin())],
        "lmmc": rounded(by_site),
        "tmmc": rounded(by_timestep),
        "iou": tuple(rounded(row) for row in np.mean(list(d.values()), axis=0)),
        "candidates": int(sum(one.size for one in d.values())),
        "capped": sum(clip["capped"] for clip in clips),  # type: ignore[misc]
        "clips": clips,
    }
    book: Codebook = TypeAdapter(Codebook).validate_python(values)
    return book


def codebook_path(backbone: str) -> Path:
    """Where the measured codebook of a backbone, by its short name, hub id or folder, is kept; a tuned folder has that
    of the backbone that it was made from."""
    spec = kindred(backbone)
    file = spec.codebook if spec else None
    return PRESETS / "codebooks" / (file or f"{backbone.replace('/', '--')}.json")


def write_codebook(path: Path, book: Codebook) -> None:
    """Saves a codebook as JSON, a line for each field, so that changes can be read."""
    lines = (f"  {dumps(name)}: {dumps(value)}" for name, value in asdict(book).items())
    with whole(path) as part:
        part.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def read_codebook(backbone: str) -> Codebook | None:
    """The measured codebook, or None where none was; raises SettingError for a file that is no codebook."""
    path = codebook_path(backbone)
    if not path.exists():
        return None
    try:
        book: Codebook = TypeAdapter(Codebook).validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise SettingError(f"{path} is no codebook: {where}: {first['msg']}. Measure it again or delete it.") from None
    return book


def _nearest(timesteps: Sequence[int], wanted: int) -> int:
    return min(timesteps, key=lambda t: (abs(t - wanted), t))


def find_site(name: str, sites: Sequence[Site]) -> Site:
    """The cross-attention site of a full or a short name ("up 3.0"); raises SettingError for any other."""
    cross = [site for site in sites if site.kind == "cross"]
    for site in cross:
        if name.strip().casefold() in (site.name.casefold(), site.short.casefold()):
            return site
    raise SettingError(unknown("cross-attention layer", name, [site.short for site in cross]))


def choose(
    backbone: str,
    sites: Sequence[Site],
    timesteps: Sequence[int],
    grid: tuple[int, int],
    *,
    site: str | None = None,
    timestep: int | None = None,
) -> Choice:
    """l*, t* for a run: those that a person picked, the codebook's, or the fallback; at the nearest timestep.

    The fallback is the second cross site of the coarsest up block with at least 8 × 8 positions, of a transformer the
    block at .6 of its depth (18 of 30, as FlowDirector has it), and the timestep nearest 200. Raises SettingError for a
    picked site that there is not.
    """
    if site is not None:
        wanted = choose(backbone, sites, timesteps, grid).timestep if timestep is None else timestep
        return Choice(find_site(site, sites), _nearest(timesteps, wanted), "picked")
    cross = [site for site in sites if site.kind == "cross"]
    book = read_codebook(backbone)
    if book is not None:
        by_name = {site.name: site for site in cross}
        best = by_name.get(book.site)
        if best is not None:
            return Choice(best, _nearest(timesteps, book.timestep), "measured")
    up = [site for site in cross if site.name.startswith("up_blocks")]
    if not up:
        return Choice(cross[int(0.6 * len(cross))], _nearest(timesteps, 200), "fallback")
    large = [site for site in up if np.prod(site.grid(grid)) >= 64] or up
    deepest = max(site.level for site in large)
    block = [site for site in large if site.level == deepest]
    return Choice(block[min(1, len(block) - 1)], _nearest(timesteps, 200), "fallback")
