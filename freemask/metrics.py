"""Figures about clips: frames in, floats out."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["psnr", "ssim"]


def psnr(a: np.ndarray, b: np.ndarray, *, keep: np.ndarray | None = None) -> float:
    """PSNR in dB of two clips (f, h, w, 3) uint8, over the pixels where `keep` (f, h, w) is True.

    With `keep` the unedited region this is FreeMask's M.PSNR (Eq. 12, whose printed form compares the edit
    with itself). Equal clips give infinity, no pixels at all give NaN.
    """
    squared = (a.astype(np.float64) - b.astype(np.float64)) ** 2
    if keep is not None:
        squared = squared[keep]
    if squared.size == 0:
        return math.nan
    error = float(squared.mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity in [-1, 1] of two clips (f, h, w, 3) uint8: scikit-image's, the mean over frames."""
    from skimage.metrics import structural_similarity

    return float(np.mean([structural_similarity(x, y, channel_axis=-1) for x, y in zip(a, b, strict=True)]))
