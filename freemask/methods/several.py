"""FreeMask on several objects in one pass: each change has its own word, task, mask and windows.

The paper edits one object. Here every place of the picture belongs to one change, or to none: the masks are disjoint
(`masks.disjoint`), a change of place has what is left of the picture, and an object may be kept as it is. What
FreeMask does under one mask is done in each region as its own task says:

- Self-attention's rows follow the region that they are in: free there, or the source's in that change's window.
- Cross-attention: a change's new words are shut out of the other regions that have an object. Their columns are zero
  there and the rest of the row keeps its sum, as if they had been left out of the softmax.
- Temporal attention is the edit's own where an object becomes another.
- Latents outside all regions that change are the source's, in the longest window of these.

A word that is new and belongs to no change, such as a style's, acts everywhere. With one change this is FreeMask to the
bit.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ..changes import Change, new_words
from ..clips.strides import to_latent
from ..families.attention import probabilities
from ..families.graphs import given, taken
from ..families.sites import Site
from ..masks.candidates import resize
from ..masks.plan import MaskPlan
from ..presets import Preset
from .base import window, windows
from .freemask import FreeMask

__all__ = ["Part", "Several", "parts_of"]


@dataclass(frozen=True)
class Part:
    """One change: the source's `word`, the positions of the edit prompt's words that are new (`edit`), how it is done,
    and whether the object is `kept` as it is; `site`, `timestep` and `mask` (f, H, W) bool as for one edit. A change of
    place has no mask of its own."""

    word: str
    edit: tuple[int, ...]
    task: Preset
    kept: bool = False
    site: str | None = None
    timestep: int | None = None
    mask: np.ndarray | None = None

    @property
    def everywhere(self) -> bool:
        """Whether it changes what is left of the picture."""
        return self.task.region == "background"


def _changed(task: Preset) -> float:
    """The share of the steps in which a task's changed words are fused."""
    return task.alpha_cross if task.alpha_changed is None else task.alpha_changed


class Several(FreeMask):
    """One edit with several changes; `plans` are their masks in the same order, None of a place's."""

    def __init__(self, *args: Any, parts: Sequence[Part], plans: Sequence[MaskPlan | None], **options: Any) -> None:
        super().__init__(*args, **options)
        steps = len(self.order)
        self.parts = list(zip(parts, plans, strict=True))
        active = [part for part in parts if not part.kept]
        self.cuts = {id(part): windows(part.task, steps) for part in active}
        self.windows = {kind: max(cut[kind] for cut in self.cuts.values()) for kind in self.windows}
        self.blended = max(window(part.task.alpha_latent, steps) for part in active)
        device, length = self.text["edit"].device, self.text["edit"].shape[1]
        self.changed_cuts = [window(_changed(part.task), steps) for part in parts]
        self.columns = []
        for part in parts:
            marks = torch.zeros(length, dtype=torch.bool)
            marks[[token for j in part.edit for token in self.edit_tokens[j]]] = True
            self.columns.append(marks.to(device))

    def kind(self, names: tuple[str, ...]) -> Hashable:
        own = super().kind(names)
        late = tuple(self.order[self.t] >= cut for cut in self.changed_cuts)
        return None if own is None else (own, late)

    # ------------------------------------------------------------------ regions

    def regions(self, t: int) -> list[np.ndarray]:
        """Where each part acts, at the latents' grid: (f, h, w) bool, disjoint."""
        left = ~np.any([plan.object_at[t] for _, plan in self.parts if plan], axis=0)
        return [plan.object_at[t] if plan else left for _, plan in self.parts]

    def _where(self, kind: str, t: int) -> np.ndarray:
        """Where attention of a kind is the edit's own."""
        found = np.zeros_like(self.plan.object_at[t])
        for (part, _), region in zip(self.parts, self.regions(t), strict=True):
            if part.kept:
                continue
            inside = part.task.free_self if kind == "self" else part.task.delta == 0
            if inside or self.order[t] >= self.cuts[id(part)][kind]:
                found |= region
        return found

    def free(self, t: int) -> np.ndarray:
        return self._where("self", t)

    def moved(self, t: int) -> np.ndarray:
        return self._where("cross", t)

    def moved_in_time(self, site: Site) -> np.ndarray:
        return resize(self._where("temporal", self.t), site.grid(self.trace.grid))

    def editable(self, t: int) -> np.ndarray:
        pairs = zip(self.parts, self.regions(t), strict=True)
        return np.any([region for (part, _), region in pairs if not part.kept], axis=0)

    # ------------------------------------------------------------------ the words of the others

    def open(self, kinds: set[str]) -> None:
        super().open(kinds)
        if len(self.parts) > 1:
            cross = [site for site in self.trace.sites if site.kind == "cross" and self.sites.get(site) != self.fuse]
            self.sites |= dict.fromkeys(cross, self.tell)

    def tell(self, site: Site, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of all rows, the edit's with each word in its own region."""
        count, at = len(self.now), self.now.index("edit")
        a = probabilities(q.chunk(count)[at], k.chunk(count)[at])
        if self.watched:
            taken(partial(self.see, self.seen, site, self.watched_tokens), a.mean(1))
        return self.under(self.shut(site, a), q, k, v)

    def weighed(self, site: Site, a: Tensor, a1: Tensor) -> Tensor:
        for (part, _), columns, cut in zip(self.parts, self.columns, self.changed_cuts, strict=True):
            if part.kept:
                continue
            if self.order[self.t] >= cut:
                a = torch.where(columns, a1, a)
            if part.task.reweight != 1.0:
                a = torch.where(columns, a * part.task.reweight, a)
        return self.shut(site, a) if len(self.parts) > 1 else a

    def shut(self, site: Site, a: Tensor) -> Tensor:
        """Maps (f, heads, p, k) without the words that belong elsewhere, each row's sum as it was."""
        out = given(("shut", site.level, site.joint), lambda: (self.shut_out(site, a.device),))[0][:, None]
        kept = a.masked_fill(out, 0)
        return kept * (a.sum(-1, keepdim=True) / kept.sum(-1, keepdim=True).clamp_min(1e-30))

    def shut_out(self, site: Site, device: torch.device) -> Tensor:
        """Which words (f, p, k) bool are shut out of each place of the span's frames at a site's grid."""
        key = "shut", site.level
        if key not in self.cached:
            grid = site.grid(self.trace.grid)
            objects = [
                torch.from_numpy(to_latent(resize(plan.object_at[self.t], grid), self.trace.stride)) if plan else None
                for _, plan in self.parts
            ]
            shape = next(m for m in objects if m is not None).shape
            out = torch.zeros(*shape, len(self.columns[0]), dtype=torch.bool)
            for n, columns in enumerate(self.columns):
                others = [m for i, m in enumerate(objects) if m is not None and i != n]
                if others:  # of a coarse cell that is half of both, neither is shut out
                    away, own = torch.stack(others).any(0), objects[n]
                    away = away if own is None else away & ~own
                    out[..., columns.cpu()] |= away[..., None]
            self.cached[key] = rearrange(out, "f h w k -> f (h w) k").to(device, non_blocking=True), None
        there = self.cached[key][0][self.span.frames]
        return rearrange(there, "f p k -> 1 (f p) k") if site.joint else there


def parts_of(changes: Sequence[Change], source: str, edit: str, preset: Callable[[Change], Preset]) -> tuple[Part, ...]:
    """The parts of an edit by its changes, each done as `preset` says."""
    return tuple(
        Part(
            change.word,
            new_words(change, source, edit),
            preset(change),
            kept=change.task == "keep",
            site=change.site,
            timestep=change.timestep,
        )
        for change in changes
    )
