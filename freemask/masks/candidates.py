"""Word maps → mask candidates: one extraction for MMC, galleries and editing (FreeMask Sec. 4.2).

A candidate M_t^l is the word's soft map at timestep t and cross site l, divided by the maximum of each frame, and
strictly above τ. On fine grids it is 3×3 max-pooled first, as the paper's is; on a coarse one that would grow it by too
much of the picture. It stays at the site's own grid until someone asks for a size. Polarity: True = the word's object.

The consensus of a clip is a mask of another kind: the mean of the word's sharper maps, above half of its height.

Measured on 16 rendered scenes (16 steps, seeds from 2,400,000; IoU with the true masks on a grid of 16 × 16, where the
true mask itself has .84, and pooled .53; mini at 64 pixels, mini at 128, mini-sd):

- The best candidate pooled, τ = .3: .591, .352, .415. Not pooled, τ = .3: .727, .658, .642; τ = .4: .725, .682, .673;
  τ = .5: .698, .663, .675.
- The mean of the sharpest .15 of the maps above .2: .728, .527, .522, above .5: .704, .718, .676. The mean of the
  sharpest .3 above .5: .770, .708, .693, and with its lowest value as 0: .767, .722, .691.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from ..errors import MaskError
from ..families.sites import Site
from ..words.prompts import find_word
from .trace import Trace

__all__ = ["Consensus", "candidate", "candidates", "consensus", "dilate", "extract", "resize"]

SHARPER = 0.3  # the share of a clip's maps that speak for its consensus
FINE = 32  # cells of a grid's shorter side from which on maps are pooled


def extract(soft: np.ndarray, tau: float, *, pool: bool = True) -> np.ndarray:
    """(f, h, w) float32 soft map -> (f, h, w) bool at the same grid. `tau` in (0, 1); `pool`: on a fine grid.

    Raises MaskError for a map that is zero or constant on some frame: it says nothing about places.
    """
    pooled = soft
    if pool and min(soft.shape[1:]) >= FINE:
        pooled = np.stack([cv2.dilate(frame, np.ones((3, 3), np.uint8)) for frame in soft])
    top = pooled.max(axis=(1, 2), keepdims=True)
    if not np.all(top > 0):
        raise MaskError("An attention map is zero on a whole frame; choose another word, layer or timestep.")
    if pooled[0].size > 1 and np.any(soft.min(axis=(1, 2)) == soft.max(axis=(1, 2))):
        raise MaskError("An attention map is constant on a whole frame; choose another word, layer or timestep.")
    return pooled / top > tau


def resize(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(f, h, w) bool to (f, *size): nearest where both sides grow by whole factors, else area ≥ 0.5."""
    h, w = mask.shape[1:]
    if (h, w) == size:
        return mask
    if size[0] % h == 0 and size[1] % w == 0:
        return mask.repeat(size[0] // h, axis=1).repeat(size[1] // w, axis=2)
    # cv2's INTER_AREA is exact only when both sides shrink; grow by whole factors first where one must
    grow = (-(-size[0] // h), -(-size[1] // w))
    fine = mask.repeat(grow[0], axis=1).repeat(grow[1], axis=2).astype(np.float32)
    return np.stack([cv2.resize(m, size[::-1], interpolation=cv2.INTER_AREA) for m in fine]) >= 0.5 - 1e-4


def dilate(mask: np.ndarray, cells: int) -> np.ndarray:
    """(f, h, w) bool grown by `cells` in every direction."""
    if cells == 0:
        return mask
    kernel = np.ones((2 * cells + 1, 2 * cells + 1), np.uint8)
    return np.stack([cv2.dilate(m.astype(np.uint8), kernel) for m in mask]) > 0


def candidate(trace: Trace, word: str, *, t: int, site: Site, tau: float) -> np.ndarray:
    """M_t^l of a word (or several in a row) at the site's own grid: (f, h, w) bool."""
    return extract(trace.word_map(t, site, find_word(trace.prompt, word)), tau)


def candidates(trace: Trace, word: str, *, tau: float, size: tuple[int, int]) -> dict[tuple[int, str], np.ndarray]:
    """Every M_t^l at one size (h, w), keyed by (t, site name). A flat map counts as an empty candidate
    here, so that MMC gives it the capped cost."""
    at = find_word(trace.prompt, word)
    found = {}
    for t in trace.timesteps:
        for site in trace.sites:
            if site.kind != "cross":
                continue
            soft = trace.word_map(t, site, at)
            try:
                found[t, site.name] = resize(extract(soft, tau), size)
            except MaskError:
                found[t, site.name] = np.zeros((len(soft), *size), bool)
    return found


class Consensus(NamedTuple):
    """`soft` (f, h, w) float32 in [0, 1] at the latents' grid, and the cells (t, site name) that it is the mean of,
    the sharpest first."""

    soft: np.ndarray
    cells: tuple[tuple[int, str], ...]


def consensus(trace: Trace, word: str) -> Consensus:
    """What the sharper maps of a word agree on.

    Sharp is a map with a large spread for its mean (coefficient of variation over places, mean over frames); each
    is divided by the maximum of its frame before they are averaged, and the mean goes from 0 to 1 on each frame.
    Raises MaskError where every map is flat.
    """
    at = find_word(trace.prompt, word)
    h, w = trace.grid
    maps = {(t, s.name): trace.word_map(t, s, at) for t in trace.timesteps for s in trace.sites if s.kind == "cross"}
    spread = {cell: soft.std((1, 2)) / np.maximum(soft.mean((1, 2)), 1e-30) for cell, soft in maps.items()}
    usable = [cell for cell, by_frame in spread.items() if by_frame.min() > 1e-6]
    if not usable:
        raise MaskError("Every attention map of the word is flat on some frame; choose another word.")
    order = sorted(usable, key=lambda cell: -float(spread[cell].mean()))
    cells = tuple(order[: max(1, round(SHARPER * len(maps)))])
    unit = [maps[cell] / maps[cell].max((1, 2), keepdims=True) for cell in cells]
    grown = [np.stack([cv2.resize(frame, (w, h), interpolation=cv2.INTER_LINEAR) for frame in soft]) for soft in unit]
    mean = np.mean(grown, axis=0)
    mean -= mean.min((1, 2), keepdims=True)
    return Consensus(mean / np.maximum(mean.max((1, 2), keepdims=True), 1e-30), cells)
