"""Attention bent by hand: one word's maps at a layer scaled, blurred or shifted while the clip is edited.

What a map is worth shows when it is changed and the edit made again. The change is added to what the method makes of
the layer: out + (bent A1 − A1)·V on the word's columns, where A1 is softmax(QKᵀ/√d) of the edit's own row, so that
every method and family can be bent, fused or not.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..bends import Bend
from ..families.attention import Hook, attend, probabilities
from ..families.sites import Site
from ..masks.mmc import find_site
from ..masks.trace import Trace

__all__ = ["Bending"]


class Bending:
    """A bend in an edit of a trace: `columns` are its word's tokens in the edit prompt. Raises SettingError for a layer
    that the network lacks; a timestep that the trace lacks is the nearest one."""

    def __init__(self, bend: Bend, trace: Trace, columns: list[int]) -> None:
        self.bend, self.columns, self.grid = bend, columns, trace.grid
        self.site = find_site(bend.site, trace.sites)
        at = bend.timestep
        self.timestep = None if at is None else min(trace.timesteps, key=lambda t: abs(t - at))

    def acts(self, t: int) -> bool:
        """Whether a timestep's attention is bent."""
        return self.timestep in (None, t)

    def over(self, hooks: Mapping[Site, Hook], names: tuple[str, ...], t: int) -> Mapping[Site, Hook]:
        """The hooks of a forward with the rows of these names at a timestep, bent."""
        if "edit" not in names or not self.acts(t):
            return hooks
        inner = hooks.get(self.site)
        return {**hooks, self.site: partial(self._bend, inner, names.index("edit"), len(names))}

    def kind(self, kind: Hashable, t: int) -> Hashable:
        """What a forward has in common with others, told apart by whether it is bent."""
        return kind and (kind, self.acts(t))

    def _bend(self, inner: Hook | None, at: int, count: int, site: Site, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q1, k1, v1 = (each.chunk(count)[at] for each in (q, k, v))
        own = probabilities(q1, k1)[..., self.columns]
        change = self._bent(own, *site.grid(self.grid)) - own
        if self.bend.head is not None:
            kept = torch.zeros(own.shape[1], device=own.device)
            kept[self.bend.head - 1] = 1
            change = change * kept[None, :, None, None]
        out = inner(site, q, k, v) if inner else attend(q, k, v)
        edit = out.chunk(count)[at]
        edit += (change @ v1[..., self.columns, :].to(change.dtype)).to(edit.dtype)
        return out

    def _bent(self, maps: Tensor, h: int, w: int) -> Tensor:
        """Maps (f, heads, p, tokens) of h × w places as they are bent."""
        amount = self.bend.amount
        if self.bend.how == "scale":
            return maps * amount
        there = rearrange(maps, "f n (h w) k -> (f k) n h w", h=h, w=w)
        if self.bend.how == "shift":
            by = round(amount * w)
            moved = torch.zeros_like(there)
            if by > 0:
                moved[..., by:] = there[..., : w - by]
            else:
                moved[..., : w + by] = there[..., -by:]
        elif amount:
            reach = min(math.ceil(3 * amount), max(h, w) - 1)
            line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=maps.device) / amount) ** 2)
            line = (line / line.sum()).to(there.dtype)
            flat = F.pad(rearrange(there, "b n h w -> (b n) 1 h w"), (reach,) * 4, mode="replicate")
            moved = F.conv2d(F.conv2d(flat, line.view(1, 1, 1, -1)), line.view(1, 1, -1, 1)).view_as(there)
        else:
            moved = there
        return rearrange(moved, "(f k) n h w -> f n (h w) k", k=maps.shape[-1])
