"""Mask Matching Cost: how well each layer's and timestep's mask fits the object (FreeMask Eq. 2-8).

Cost = 1 / max(d, 0.01) with d the volume IoU over f × h × w, so one useless candidate costs at most 100.
LMMC is the mean over timesteps, TMMC the mean over sites, ties go to the first. What was measured for a
backbone is a codebook, a JSON file; where none was measured a stated fallback serves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .presets import PRESETS
from .trace import Site

__all__ = ["CAP", "Choice", "choose", "codebook_path", "cost", "iou", "lmmc", "read_codebook", "tmmc"]

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
    """l* and t* of a backbone (Eq. 4, 6), and whether they were measured or are the fallback."""

    site: Site
    timestep: int
    origin: str


def codebook_path(backbone: str) -> Path:
    """Where a backbone's measured codebook is kept."""
    return PRESETS / "codebooks" / f"{backbone.replace('/', '--')}.json"


def read_codebook(backbone: str) -> Mapping[str, object] | None:
    """The measured codebook, or None where none was."""
    path = codebook_path(backbone)
    if not path.exists():
        return None
    book: Mapping[str, object] = json.loads(path.read_text())
    return book


def _nearest(timesteps: Sequence[int], wanted: int) -> int:
    return min(timesteps, key=lambda t: (abs(t - wanted), t))


def choose(backbone: str, sites: Sequence[Site], timesteps: Sequence[int], grid: tuple[int, int]) -> Choice:
    """l*, t* for a run: the codebook's, at the nearest timestep, or the fallback.

    The fallback is the second cross site of the coarsest up block with at least 8 × 8 positions, and the
    timestep nearest 200.
    """
    cross = [site for site in sites if site.kind == "cross"]
    book = read_codebook(backbone)
    if book is not None:
        by_name = {site.name: site for site in cross}
        site = by_name.get(str(book["site"]))
        if site is not None:
            return Choice(site, _nearest(timesteps, int(str(book["timestep"]))), "measured")
    up = [site for site in cross if site.name.startswith("up_blocks")]
    large = [site for site in up if np.prod(site.grid(grid)) >= 64] or up or cross
    deepest = max(site.level for site in large)
    block = [site for site in large if site.level == deepest]
    return Choice(block[min(1, len(block) - 1)], _nearest(timesteps, 200), "fallback")
