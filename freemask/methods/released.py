"""What the released code of FreeMask does, which is not all that its paper says.

Cross-attention maps are blended before they are remapped. Where there is a mask, temporal attention takes that of one
inversion step, the label nearest 201, at each site's own grid, with source and edit swapped.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..families.sites import Site
from ..masks.plan import mean_mask
from .freemask import FreeMask
from .fusing import TokenMap, remap

__all__ = ["Released", "blend_first"]

LABEL = 201


def blend_first(a0: Tensor, a1: Tensor, m: Tensor, tokens: TokenMap) -> Tensor:
    """The remapped (1−m)·A0 + m·A1; a0, a1 (f, heads, p, k), m (f, p) bool. A token without a source keeps A1."""
    return remap(torch.where(m[:, None, :, None], a1, a0), a1, tokens)


class Released(FreeMask):
    """FreeMask as its code has it; its fixed layers are the preset's `mask` "level"."""

    def fuse_cross(self, a0: Tensor, a1: Tensor, m: Tensor) -> Tensor:
        return blend_first(a0, a1, m, self.tokens)

    @cached_property
    def swapped(self) -> dict[int, np.ndarray]:
        """By level, where temporal attention is the edit's: all but the object, (f, h, w) bool at the level's grid."""
        trace = self.trace
        t = min(trace.timesteps, key=lambda t: abs(t - LABEL))
        levels = {site.level for site in trace.sites if site.kind == "temporal"}
        return {level: ~mean_mask(trace, self.word, self.task.tau, t, level) for level in levels}

    def moved_in_time(self, site: Site) -> np.ndarray:
        return super().moved_in_time(site) if self.task.mask == "none" else self.swapped[site.level]
