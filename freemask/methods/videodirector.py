"""VideoDirector (Wang et al. 2025): pivotal inversion for text-to-video models, then attention control.

**Stage 1** (Algorithm I, lines 5-17) makes classifier-free guidance land on the inversion's latents, the pivots. At
each noise level the unconditional embedding φ_t, one row a frame, is optimised (null-text inversion, Mokady et al.
2023), while the spatial-temporal decoupled guidance (STDG, Eq. 2-4) draws temporal attention and self-attention keys
towards the pivot's. **Stage 2** (lines 18-32) denoises under the edit prompt with φ_t, STDG and the attention of the
pivots: their self-attention maps first (SA-I), then self-attention on both clips (SA-II), and the cross-attention maps
of the words that stay (Eq. 7). The object's mask, SAM2's in the paper, is FreeMask's here.

What the paper leaves open or says twice, and how it is here:

- Its guidance ε(C) + ω·[ε(C) − ε(φ)] is that of the other methods with weight 1 + ω.
- Line 13 takes √(1−ᾱ_t)·G from the noise, Eq. 5 adds G. Here line 13, in the noise term of DDIM alone, as lines 14 and
  31 have it: the latent reached moves by −√(1−ᾱ_{t−1})·√(1−ᾱ_t)·G, down the distance. Eq. 5 would climb it there.
- The distances are sums over positions and frames of means over heads, channels and keys. So G does not depend on the
  size of the frames; `stdg` 5 has the scale of the authors' code for their finest-weighed block at 16 frames of 512².
- G of stage 2 is that of the edited latent (`guided` "edit"), or that of stage 1 again ("source", as in their code):
  .05 and .45 dB further from the true edit (an attribute and a shape edit, seeds 2,680,001 and 2,680,000).
- What is compared is `up_blocks.1`, as in MotionClone. `up_blocks.2` reconstructs .4 and 1.0 dB nearer in the same two
  edits, and edits .5 dB nearer and 1.2 further; both blocks .4 nearer and .5 further; strength 20 .05 further (one).
- SA-I acts on grids of at most 32² positions (as Prompt-to-Prompt's replacement), SA-II in the decoder; both in both
  rows of the guidance (line 27), cross control in the prompt's row alone. The source's columns that SA-II hides have
  logits of −∞: times 0, as Eq. 6 is written, they would still take part in the softmax.
- Five steps of Adam at the authors' rate of .01. Larger ones reconstruct better and edit worse (mini-motion, 12 steps,
  guidance 4, an attribute edit, seed 2,680,000; in the order .01, .03, .08): 26.5, 28.1 and 31.3 dB to the clip, 21.9,
  21.2 and 19.5 to the true edit.
- γ is 1 for the words that change (`alpha_changed` 0), C is `reweight`, φ_t begins with that of the step before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..clips.spans import Span
from ..errors import SettingError
from ..families.attention import Hook, attend, probabilities
from ..families.backbone import Backbone
from ..families.ddim import guide, levels, lower
from ..families.graphs import Usage
from ..families.sites import Site
from ..masks.candidates import resize
from ..masks.features import Features
from ..presets import Director
from ..steps import Step, Steps
from .base import Prepared, Row, over_spans
from .fusing import Fusing, remap

__all__ = ["STDG", "VideoDirector", "attend_both"]

SA_I_POSITIONS = 32 * 32
DECODER = "up_blocks."
RATE = 1e-2  # of Adam at the first level; half of it at the last, as in the authors' code
ENOUGH = (
    1e-5,
    1e-3,
)  # mean squared distances to the pivot at the first level and the last that are not optimised further


class _Enough(Exception):
    """All that was wanted of a forward pass has been seen."""


def _is_short(device: torch.device) -> bool:
    """Whether memory is short there rather than time, so that the backward pass runs blocks anew."""
    return device.type != "cpu"


@contextmanager
def _differentiable(backbone: Backbone) -> Iterator[None]:
    """Inside, gradients may pass the network; diffusers' `UNet3DConditionModel` cannot run blocks anew for them."""
    again = _is_short(backbone.device) and backbone.unet._supports_gradient_checkpointing
    with torch.inference_mode(False), torch.no_grad():
        if again:
            backbone.unet.enable_gradient_checkpointing()
        try:
            yield
        finally:
            if again:
                backbone.unet.disable_gradient_checkpointing()


