"""FreeMask: masked fusion of source and edit features (Cai et al. 2024, Eq. 9-11).

M is the object's mask, E where the picture may change (the object, or for a style the background) and m = (1−δ)·M
(Eq. 9) where the object itself becomes another; bool, True = may change. Self-attention rows are E·A1 + (1−E)·A0, and
outside E early latents are the source's.

The presets' numbers are measured against the true edits of rendered scenes (mini as it was at 64 pixels, 12 steps,
guidance 4, seeds from 2,000,100; PSNR in dB; "found" is the share of clips in which an independent classifier sees the
edit, 1 for a plain denoise), but where they are told to be of 128 pixels:

- Guidance shifts the colours of the whole picture. Latent blending in the first 80 % of the steps undoes that outside
  E: 20.4 to 21.9 for attribute, 16.4 to 17.0 for shape (3 scenes each), and the kept object of a place edit from 18 to
  23 (10 scenes). A style has no such outside.
- Self fusion everywhere, inside E too (`Preset.free_self` false), is right where only the look changes: attribute 22.2
  to 23.5, and 24.2 without cross fusion; place 17.1 to 17.5 (8 scenes each).
- Cross fusion holds edits back where δ = 1, because m is 0 everywhere. In the order 99, 50, 20, 0 % of the steps:
  attribute –, 23.5, 24.1, 24.2 (8 scenes); style 18.8, –, 20.3, 20.8 (4 scenes). For place 30 % give 16.8 and none 17.1
  (8 scenes). So those three have none. Where δ = 0 it makes no difference.
- A style needs no mask. Self fusion everywhere for 70 % of the steps has 20.0 and 18.1, with E free 19.5 and 17.7,
  found 1.0 each (16 scenes). At 128 pixels (guidance 3, seeds from 2,680,000) everywhere for 70 % has 21.1, found .62,
  with E free 20.4, .69 (13 scenes); everywhere for 90 % 22.7, .70, with E free 21.5, .80 (10 scenes). mini-sd: 20.8
  for 20.3 (6 scenes). So E is empty, until a person chooses a mask.
- Place, at 128 pixels (4 scenes from seed 2,680,003): self fusion for 90 % of the steps in the place of 70 adds 0.2 dB,
  and latent blending for 60 % in the place of 80 with it 0.8.
- Temporal fusion changes nothing that is measured here: 24.2 and 24.3 without it (attribute), 17.1 and 17.2 (place).
- A mask grown by a cell, or joined with the edit word's own, loses what it adds inside to colours outside: 16.9 to
  16.5 (10 scenes) and 17.5 to 16.8 (4 scenes) for shape.
- Guidance (mini at 128 pixels, 6 scenes from seed 2,650,000): attribute at 4, 3 and 2.5 has 24.3, 24.7 and 24.8, shape
  (2 scenes) 16.8, 17.1 and 17.2. Guidance rescale is worth nothing: φ = .4 and .7 at guidance 4 have 24.3 and 24.2, and
  16.8 and 16.8.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .fusing import Fusing, TokenMap, remap

__all__ = ["FreeMask", "fuse_cross", "fuse_temporal"]


def fuse_cross(a0: Tensor, a1: Tensor, m: Tensor, tokens: TokenMap) -> Tensor:
    """Eq. 11: (1−m)·A0' + m·A1, where A0' are A0's columns at the edit prompt's tokens; a0, a1 (f, heads, p, k), m
    (f, p) bool."""
    return torch.where(m[:, None, :, None], a1, remap(a0, a1, tokens))


def fuse_temporal(source: Tensor, edit: Tensor, m: Tensor) -> Tensor:
    """Eq. 10 for Q or for K: (1−m)·source + m·edit, per position and frame; (p, heads, f, d), m (p, f) bool."""
    return torch.where(m[:, None, :, None], edit, source)


class FreeMask(Fusing):
    """Self-, cross- and temporal attention fused under the masks of the plan."""

    def free(self, t: int) -> np.ndarray:
        return self.editable(t) & self.task.free_self

    def moved(self, t: int) -> np.ndarray:
        """m = (1−δ)·M (Eq. 9)."""
        return self.object(t) & (self.task.delta == 0)

    def fuse_cross(self, a0: Tensor, a1: Tensor, m: Tensor) -> Tensor:
        return fuse_cross(a0, a1, m, self.tokens)

    def fuse_temporal(self, source: Tensor, edit: Tensor, m: Tensor) -> Tensor:
        return fuse_temporal(source, edit, m)
