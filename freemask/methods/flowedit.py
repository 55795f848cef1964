"""FlowEdit (Kulikov et al. 2024): a clip is edited along the difference of two velocities, without an inversion.

At each level σ the source's noisy latent z_src = (1−σ)·x + σ·ε is known exactly, from fresh noise ε. The edit's stands
beside it, z_tar = z_src + (z − x), and z, which begins as the clip x itself, moves along ΔV = v(z_tar, edit prompt) −
v(z_src, source prompt), each under its own guidance (Algorithm 1); the highest levels are left out (n_max, here the
preset's `strength`), and ΔV may be the mean over several draws of noise (n_avg). The source's forwards are those that
the trace was made of, so every word's maps are known before the edit begins, and FreeMask's masks serve here too:

- ΔV acts only in E, the object or for a style the background, hard or feathered by a cell (`mask`).
- In the window of `alpha_self` the edit's queries meet the source's keys and values outside E.
- `consistency` ζ pulls the edit's predicted clip towards the source's outside E (FlowAlign's term, Kim et al. 2025,
  which has it everywhere: with an empty E it is that).
- `contrast` κ multiplies ΔV by 1 + κ·c, where c in [0, 1] is how far its size in M stands above its mean there: what
  changes, changes more (FlowAnchor's amplitude modulation, Chen et al. 2026). `lift` λ adds λ to the scores of the
  changed words' tokens inside M and takes it off outside (in the place of its attention refinement, which shifts the
  probabilities). Both want masks that their users bring; MMC's are here.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..clips.spans import Span
from ..clips.strides import to_latent
from ..errors import SettingError
from ..families.attention import Hook, attend
from ..families.ddim import CLEAN, guide
from ..families.flow import fresh_noise
from ..families.graphs import given
from ..families.sites import Site
from ..masks.candidates import resize
from ..presets import Flowing
from .base import Row, Session, fused_sites, windows

__all__ = ["FlowEdit"]


class FlowEdit(Session):
    """Rows are the edit's (plain and told) and the source's, a group for each draw of noise."""

    cacheable = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        assert self.task.flow
        if not self.trace.drawn:
            raise SettingError("FlowEdit begins at the clip with fresh noise, not at an inversion: drawn=True.")
        self.flow: Flowing = self.task.flow
        self.clean = self.trace.latents[CLEAN]
        self.open_self = windows(self.task, len(self.order))["self"]
        masked = self.task.mask != "none" or self.plan.choice.origin == "painted"
        self.masked = masked and self.flow.mask != "none"
        changed = [token for j in self.alignment.changed for token in self.edit_tokens[j]]
        self.changed_tokens = torch.zeros(self.text["edit"].shape[1])
        self.changed_tokens[changed] = 1.0
        self.lent: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}  # keys and values of a source's row that ran alone

    # ------------------------------------------------------------------ what the runner asks

    @property
    def noise(self) -> Tensor:
        """The clip itself."""
        return self.clean

    def rows(self, t: int, x: Tensor) -> tuple[Row, ...]:
        self.t, moved = t, x[:1] - self.clean
        found: list[Row] = []
        level = self.backbone.path.levels((t,))[t]
        for n in range(self.flow.n_avg):
            source = self.trace.latents[t]
            if n:
                source = self.backbone.path.noised(self.clean, fresh_noise(self.clean, t, n), level)
            mark = f" {n}" if n else ""
            if self.guidance != 1:
                found.append(Row(f"plain{mark}", source + moved, self.text["plain"]))
            found.append(Row(f"edit{mark}", source + moved, self.text["edit"]))
            if self.flow.source_guidance != 1:
                found.append(Row(f"plain source{mark}", source, self.text["plain"]))
            found.append(Row(f"source{mark}", source, self.text["source"]))
        return tuple(found)

    def hooks(self, span: Span, names: tuple[str, ...]) -> Mapping[Site, Hook]:
        self.span, self.now = span, names
        hooks: dict[Site, Hook] = dict.fromkeys(self.seen_sites if "edit" in names else (), self.look)
        if self.flow.lift:
            hooks |= dict.fromkeys([site for site in self.trace.sites if site.kind == "cross"], self.refine)
        if self.lending:
            hooks |= dict.fromkeys(fused_sites(self.trace.sites, self.trace.grid, ("self",), self.task), self.lend)
        return hooks

    @property
    def lending(self) -> bool:
        """Whether this step's edit meets the source's keys and values outside E."""
        return self.masked and self.order[self.t] < self.open_self

    def kind(self, names: tuple[str, ...]) -> Hashable:
        if self.lending and len(names) == 1:
            return None  # keys and values wait for another forward
        return super().kind(names), self.lending

    def passed(self) -> None:
        self.lent = {}

    def combine(self, x: Tensor, eps: Mapping[str, Tensor]) -> Tensor:
        """ΔV (1, c, f, h, w) in the step's z, the mean over the draws."""
        self.seen.pack(self.t)
        total = torch.zeros_like(x)
        level = self.backbone.path.levels((self.t,))[self.t]
        e = self.editable(x.device)
        for n in range(self.flow.n_avg):
            mark = f" {n}" if n else ""
            edit, source = eps[f"edit{mark}"], eps[f"source{mark}"]
            if f"plain{mark}" in eps:
                edit = guide(eps[f"plain{mark}"], edit, self.guidance, self.task.rescale)
            if f"plain source{mark}" in eps:
                source = guide(eps[f"plain source{mark}"], source, self.flow.source_guidance)
            delta = edit - source
            if self.flow.contrast:
                delta = delta * (1 + self.flow.contrast * self.contrast(delta))
            if self.masked:
                delta = delta * e
            if self.flow.consistency:
                # predicted clips x − σ·v of z_tar and z_src: their difference, by which z moves back as σ falls to 0
                apart = (x - self.clean) - level * (edit - source)
                delta = delta + self.flow.consistency * (1 - e if self.masked else 1) * apart
            total += delta / self.flow.n_avg
        return total

    def glimpse(self, x: Tensor, out: Tensor, level: float) -> Tensor:
        """Where the step's ΔV leads if it is followed to the end."""
        return x - level * out

    # ------------------------------------------------------------------ masks

    def object(self) -> np.ndarray:
        """M, (f', h, w) bool."""
        return to_latent(self.plan.object_at[self.t], self.trace.stride)

    def soft(self, device: torch.device) -> Tensor:
        """M feathered by a cell: (f', h, w) in [0, 1]."""
        blurred = [cv2.GaussianBlur(frame.astype(np.float32), (0, 0), 1.0) for frame in self.object()]
        return torch.from_numpy(np.stack(blurred)).to(device)

    def contrast(self, delta: Tensor) -> Tensor:
        """How far ΔV's size stands above its mean in M, by the largest: (f', h, w) in [0, 1], 0 outside M."""
        m = torch.from_numpy(self.object()).to(delta.device)
        size = delta[0].abs().mean(0)
        if not m.any():
            return torch.zeros_like(size)
        above = (size - size[m].mean()).clamp_min(0) * m
        return above / above.max().clamp_min(1e-12)

    def editable(self, device: torch.device) -> Tensor:
        """E as a weight of ΔV: (f', h, w) float32, 1 where the edit may act."""
        m = self.soft(device) if self.flow.mask == "soft" else torch.from_numpy(self.object()).to(device).float()
        return m if self.task.region == "object" else 1 - m

    def at(self, site: Site, what: np.ndarray, device: torch.device) -> Tensor:
        """A mask (f', h, w) bool on the span's latent frames at a site's grid: (frames, p) bool."""
        flat = rearrange(resize(what, site.grid(self.trace.grid)), "f h w -> f (h w)")
        return torch.from_numpy(flat[self.span.frames]).to(device)

    # ------------------------------------------------------------------ hooks

    def lend(self, site: Site, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Self-attention of all rows, the edit's with the source's keys and values outside E."""
        m = self.object() if self.task.region == "object" else ~self.object()

        def own() -> tuple[Tensor]:
            there = self.at(site, m, q.device)
            return ((there.reshape(1, -1) if site.joint else there)[:, None, :, None],)

        e = given(("lend", site.level, site.joint), own)[0]
        count = len(self.now)
        ks, vs = list(k.chunk(count)), list(v.chunk(count))
        lent = self.lent if count == 1 else {}
        for i, name in enumerate(self.now):  # rows one at a time begin with the source's
            if name.split()[0] == "source":
                lent[site.name, name] = ks[i], vs[i]
        for i, name in enumerate(self.now):
            kind, _, mark = name.partition(" ")
            if kind in ("plain", "edit") and not mark.startswith("source"):
                k0, v0 = lent[site.name, f"source {mark}" if mark else "source"]
                ks[i], vs[i] = torch.where(e, ks[i], k0), torch.where(e, vs[i], v0)
        return attend(q, torch.cat(ks), torch.cat(vs))

    def refine(self, site: Site, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Cross-attention of all rows, the told edit's with the changed words' scores raised in M and lowered outside;
        watched as `look` has it."""
        if self.watched and "edit" in self.now:
            self.look(site, q, k, v)
        m = given(("refine", site.level), partial(self._inside, site, q.device))[0]
        count = len(self.now)
        outs = []
        bias = (self.flow.lift * m[..., None] * self.changed_tokens.to(m))[:, None].to(q.dtype)
        for name, one, keys, values in zip(self.now, q.chunk(count), k.chunk(count), v.chunk(count), strict=True):
            told = name.split()[0] == "edit"
            outs.append(F.scaled_dot_product_attention(one, keys, values, bias) if told else attend(one, keys, values))
        return torch.cat(outs)

    def _inside(self, site: Site, device: torch.device) -> tuple[Tensor]:
        """+1 in M and −1 outside, (frames, p)."""
        return (self.at(site, self.object(), device).float() * 2 - 1,)
