"""A word's maps in figures, by layer and timestep: how large, how steady, how sharp, and where."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ..errors import MaskError
from .candidates import extract, resize
from .mmc import iou

__all__ = ["FIGURES", "map_curves"]

# what is measured, and its unit in words
FIGURES = {
    "area": "area of the mask, share of the frame",
    "iou": "IoU with the mask in use",
    "flicker": "flicker: share that changes from frame to frame",
    "entropy": "entropy of the map, share of the largest",
    "x": "centre from the left, share of the width",
    "y": "centre from the top, share of the height",
}
NOTHING = np.finfo(np.float32).tiny


def map_curves(
    maps: Mapping[tuple[int, str], NDArray[np.float32]], *, tau: float = 0.4, mask: NDArray[np.bool_] | None = None
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """site ↦ figure ↦ its values (t,), timesteps rising, of the soft maps (f, h, w) that `Editor.maps` gives by
    (t, site): means over the frames.

    Masks are cut at `tau` as an edit's are; `mask` (f, h', w') is what IoU is with. A figure is NaN where a map is flat
    or zero on a frame, or without a `mask`.
    """
    timesteps = sorted({t for t, _ in maps})
    found: dict[str, dict[str, NDArray[np.float64]]] = {}
    for site in dict.fromkeys(site for _, site in maps):
        each = [_figures(maps[t, site], tau, mask) for t in timesteps]
        found[site] = {name: np.array([one[name] for one in each]) for name in FIGURES}
    return found


def _figures(soft: NDArray[np.float32], tau: float, mask: NDArray[np.bool_] | None) -> dict[str, float]:
    total = soft.sum((1, 2), dtype=np.float64)
    found = dict.fromkeys(FIGURES, float("nan"))
    if total.min() <= 0:
        return found
    p = soft / total[:, None, None]
    h, w = soft.shape[1:]
    found["x"] = float((p.sum(1) @ ((np.arange(w) + 0.5) / w)).mean())
    found["y"] = float((p.sum(2) @ ((np.arange(h) + 0.5) / h)).mean())
    if h * w > 1:
        found["entropy"] = float(-(p * np.log(np.maximum(p, NOTHING))).sum((1, 2)).mean() / np.log(h * w))
    try:
        cut = extract(soft, tau)
    except MaskError:
        return found
    found["area"] = float(cut.mean())
    if len(cut) > 1:
        found["flicker"] = float((cut[1:] != cut[:-1]).mean())
    if mask is not None and mask.any():
        found["iou"] = float(
            np.mean([iou(a[None], b[None]) for a, b in zip(resize(cut, mask.shape[1:]), mask, strict=True)])
        )
    return found