def attend_both(q: Tensor, k: Tensor, v: Tensor, source: tuple[Tensor, Tensor], hidden: Tensor) -> Tensor:
    """SA-II (Eq. 6): queries (f, heads, p, d) of the edit on its own keys and values and those of the `source`, but for
    its positions that are `hidden` (f, p') bool."""
    shown = torch.cat([torch.ones_like(hidden), ~hidden], 1)[:, None, None]
    keys, values = torch.cat([k, source[0]], 2), torch.cat([v, source[1]], 2)
    return torch.nn.functional.scaled_dot_product_attention(q, keys, values, attn_mask=shown)


class STDG:
    """Spatial-temporal decoupled guidance G (Eq. 2-4): one weighted loss and one backward pass, up to the last of the
    layers compared.

    Raises SettingError for a block without attention.
    """

    def __init__(self, backbone: Backbone, director: Director, usage: Usage) -> None:
        self.backbone, self.director, self.usage = backbone, director, usage
        self.weights = {
            "temporal": (director.eta_f, director.eta_b),
            "self": (director.zeta_f, director.zeta_b),
        }
        known = dict.fromkeys(site.name.split(".attentions.")[0] for site in backbone.sites if site.kind == "self")
        if strange := [block for block in director.blocks if block not in known]:
            raise SettingError(
                f"{backbone.name} has no self-attention in {strange[0]!r}: compare some of {', '.join(known)}."
            )
        inside = tuple(f"{block}." for block in director.blocks)
        self.sites = tuple(
            site
            for site in backbone.sites
            if site.name.startswith(inside) and any(self.weights.get(site.kind, ())) and director.stdg
        )

    def see(self, x: Tensor, t: int, text: Tensor, level: float, held: ExitStack | None = None) -> dict[Site, Tensor]:
        """Temporal attention maps (p, heads, f, f) and self-attention keys (f, heads, p, d) of latents (1, c, f, h, w)
        under a text (1, k, d), at the sites compared; `held` is as `Backbone.predict` has it."""
        found: dict[Site, Tensor] = {}

        def look(site: Site, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            own = probabilities(q, k) if site.kind == "temporal" else k
            if site not in found:  # else a backward pass runs its block anew
                found[site] = own
                if len(found) == len(self.sites):
                    raise _Enough
            return attend(q, k, v)

        self.usage.add(len(x))
        with suppress(_Enough):
            self.backbone.predict(x, t, text, level, dict.fromkeys(self.sites, look), held)
        return found

    def loss(self, pivot: Mapping[Site, Tensor], seen: Mapping[Site, Tensor], at: np.ndarray) -> Tensor:
        """η_f·L_T^f + η_b·L_T^b + ζ_f·L_K^f + ζ_b·L_K^b, with the object at (f, h, w) bool on the latents' grid."""
        like = next(iter(seen.values()))
        total = torch.zeros((), device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))
        _, h, w = at.shape
        for site in self.sites:
            there = torch.from_numpy(resize(at, site.grid((h, w)))).to(like.device)
            front, back = self.weights[site.kind]
            weight = torch.where(rearrange(there, "f h w -> f (h w)"), front, back)
            old, new = pivot[site].to(total.dtype), seen[site].to(total.dtype)
            if site.kind == "temporal":
                top = old.topk(min(self.director.top_k, old.shape[-1]), -1).indices
                away = (new - old).gather(-1, top).square().sum(-1).mean(1) / old.shape[-1]
                total = total + (weight.T * away).sum()
            else:
                met = self.backbone.met(site, weight)  # of keys, of which other frames may meet some again
                away = (new - old).square().mean((1, 3)) * (weight.shape[1] / met.shape[1])
                total = total + (met * away).sum()
        return total

    def gradient(
        self, x: Tensor, pivot: Tensor, t: int, text: Tensor, source: Tensor, level: float, at: np.ndarray
    ) -> Tensor:
        """G at latents x (1, c, f, h, w) under a text, drawn to the pivot under the source's; `at` (f, h, w) bool is
        where the object is. Zero where nothing is compared."""
        if not self.sites:
            return torch.zeros_like(x)

        def one(span: Span) -> Tensor:
            old = self.see(pivot[:, :, span.frames], t, source, level)
            part = x[:, :, span.frames].clone().requires_grad_()
            with torch.enable_grad(), ExitStack() as held:
                seen = self.see(part, t, text, level, held)
                (gradient,) = torch.autograd.grad(self.loss(old, seen, at[span.frames]), part)
            self.usage.backwards += 1
            return gradient

        with _differentiable(self.backbone):
            x, pivot, text, source = (one.clone() for one in (x, pivot, text, source))  # none made for inference alone
            return over_spans(x.shape[2], self.backbone.native_frames, one)


