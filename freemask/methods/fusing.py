"""How attention of the source is fused into an edit's, whatever a method fuses: the part that methods share.

At a fused site A0, Q0, K0 are the source's and A1, Q1, K1 the edit's, of the same timestep; V is never fused, and only
the edit's row is ever changed. The source's row stands beside it, or its Q and K are read from where it ran before: in
the inversion, or alone in this step. A method says where self-attention stays the edit's (`free`), what becomes of
cross-attention (`fuse_cross`) and, where it has that, of temporal attention (`fuse_temporal`).

A transformer's self-attention holds time too: a row is a place in space and in time, and its keys are those of all
frames. There the fusion of rows is Eq. 10's as well, for it says of every position and frame whose queries and keys
make its map; that the source's keys meet the source's queries alone, and are not mixed with the edit's within one row,
is the difference.

With a binary mask of rows no self-attention map is materialised: E·sdpa(Q1, K1, V1) + (1−E)·sdpa(Q0, K0, V1) is
E·A1 + (1−E)·A0 applied to V1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ..clips.spans import Span
from ..clips.strides import to_frames, to_latent
from ..families.attention import Hook, attend, probabilities
from ..families.graphs import given, taken
from ..families.sites import Site
from ..masks.candidates import extract, resize
from ..masks.features import Features
from ..masks.trace import MapSum
from ..presets import load_method, refuse_shares
from ..words.prompts import find_word
from .base import Row, Session, fused_sites, window, windows

__all__ = ["Fusing", "TokenMap", "fuse_latent", "fuse_self", "remap", "token_map"]


@dataclass(frozen=True)
class TokenMap:
    """Columns of the source's cross-attention for the edit prompt's tokens.

    `source_of` (k,) int64 is the source column for each edit column, -1 where there is none; `changed`
    (k,) bool marks the tokens of changed words.
    """

    source_of: Tensor
    changed: Tensor

    def to(self, device: torch.device) -> TokenMap:
        return TokenMap(self.source_of.to(device), self.changed.to(device))


def token_map(
    source_of: tuple[int | None, ...],
    changed: tuple[int, ...],
    source_tokens: tuple[tuple[int, ...], ...],
    edit_tokens: tuple[tuple[int, ...], ...],
    length: int,
) -> TokenMap:
    """From the words' alignment to tokens. Words of unequal token counts share columns in order, the last
    source token serving the rest; SOS keeps its column, EOS and padding correspond from the prompt's end on."""
    columns = torch.full((length,), -1, dtype=torch.int64)
    if all(0 not in row for row in edit_tokens):  # a mark that begins the prompt, which UMT5 has not
        columns[0] = 0
    for j, i in enumerate(source_of):
        if i is not None:
            for n, token in enumerate(edit_tokens[j]):
                columns[token] = source_tokens[i][min(n, len(source_tokens[i]) - 1)]
    end_source = max(t for row in source_tokens for t in row) + 1
    end_edit = max(t for row in edit_tokens for t in row) + 1
    for k in range(end_edit, length):
        columns[k] = min(end_source + k - end_edit, length - 1)
    marks = torch.zeros(length, dtype=torch.bool)
    for j in changed:
        marks[list(edit_tokens[j])] = True
    return TokenMap(columns, marks)


def remap(a0: Tensor, a1: Tensor, tokens: TokenMap) -> Tensor:
    """A0' (…, k): the source's columns at the edit's tokens, A1 where a token has no source; nothing is renormalised
    (Prompt-to-Prompt's replacement and refinement, Hertz et al. 2022, Sec. 3.2)."""
    columns = tokens.source_of.to(a0.device)
    return torch.where(columns >= 0, a0[..., columns.clamp_min(0)], a1)


def fuse_self(q0: Tensor, k0: Tensor, v1: Tensor, edit: Tensor, e: Tensor) -> Tensor:
    """E·A1·V1 + (1−E)·A0·V1; q0, k0, v1 (f, heads, p, d), `edit` the finished A1·V1, e (f, p) bool."""
    return torch.where(e[:, None, :, None], edit, attend(q0, k0, v1))


def fuse_latent(source: Tensor, edit: Tensor, e: Tensor) -> Tensor:
    """z_src + E·(z − z_src); latents (1, c, f, h, w), e (f, h, w)."""
    return source + e.to(edit.dtype) * (edit - source)


