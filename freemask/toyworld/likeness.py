"""How like the toy world a clip is: whether a backbone that has seen nothing else can edit it.

The toy CLIP and the classifier learnt from rendered scenes alone. On a clip of their world the classifier is sure, and
CLIP finds a caption that both agree on; on any other they disagree or waver. Hence the likeness: the best mean cosine
of the frames to a caption with the place that the classifier reads, its colour or none, any object and any style, less
0.1 for each nat of the classifier's entropy, the sum over its heads.

Measured: of 350 rendered scenes (seeds that neither learnt from) 99 % have 0.80 or more, the median 0.92; the shipped
clips have 0.91 or more. Real clips and pictures that are panned over (40, and 124 crops of them) all have less but four
crops, with 0.84 at most, the median 0.65; noise, gradients, plain colours and a drawn disc have 0.74 at most. The
autoencoder's PSNR, the error of a step at low noise and distances between features do not tell the two apart.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from torch import Tensor

from ..clips.video import read_clip
from ..jobs.metrics import load_clip
from .classify import CLASSES, Classifier, load_classifier
from .scenes import OBJECTS, STYLES, caption, sample_scene

__all__ = ["clip_likeness", "likeness"]

UNSURE = 0.1  # what a nat of the classifier's entropy takes away


def likeness(frames: np.ndarray) -> float:
    """How like the toy world the middle square of a clip (f, h, w, 3) uint8 is, at most 1; `verdict.LIKE` or more for
    its own clips. Raises MetricError where CLIP's weights, which ship with the code, are missing."""
    _, h, w, _ = frames.shape
    side = min(h, w)
    top, left = (h - side) // 2, (w - side) // 2
    frames = np.ascontiguousarray(frames[:, top : top + side, left : left + side])
    read = _classifier().read(frames)
    place, colour = (CLASSES[head][int(read[head].argmax())] for head in ("place", "colour"))
    shares = [logits.softmax(0) for logits in read.values()]
    entropy = -sum(float((share * share.clamp(min=1e-12).log()).sum()) for share in shares)
    cosines = load_clip("mini").images(frames).mean(0) @ _captions(str(place), colour).T
    return float(cosines.max()) - UNSURE * entropy


def clip_likeness(path: Path, *, frames: int, start: float, fps: float | None) -> float:
    """`likeness` of the frames that an edit of the video takes; raises ClipError and SettingError as `read_clip`."""
    side = _classifier().size
    return likeness(read_clip(path, frames=frames, start=start, fps=fps, size=(side, side)).frames)


@lru_cache(maxsize=1)
def _classifier() -> Classifier:
    return load_classifier()


@lru_cache(maxsize=64)
def _captions(place: str, colour: str | None) -> Tensor:
    """The embeddings (n, d) of the captions of all objects and styles in a place, in a colour and in none."""
    any_scene = sample_scene(0)
    texts = [
        caption(replace(any_scene, object=thing, colour=hue, place=place, style=style, wording=0))
        for thing in OBJECTS
        for hue in {colour, None}
        for style in (*STYLES, None)
    ]
    return load_clip("mini").texts(texts)
