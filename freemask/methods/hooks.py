"""Which attention sites an edit fuses at each step, and what happens there (FreeMask Eq. 9-11).

The equations are `equations`'s; here they meet the batch rows of an edit's forwards, the masks at every grid, and the
source's features, which stand in a row of their own or were kept before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ..clips.spans import Span, spans
from ..families.attention import Hook, attend, probabilities, word_probabilities
from ..families.ddim import CLEAN
from ..families.sites import Site
from ..masks.candidates import extract, resize
from ..masks.features import Features
from ..masks.plan import MaskPlan
from ..masks.trace import MapSum, SoftMap, Trace
from ..presets import Preset
from .equations import TokenMap, fuse_cross, fuse_self, fuse_temporal

__all__ = ["ROWS", "Fusing", "fused_sites", "window", "windows"]

ROWS = ("plain", "edit", "source")  # batch rows of an edit: unconditional, under the edit prompt, the source's own


def window(alpha: float, steps: int) -> int:
    """How many of N steps a share of them is: floor(α·N), the slack absorbing the rounding of decimal fractions."""
    return int(alpha * steps + 1e-9)


def windows(preset: Preset, steps: int) -> dict[str, int]:
    """How many steps from the first each kind is fused: floor(α·N)."""
    alphas = {"self": preset.alpha_self, "cross": preset.alpha_cross, "temporal": preset.alpha_temporal}
    return {kind: window(alpha, steps) for kind, alpha in alphas.items()}


def fused_sites(sites: Iterable[Site], grid: tuple[int, int], kinds: Collection[str], task: Preset) -> list[Site]:
    """The sites of some kinds that a task fuses where latents are (h, w)."""

    def small(site: Site) -> bool:
        h, w = site.grid(grid)
        return task.max_positions is None or site.kind == "temporal" or h * w <= task.max_positions

    return [site for site in sites if site.kind in kinds and small(site)]


class Fusing:
    """The masked fusion of one edit: which sites are hooked at a step, and what happens there.

    Only the edit's row is ever changed. The source's row stands beside it, or its Q and K are read from where it ran
    before: in the inversion, or alone in this step. `watched` lists the tokens of each word whose maps are kept.
    """

    def __init__(
        self,
        trace: Trace,
        plan: MaskPlan,
        task: Preset,
        tokens: TokenMap,
        edit_columns: list[int],
        watched: list[list[int]],
    ) -> None:
        self.trace, self.plan, self.task = trace, plan, task
        self.tokens, self.edit_columns, self.watched = tokens, edit_columns, watched
        frames = len(trace.clip.frames)
        self.seen, self.edit_seen = MapSum(frames), MapSum(frames)
        self.maps: dict[tuple[int, str], SoftMap] = {}
        self.edit_map: np.ndarray | None = None  # the edit word's own mask, known from the step before
        self.t, self.span = CLEAN, spans(frames, frames)[0]
        self.rows: tuple[str, ...] = ROWS
        self.now: tuple[str, ...] = ROWS
        self.keep_changed = False
        self.sites: dict[Site, Hook] = {}
        self.features = trace.features
        self.cached: dict[tuple[str, int], tuple[Tensor, bool | None]] = {}

    def begin(self, t: int, kinds: set[str], keep_changed: bool) -> None:
        """A step with label `t` begins, in which sites are fused whose kind's window is open."""
        self.t, self.keep_changed, self.cached = t, keep_changed, {}
        fused = fused_sites(self.trace.sites, self.trace.grid, kinds, self.task)
        seen = [site for site in self.trace.sites if site.kind == "cross"] if self.watched else []
        self.sites = {**dict.fromkeys(seen, self.watch), **dict.fromkeys(fused, self.fuse)}
        replay = any((t, site.name, 0) not in self.trace.features for site in fused)
        replay |= bool(fused) and self.task.attention == "reconstruction"
        self.rows = ROWS if replay else ROWS[:2]
        self.features = Features(host=True) if replay else self.trace.features

    def hooks(self, span: Span, rows: tuple[str, ...]) -> dict[Site, Hook]:
        """The hooks of a forward with these batch rows over a span."""
        self.span, self.now = span, rows
        if "edit" in rows:
            return self.sites
        fused = [site for site, hook in self.sites.items() if hook == self.fuse] if "source" in rows else []
        return dict.fromkeys(fused, self.keep)

    def forget(self) -> None:
        """A span's forwards are over: what the source's own row left for the edit's is not needed again."""
        if self.features is not self.trace.features:
            self.features = Features(host=True)

    def end(self) -> None:
        """The step's forwards are over."""
        self.maps |= self.seen.pack(self.t)
        for soft in self.edit_seen.take().values():
            self.edit_map = resize(extract(soft[0].cpu().numpy(), self.task.tau), self.trace.grid)
        self.sites = {}  # hooks that hold this object, which holds what the edit needs

    def object(self, t: int) -> np.ndarray:
        """M at the latents' grid, (f, h, w) bool, joined with the edit word's own mask where asked."""
        m = self.plan.object_at[t]
        return m | self.edit_map if self.task.union and self.edit_map is not None else m

    def editable(self, t: int) -> np.ndarray:
        """E: the object, or for a style the background."""
        return self.object(t) if self.task.region == "object" else ~self.object(t)

    def _mask(self, what: str, site: Site, device: torch.device) -> tuple[Tensor, bool | None]:
        """E, m or the temporal m of this step on the span's frames at a site's grid, (f, p) bool, True = may change;
        and what it is on the whole clip, where it is the same everywhere: known without asking the device."""
        key = what, site.level
        if key not in self.cached:
            grid = site.grid(self.trace.grid)
            if what == "E":
                mask = resize(self.editable(self.t), grid) & self.task.free_self
            elif what == "temporal" and site.level in self.plan.swapped:
                mask = self.plan.swapped[site.level]
            else:
                mask = resize(self.object(self.t), grid) & (self.task.delta == 0) & self.task.masked_cross
            flat = torch.from_numpy(rearrange(mask, "f h w -> f (h w)"))
            self.cached[key] = flat.to(device), True if flat.all() else None if flat.any() else False
        there, whole = self.cached[key]
        return there[self.span.frames], whole

    def keep(self, site: Site, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of the source's row alone, its Q and K kept for the edit's."""
        self.features.keep((self.t, site.name, self.span.start), q, k)
        return attend(q, k, v)

    def fuse(self, site: Site, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of all rows, the edit's fused with the source's."""
        count, at = len(self.now), self.now.index("edit")
        qs, ks, vs = q.chunk(count), k.chunk(count), v.chunk(count)
        if "source" in self.now:
            q0, k0 = qs[2], ks[2]
        else:
            q0, k0 = self.features.read((self.t, site.name, self.span.start))
        q1, k1, v1 = qs[at], ks[at], vs[at]
        if site.kind == "temporal":
            m = rearrange(self._mask("temporal", site, q.device)[0], "f p -> p f")
            q1.copy_(fuse_temporal(q0, q1, m))
            k1.copy_(fuse_temporal(k0, k1, m))
            return attend(q, k, v)
        if site.kind == "self":
            e, whole = self._mask("E", site, q.device)
            if whole is False:  # A0 alone
                q1.copy_(q0)
                k1.copy_(k0)
            out = attend(q, k, v)
            if whole is None:
                edit = out.chunk(count)[at]
                edit.copy_(fuse_self(q0, k0, v1, edit, e))
            return out
        a1 = probabilities(q1, k1)
        self._look(site, a1)
        a = fuse_cross(
            probabilities(q0, k0),
            a1,
            self._mask("m", site, q.device)[0],
            self.tokens,
            reweight=self.task.reweight,
            keep_changed=self.keep_changed,
            blend_first=self.task.cross_order == "blend_first",
        )
        outs = [a.to(v1.dtype) @ v1 if i == at else attend(qs[i], ks[i], vs[i]) for i in range(count)]
        return torch.cat(outs)

    def watch(self, site: Site, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Plain attention of all rows, the edit's watched."""
        count, at = len(self.now), self.now.index("edit")
        last = max(token for columns in self.watched for token in columns) + 1
        self._see(
            self.seen, site, word_probabilities(q.chunk(count)[at], k.chunk(count)[at], slice(0, last)), self.watched
        )
        return attend(q, k, v)

    def _look(self, site: Site, a1: Tensor) -> None:
        """What is kept of the edit's own cross-attention (f, heads, p, k): the watched words' maps, and the edit
        word's at l* for the next step, where its mask is to be joined with the source's."""
        if self.watched:
            self._see(self.seen, site, a1.mean(1), self.watched)
        if self.task.union and site == self.plan.choice.site and self.edit_columns:
            self._see(self.edit_seen, site, a1.mean(1), [self.edit_columns])

    def _see(self, into: MapSum, site: Site, soft: Tensor, each: list[list[int]]) -> None:
        """Adds the maps of some words, each a list of columns of head-mean probabilities (f, p, k)."""
        h, w = site.grid(self.trace.grid)
        maps = torch.stack([soft[..., columns].sum(-1) for columns in each])
        into.add(site.name, rearrange(maps, "n f (h w) -> n f h w", h=h, w=w), self.span)