class Fusing(Session, ABC):
    """A session that fuses the source's attention, each kind in the window of steps that the task gives it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        refuse_shares(self.task)
        trace, task, steps = self.trace, self.task, len(self.order)
        self.tokens = token_map(
            self.alignment.source_of,
            self.alignment.changed,
            trace.tokens,
            self.edit_tokens,
            self.text["edit"].shape[1],
        ).to(self.text["edit"].device)
        self.windows = windows(task, steps)
        self.changed_window = window(task.alpha_cross if task.alpha_changed is None else task.alpha_changed, steps)
        self.blended = window(task.alpha_latent, steps)
        # whose features: the inversion's, or those of the source's own denoising, a second latent beside the edit's
        self.denoised = load_method(task.method).features == "reconstruction"
        at = set(find_word(trace.prompt, self.word))
        pairs = enumerate(self.alignment.source_of)
        self.edit_columns = [token for j, i in pairs if i in at for token in self.edit_tokens[j]]
        self.edit_seen = MapSum(trace.latent_frames)
        self.edit_map: np.ndarray | None = None  # the edit word's own mask, known from the step before
        self.sites: dict[Site, Hook] = {}
        self.features = trace.features
        self.cached: dict[tuple[str, int], tuple[Tensor, bool | None]] = {}

    # ------------------------------------------------------------------ what a method says

    def free(self, t: int) -> np.ndarray:
        """Where self-attention is the edit's own, at the latents' grid: (f, h, w) bool. The source's has the rest."""
        return np.zeros_like(self.plan.object_at[t])

    def moved(self, t: int) -> np.ndarray:
        """Where cross- and temporal attention are the edit's own, at the latents' grid: (f, h, w) bool."""
        return np.zeros_like(self.plan.object_at[t])

    def moved_in_time(self, site: Site) -> np.ndarray:
        """The same for a temporal site of this step, at its own grid."""
        return resize(self.moved(self.t), site.grid(self.trace.grid))

    @abstractmethod
    def fuse_cross(self, a0: Tensor, a1: Tensor, m: Tensor) -> Tensor:
        """The maps in the place of A1; a0, a1 (f, heads, p, k), m (f, p) bool: where `moved` is True."""

    def fuse_temporal(self, source: Tensor, edit: Tensor, m: Tensor) -> Tensor:
        """Q or K in the place of the edit's, which stay where a method fuses nothing in time; (p, heads, f, d), m
        (p, f) bool."""
        return edit

    # ------------------------------------------------------------------ what the runner asks

    @property
    def noise(self) -> Tensor:
        top = super().noise
        return torch.cat([top, top]) if self.denoised else top

    def rows(self, t: int, x: Tensor) -> tuple[Row, ...]:
        guided = super().rows(t, x)
        self.open({kind for kind, n in self.windows.items() if self.order[t] < n})
        if not self.replays:
            return guided
        source = x[1:] if self.denoised else self.trace.latents[self.trace.seen(t)]
        return (*guided, Row("source", source, self.text["source"]))

    def open(self, kinds: set[str]) -> None:
        """Hooks the sites of the kinds whose window is open in the step that begins."""
        trace, task = self.trace, self.task
        self.cached = {}
        fused = fused_sites(trace.sites, trace.grid, kinds, task)
        self.sites = {**dict.fromkeys(self.seen_sites, self.look), **dict.fromkeys(fused, self.fuse)}
        stored = not self.denoised and all((self.t, site.name, 0) in trace.features for site in fused)
        self.replays = bool(fused) and not stored
        self.features = Features(host=True) if self.replays else trace.features

    def hooks(self, span: Span, names: tuple[str, ...]) -> Mapping[Site, Hook]:
        self.span, self.now = span, names
        if "edit" in names:
            return self.sites
        fused = [site for site, hook in self.sites.items() if hook == self.fuse] if "source" in names else []
        return dict.fromkeys(fused, self.keep)

    def passed(self) -> None:
        """What the source's own row left for the edit's is not needed again."""
        if self.features is not self.trace.features:
            self.features = Features(host=True)

    def combine(self, x: Tensor, eps: Mapping[str, Tensor]) -> Tensor:
        guided = super().combine(x, eps)
        for soft in self.edit_seen.take().values():
            found = to_frames(soft[0].cpu().numpy(), len(self.trace.clip.frames), self.trace.stride)
            self.edit_map = resize(extract(found, self.task.tau), self.trace.grid)
        self.sites = {}  # hooks that hold this object, which holds what the edit needs
        if not self.denoised:
            return guided
        # nothing needs the source once all windows are closed
        return torch.cat([guided, eps.get("source", torch.zeros_like(guided))])

    def settle(self, level: int, x: Tensor) -> Tensor:
        """Latent blending: outside E the source's latent of the same level, while that window is open."""
        if self.order[self.t] >= self.blended:
            return x
        e = torch.from_numpy(to_latent(self.editable(self.t), self.trace.stride)).to(x.device, non_blocking=True)
        return torch.cat([fuse_latent(self.trace.latents[level], x[:1], e), x[1:]])

    # ------------------------------------------------------------------ masks

    def object(self, t: int) -> np.ndarray:
        """M at the latents' grid, (f, h, w) bool, joined with the edit word's own mask where asked."""
        m = self.plan.object_at[t]
        return m | self.edit_map if self.task.union and self.edit_map is not None else m

    def editable(self, t: int) -> np.ndarray:
        """E: the object, or for a style the background."""
        return self.object(t) if self.task.region == "object" else ~self.object(t)

    def mask(self, what: str, site: Site, device: torch.device) -> tuple[Tensor, bool | None]:
        """What is "free", "moved" or "moved in time" in this step on the span's latent frames at a site's grid, (f, p)
        bool, or (1, f·p) where a site's queries are those of all frames; and what it is on the whole clip, where it is
        the same everywhere: known without asking the device."""
        key = what, site.level
        if key not in self.cached:
            if what == "moved in time":
                mask = self.moved_in_time(site)
            else:
                whole = self.free(self.t) if what == "free" else self.moved(self.t)
                mask = resize(whole, site.grid(self.trace.grid))
            flat = torch.from_numpy(rearrange(to_latent(mask, self.trace.stride), "f h w -> f (h w)"))
            same = True if flat.all() else None if flat.any() else False
            self.cached[key] = flat.to(device, non_blocking=True), same
        there, same = self.cached[key]
        there = there[self.span.frames]
        return there.reshape(1, -1) if site.joint else there, same

    def each(self, what: str, site: Site, device: torch.device) -> Tensor:
        """`mask`'s first, which differs from step to step."""
        return given((what, site.level, site.joint), lambda: (self.mask(what, site, device)[0],))[0]

    def kind(self, names: tuple[str, ...]) -> Hashable:
        """What the fused forwards of this step have in common with others: see `graphs`."""
        fused = [site for site, hook in self.sites.items() if hook == self.fuse]
        if "edit" not in names or fused and "source" not in names and self.features.host:
            return None  # Q and K wait in host RAM for another forward
        levels = {site.level: site for site in fused if site.kind == "self"}
        same = [(level, self.mask("free", site, self.text["edit"].device)[1]) for level, site in sorted(levels.items())]
        late = self.order[self.t] >= self.changed_window
        return super().kind(names), tuple(site.name for site in fused), tuple(same), late

    # ------------------------------------------------------------------ hooks

    def keep(self, site: Site, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of the source's row alone, its Q and K kept for the edit's."""
        self.features.keep((self.t, site.name, self.span.start), q, k)
        return attend(q, k, v)

    def read(self, site: Site) -> tuple[Tensor, Tensor]:
        """The source's Q and K of this step where they are kept."""
        q0, k0 = given(("kept", site.name), lambda: self.features.read((self.t, site.name, self.span.start)))
        return q0, k0

    def fuse(self, site: Site, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of all rows, the edit's fused with the source's."""
        count, at = len(self.now), self.now.index("edit")
        qs, ks, vs = q.chunk(count), k.chunk(count), v.chunk(count)
        if "source" in self.now:
            q0, k0 = (each[self.now.index("source")] for each in (qs, ks))
        else:
            q0, k0 = self.read(site)
        q1, k1, v1 = qs[at], ks[at], vs[at]
        if site.kind == "temporal":
            m = rearrange(self.each("moved in time", site, q.device), "f p -> p f")
            q1.copy_(self.fuse_temporal(q0, q1, m))
            k1.copy_(self.fuse_temporal(k0, k1, m))
            return attend(q, k, v)
        if site.kind == "self":
            same = self.mask("free", site, q.device)[1]
            if same is False:  # A0 alone
                q1.copy_(q0)
                k1.copy_(k0)
            out = attend(q, k, v)
            if same is None:
                edit = out.chunk(count)[at]
                edit.copy_(fuse_self(q0, k0, v1, edit, self.each("free", site, q.device)))
            return out
        a1 = probabilities(q1, k1)
        if self.watched:
            taken(partial(self.see, self.seen, site, self.watched_tokens), a1.mean(1))
        if self.task.union and site == self.plan.choice.site and self.edit_columns:
            taken(partial(self.see, self.edit_seen, site, [self.edit_columns]), a1.mean(1))
        a = self.fuse_cross(probabilities(q0, k0), a1, self.each("moved", site, q.device))
        return self.under(self.weighed(site, a, a1), q, k, v)

    def under(self, a: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of all rows, the edit's by maps (f, heads, p, k) of its own."""
        count, at = len(self.now), self.now.index("edit")
        rows = enumerate(zip(*(x.chunk(count) for x in (q, k, v)), strict=True))
        return torch.cat([a.to(v.dtype) @ own[2] if i == at else attend(*own) for i, own in rows])

    def weighed(self, site: Site, a: Tensor, a1: Tensor) -> Tensor:
        """Prompt-to-Prompt's window by word and re-weighting: the changed words' columns of fused maps (…, k) are the
        edit's own after their window, and scaled."""
        changed = self.tokens.changed.to(a.device)
        if self.order[self.t] >= self.changed_window:
            a = torch.where(changed, a1, a)
        return a if self.task.reweight == 1.0 else torch.where(changed, a * self.task.reweight, a)