class VideoDirector(Fusing):
    """Both stages; stage 1 is what it prepares."""

    cacheable = False  # its guidance compares coarse layers of this very step

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.director = self.task.director or Director()
        self.stdg = STDG(self.backbone, self.director, self.usage)
        self.alpha = levels(self.backbone.scheduler, self.trace.timesteps)
        self.guided: Tensor | None = None

    # ------------------------------------------------------------------ stage 1

    @property
    def key(self) -> str:
        director = self.director
        if not director.null_text_steps and (director.guided == "edit" or not director.stdg):
            return ""
        asked = {name: value for name, value in asdict(director).items() if name != "sa_ii"}
        digest = hashlib.sha256(json.dumps([asked, self.guidance, self.task.rescale, self.trace.prompt]).encode())
        digest.update(self.noise.cpu().numpy().tobytes())  # the trace's own
        if self.stdg.sites:
            for t in self.trace.timesteps:
                digest.update(np.packbits(self.object(t)).tobytes())
        return digest.hexdigest()[:16]

    def prepare(self, usage: Usage) -> Steps[Prepared]:
        """Stage 1: `null` (N, f or 1, k, d), φ_t from the highest level down; `losses` (N, iterations + 1), the mean
        squared distance to the pivot after each that was kept, NaN after the last; `reached` (1, c, f, h, w), the
        reconstruction under guidance; `guidance` (N, c, f, h, w) is G where the edit is to have that of stage 1."""
        trace, director = self.trace, self.director
        with torch.inference_mode(False):
            z, null = trace.latents[trace.timesteps[-1]].clone(), self.text["plain"].clone()
            told = self.text["source"].clone()
        if director.null_text == "multi-frame":
            null = null[:, None].repeat(1, z.shape[2], 1, 1)
        stdg = STDG(self.backbone, director, usage)
        before: tuple[Tensor, float] | None = None
        nulls, losses, guidance = [], [], []
        for i, t in enumerate(reversed(trace.timesteps)):
            with _differentiable(self.backbone):
                target = trace.latents[trace.below(t)].clone()
                g = stdg.gradient(z, trace.latents[t], t, told, told, self.alpha[t], self.object(t))
                eps = self._predict(z, t, told, usage)
                z, null, eps, distances = self._optimise(i, t, z, eps, null, target, g, before, usage)
            before = eps, self.alpha[t]
            nulls.append(null[0] if null.ndim == 4 else null)
            losses.append(distances + [float("nan")] * (director.null_text_steps + 1 - len(distances)))
            guidance.append(g[0])
            yield Step("null-text", i + 1, len(trace.timesteps), t)
        made = {"null": torch.stack(nulls), "losses": torch.tensor(losses), "reached": z}
        return made | ({"guidance": torch.stack(guidance)} if director.guided == "source" else {})

    def _predict(self, x: Tensor, t: int, text: Tensor, usage: Usage, held: ExitStack | None = None) -> Tensor:
        """The noise of a whole clip. Where it has several spans, each runs again in the backward pass, so that their
        activations never exist at once."""

        def one(span: Span) -> Tensor:
            part, told = x[:, :, span.frames], text[:, span.frames] if text.ndim == 4 else text

            def run(told: Tensor) -> Tensor:
                return self.backbone.predict(part, t, told, self.alpha[t], held=held)

            usage.add(1)
            again = torch.is_grad_enabled() and part.shape[2] < x.shape[2]
            return checkpoint(run, told, use_reentrant=False) if again else run(told)

        return over_spans(x.shape[2], self.backbone.native_frames, one)

    def _optimise(
        self,
        i: int,
        t: int,
        z: Tensor,
        eps: Tensor,
        null: Tensor,
        target: Tensor,
        g: Tensor,
        before: tuple[Tensor, float] | None,
        usage: Usage,
    ) -> tuple[Tensor, Tensor, Tensor, list[float]]:
        """The latent one level below, φ_t, the guided noise, and the distances to the pivot there (lines 11-16); the
        best of all iterations is kept."""
        share = i / len(self.trace.timesteps)
        phi = null.clone().requires_grad_()
        adam = torch.optim.Adam([phi], lr=RATE * (1 - share / 2))
        push = self._push(t, g)
        kept, distances = (z, null, eps), list[float]()
        for j in range(self.director.null_text_steps + 1):
            last = j == self.director.null_text_steps
            with torch.set_grad_enabled(not last), ExitStack() as held:
                plain = self._predict(z, t, phi, usage, held)
                guided = guide(plain, eps, self.guidance, self.task.rescale)
                reached = lower(z, guided, t, self.alpha, self.trace.solver, before) - push
                away = (reached - target).square()
                distance = away.detach().mean().item()
                if not distances or distance < distances[-1]:
                    kept = reached.detach(), phi.detach().clone(), guided.detach()
                distances.append(min([distance, *distances[-1:]]))
                if last or distance < ENOUGH[0] + share * (ENOUGH[1] - ENOUGH[0]):
                    break
                (phi.grad,) = torch.autograd.grad(away.sum(), phi)  # a sum, which halves do not round to nothing
                usage.backwards += 1
            adam.step()
        return (*kept, distances)

    def _push(self, t: int, g: Tensor) -> Tensor:
        """What G takes from the latent one level below `t` (lines 13-14)."""
        a, below = self.alpha[t], self.alpha[self.trace.below(t)]
        return self.director.stdg * ((1 - a) * (1 - below)) ** 0.5 * g

    # ------------------------------------------------------------------ stage 2

    def free(self, t: int) -> np.ndarray:
        """The source's positions that SA-II hides: where the picture may change."""
        return self.editable(t)

    def fuse_cross(self, a0: Tensor, a1: Tensor, m: Tensor) -> Tensor:
        return remap(a0, a1, self.tokens)

    def rows(self, t: int, x: Tensor) -> tuple[Row, ...]:
        self.t = t
        null = self.text["plain"]
        if "null" in self.prepared:
            null = self.prepared["null"][self.order[t]][None].to(x.device)
            null = null[:, 0] if self.director.null_text == "shared" else null
        guided = Row("plain", x[:1], null), Row("edit", x[:1], self.text["edit"])
        self.open({"cross"} if self.order[t] < self.windows["cross"] else set())
        return (*guided, Row("source", self.trace.latents[t], self.text["source"])) if self.replays else guided

    @property
    def first(self) -> bool:
        """Whether this step has the source's self-attention maps (SA-I)."""
        return self.order[self.t] < self.windows["self"]

    def open(self, kinds: set[str]) -> None:
        """Hooks the cross sites where their window is open, and the self sites of SA-I or SA-II."""
        fused = [site for site in self.trace.sites if site.kind in kinds]
        own = [site for site in self.trace.sites if site.kind == "self"]
        if self.first:
            sizes = ((site, site.grid(self.trace.grid)) for site in own)
            fused += [site for site, (h, w) in sizes if h * w <= SA_I_POSITIONS]
        elif self.director.sa_ii and not self.free(self.t).all():
            fused += [site for site in own if site.name.startswith(DECODER)]
        self.cached = {}
        self.sites = {**dict.fromkeys(self.seen_sites, self.look), **dict.fromkeys(fused, self.fuse)}
        self.replays, self.features = bool(fused), Features(host=True)

    def kind(self, names: tuple[str, ...]) -> Hashable:
        return None

    def hooks(self, span: Span, names: tuple[str, ...]) -> Mapping[Site, Hook]:
        found = super().hooks(span, names)
        if names == ("plain",):
            return {site: hook for site, hook in self.sites.items() if site.kind == "self"}
        return found

    def keep(self, site: Site, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.features.keep((self.t, site.name, self.span.start), q, k, *([v] if site.kind == "self" else []))
        return attend(q, k, v)

    def fuse(self, site: Site, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Cross-attention as Prompt-to-Prompt has it; self-attention of the edit's rows by SA-I or SA-II."""
        if site.kind != "self":
            return super().fuse(site, q, k, v)
        count = len(self.now)
        rows = list(zip(q.chunk(count), k.chunk(count), v.chunk(count), strict=True))
        if "source" in self.now:
            q0, k0, v0 = rows[self.now.index("source")]
        else:
            q0, k0, v0 = self.features.read((self.t, site.name, self.span.start))
        hidden = self.backbone.met(site, self.mask("free", site, q.device)[0])
        outs = []
        for name, (q1, k1, v1) in zip(self.now, rows, strict=True):
            if name == "source":
                outs.append(attend(q1, k1, v1))
            else:
                outs.append(attend(q0, k0, v1) if self.first else attend_both(q1, k1, v1, (k0, v0), hidden))
        return torch.cat(outs)

    def combine(self, x: Tensor, eps: Mapping[str, Tensor]) -> Tensor:
        guided = super().combine(x, eps)
        self.guided = None
        if "guidance" in self.prepared:
            self.guided = self.prepared["guidance"][self.order[self.t]][None].to(x.device)
        elif self.stdg.sites:
            texts, pivot = (self.text["edit"], self.text["source"]), self.trace.latents[self.t]
            self.guided = self.stdg.gradient(x[:1], pivot, self.t, *texts, self.alpha[self.t], self.object(self.t))
        return guided

    def settle(self, level: int, x: Tensor) -> Tensor:
        return super().settle(level, x if self.guided is None else x - self._push(self.t, self.guided))
