"""Frames and latent frames: an autoencoder with a stride in time makes one latent frame of the first frame, and one of
every so many after it, so that a clip of s·k + 1 frames has k + 1 latent frames. This is the one place that says how
masks and maps go from the one to the other.

A clip of another length is padded by its last frame, and cut again after decoding. From frames to latent frames a mask
holds where it holds in any of them; back, each frame has what its latent frame has. With a stride of 1 nothing changes.
"""

from __future__ import annotations

import numpy as np

__all__ = ["MOST_FRAMES", "latent_frames", "of_frames", "padded", "to_frames", "to_latent"]

MOST_FRAMES = 81  # that an edit may have: as many as Wan 2.1 was trained on


def latent_frames(frames: int, stride: int) -> int:
    """How many latent frames a clip has."""
    return 1 + -(-(frames - 1) // stride)


def of_frames(frames: int, stride: int) -> np.ndarray:
    """The latent frame of each frame: (frames,) int64, rising from 0."""
    return -(-np.arange(frames) // stride)


def padded(clip: np.ndarray, stride: int) -> np.ndarray:
    """Frames (f, …) with the last one repeated until they fill their latent frames."""
    missing = 1 + stride * (latent_frames(len(clip), stride) - 1) - len(clip)
    return np.concatenate([clip, *[clip[-1:]] * missing]) if missing else clip


def to_latent(mask: np.ndarray, stride: int) -> np.ndarray:
    """(f, …) bool to (f', …) bool: any of the frames of each."""
    if stride == 1:
        return mask
    starts = np.flatnonzero(np.diff(of_frames(len(mask), stride), prepend=-1))
    out: np.ndarray = np.logical_or.reduceat(mask, starts, axis=0)
    return out


def to_frames(maps: np.ndarray, frames: int, stride: int) -> np.ndarray:
    """(f', …) to (frames, …): each frame as its latent frame."""
    return maps if stride == 1 else maps[of_frames(frames, stride)]
