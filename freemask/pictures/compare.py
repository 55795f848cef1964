"""Two edits beside each other: where their maps differ by layer and timestep, and where their masks do."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from .sheets import SCREEN, Image, Ink, WordMaps, draw_cells

__all__ = ["FIRST", "SECOND", "difference_sheet", "masks_strip", "outlined"]

FIRST, SECOND = (90, 160, 255), (255, 150, 60)  # the colours of the two
WIDE = 1200  # pixels of a strip
SHOWN = 8  # frames of it at most

Maps = Mapping[tuple[int, str], NDArray[np.float32]]  # (f, h, w) by (t, site)


def difference_sheet(index: WordMaps, first: Maps, second: Maps, *, frame: int, title: str, ink: Ink = SCREEN) -> Image:
    """A cell for each layer and timestep: blue where the first edit's map is the stronger, orange where the second's,
    each map divided by its own maximum on the frame; nearly the ground's colour where they agree."""
    own = {site: np.stack([_own(first[t, site][frame]) for t in index.timesteps]) for site in index.sites}
    other = {site: np.stack([_own(second[t, site][frame]) for t in index.timesteps]) for site in index.sites}
    ground = np.array(ink.rgb("ground"), np.float32)
    ground += np.where(ground < 128, 20, -20)
    return draw_cells(
        index, {site: own[site] - other[site] for site in own}, title, partial(_two_colours, ground=ground), ink
    )


def _own(soft: NDArray[np.float32]) -> NDArray[np.float32]:
    return soft / max(float(soft.max()), float(np.finfo(np.float32).tiny))


def _two_colours(difference: NDArray[np.float32], size: tuple[int, int], *, ground: NDArray[np.float32]) -> Image:
    grown = cv2.resize(difference, size, interpolation=cv2.INTER_NEAREST)[..., None].clip(-1, 1)
    hue = np.where(grown > 0, np.array(FIRST, np.float32), np.array(SECOND, np.float32))
    return np.rint(ground + np.abs(grown) * (hue - ground)).astype(np.uint8)


def masks_strip(frames: NDArray[np.uint8], first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Image:
    """Frames (f, h, w, 3) in a row, with the outlines of two edits' masks (f, h, w): blue and orange."""
    at = np.unique(np.linspace(0, len(frames) - 1, SHOWN).round().astype(int))
    h, w = frames.shape[1:3]
    scale = WIDE / (len(at) * w)
    size = max(1, round(scale * w)), max(1, round(scale * h))
    row = []
    for k in at:
        picture = cv2.resize(frames[k], size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        for mask, colour, thick in ((first[k], FIRST, 4), (second[k], SECOND, 2)):
            picture = outlined(picture, mask, colour, thick)
        row.append(picture)
    return np.hstack(row)


def outlined(picture: Image, mask: NDArray[np.bool_], colour: tuple[int, int, int] = SECOND, thick: int = 2) -> Image:
    """A picture (h, w, 3) with a mask's outline, so many pixels thick; the mask (h', w') may be smaller."""
    on = cv2.resize(mask.astype(np.uint8), picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    outlines, _ = cv2.findContours(on, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.ascontiguousarray(picture), outlines, -1, colour, thick)
