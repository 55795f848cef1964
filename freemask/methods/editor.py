"""The loop that all methods share: invert a clip once, edit it many times.

`invert_steps` walks up the noise levels with the source prompt and remembers latents and word maps.
`edit_steps` chooses masks (FreeMask Eq. 7-8) and walks down with the edit prompt, as the method's session says
(`base`, `sessions`). The source's features come by **replay**, the latent that the inversion evaluated under this
label running again as one more batch row, or from the **store** that the inversion kept; both give the same result
to rounding.

Both are generators of `Step` that return their result, so bars, previews and cancelling belong to the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ..bends import Bend
from ..clips.spans import Span, spans
from ..clips.strides import latent_frames, to_frames
from ..clips.video import Clip
from ..errors import PromptError, SettingError
from ..families.attention import attend, word_probabilities
from ..families.backbone import Backbone
from ..families.ddim import CLEAN, Predict
from ..families.deep import DeepCache
from ..families.flow import fresh_noise
from ..families.graphs import Forwards, Usage, taken
from ..families.loading import load_backbone
from ..families.paths import NoisePath
from ..families.sites import Site
from ..families.specs import Solver, fit, frame_size
from ..masks.disjoint import by_phrase, disjoint, joined
from ..masks.features import Features
from ..masks.mmc import choose
from ..masks.plan import MaskPlan, plan_masks
from ..masks.trace import MapSum, SoftMap, Trace
from ..presets import Preset, load_preset
from ..steps import Step, Steps, finish
from ..words.differences import align_phrases
from ..words.prompts import find_word, infer_word
from .base import Prepared, Session, fused_sites, over_spans, windows
from .bend import Bending
from .concepts import concept_steps
from .sessions import SESSIONS
from .several import Part, Several

__all__ = ["Denoised", "Edited", "Editor", "Usage"]

TOGETHER = 2  # spans of a long clip that run as rows of one forward where no guidance adds rows: as many as an edit has


@dataclass(frozen=True)
class Denoised:
    """The latents (1, c, f, h, w) of an edited clip and the masks that made it.

    `watched` are the edit prompt's words that the source lacks, by position, where they were watched; `maps` their
    maps in that order, by (t, site name), before any fusion. `prepared` is what the method made before it began.
    `plans` are those of several changes, in their order: None of a place's.
    """

    latents: Tensor
    plan: MaskPlan
    watched: tuple[int, ...] = ()
    maps: dict[tuple[int, str], SoftMap] = field(default_factory=dict)
    prepared: Prepared = field(default_factory=dict)
    plans: tuple[MaskPlan | None, ...] = ()


@dataclass(frozen=True)
class Edited:
    """An edited clip and the masks that made it."""

    clip: Clip
    plan: MaskPlan


@dataclass(frozen=True)
class Editor:
    """A loaded backbone, and the methods on it."""

    backbone: Backbone

    @classmethod
    def load(
        cls, name: str = "mini", device: str | None = None, dtype: torch.dtype | None = None, *, low_vram: bool = False
    ) -> Editor:
        """From a short name ("mini", "mini-sd", "zeroscope"), a hub id or a folder; see `load_backbone`."""
        return cls(load_backbone(name, device, dtype, low_vram=low_vram))

    def fit(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) rounded down to the multiple that the networks need, at least one multiple."""
        return fit(size, self.backbone.multiple)

    def frame_size(self, width: int, height: int) -> tuple[int, int]:
        """The (width, height) at which a clip of that shape is edited: at the backbone's own short side."""
        return frame_size(self.backbone.native_size, self.backbone.multiple, width, height)

    def spans(self, frames: int) -> tuple[Span, ...]:
        """The spans of latent frames in which the network sees a clip of that length."""
        return spans(latent_frames(frames, self.backbone.time_stride), self.backbone.native_frames)

    def _over(self, frames: int, predict: Callable[..., Tensor], together: int = 1) -> Tensor:
        """What is predicted for a whole clip, (b, c, f, h, w), put together from its spans."""
        return over_spans(frames, self.backbone.native_frames, predict, together)

    def decode(self, latents: Tensor, like: Clip) -> Clip:
        """Latents (1, c, f', h, w) to a clip at the frame rate and length of another."""
        return Clip(self.backbone.decode(latents)[: len(like.frames)], like.fps)

    # ------------------------------------------------------------------ inversion

    def invert(self, clip: Clip, *, prompt: str, **options: Any) -> Trace:
        """`invert_steps` run to its end; for FlowEdit with `drawn=True`."""
        return finish(self.invert_steps(clip, prompt=prompt, **options))

    @torch.inference_mode()
    def invert_steps(
        self,
        clip: Clip,
        *,
        prompt: str,
        steps: int = 25,
        solver: Solver = "ddim",
        store: Preset | None = None,
        host: bool = False,
        latents: Tensor | None = None,
        usage: Usage | None = None,
        one_row: bool = False,
        drawn: bool = False,
        seed: int = 0,
    ) -> Steps[Trace]:
        """Inversion with the source prompt, without guidance; sides must be multiples of the VAE's factor.

        `solver` is "ddim" or "dpm", which asks for one forward more and is as exact in fewer steps (`ddim.py`).
        With `store`, Q and K of the sites that this preset fuses are kept in its windows, with `host` in host RAM.
        `latents` are the clip's where the caller has encoded it already. With `one_row` the spans of a long clip run
        one at a time. `drawn` inverts nothing: the latents of a level are the clip's with noise drawn from `seed`, of
        which the network is asked all the same, for the words' maps.
        """
        backbone, usage = self.backbone, usage or Usage()
        h, w = clip.frames.shape[1:3]
        if h % backbone.vae_factor or w % backbone.vae_factor:
            raise SettingError(f"Frames of {w}x{h} do not fit {backbone.name}: use multiples of {backbone.multiple}.")
        path = backbone.path
        ts = path.timesteps(steps)
        alpha = path.levels(ts)
        latents = backbone.encode(clip.frames) if latents is None else latents
        tokens = backbone.word_tokens(prompt)
        sites = backbone.sites
        about: dict[str, Any] = {"solver": solver, "stride": backbone.time_stride, "drawn": drawn}
        about["seen_below"] = not drawn and path.sees_below(solver)
        trace = Trace(clip, prompt, ts, sites, tokens, {CLEAN: latents}, features=Features(host=host), **about)
        last = tokens[-1][-1] + 1
        text = backbone.text([prompt])
        maps = MapSum(trace.latent_frames)
        label, storing = CLEAN, set[Site]()
        parts: tuple[Span, ...] = ()
        together = 1 if one_row or host else TOGETHER  # from host RAM the edit reads in the order of keeping

        def add(site: Site, soft: Tensor) -> None:
            for part, one in zip(parts, soft, strict=True):
                maps.add(site.name, one, part)

        def keep(site: Site, *each: Tensor) -> None:
            for part, *ours in zip(parts, *(x.chunk(len(parts)) for x in each), strict=True):
                trace.features.keep((label, site.name, part.start), *ours)

        def look(site: Site, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if site.kind == "cross":
                gh, gw = site.grid(trace.grid)
                soft = word_probabilities(q, k, slice(0, last))
                soft = rearrange(soft, "(n f) (h w) k -> n k f h w", n=len(parts), h=gh, w=gw)
                taken(partial(add, site), soft)
            if site in storing:
                taken(partial(keep, site), q, k)
            return attend(q, k, v)

        fused = windows(store, len(ts)) if store else {}
        cross = [site for site in sites if site.kind == "cross"]

        def predict(x: Tensor, t: int, level: float, recorded: bool = True) -> Tensor:
            nonlocal label, storing
            label, recorded = t, recorded and t in ts
            kinds = {kind for kind, n in fused.items() if recorded and t in ts[len(ts) - n :]}
            storing = set(fused_sites(sites, trace.grid, kinds, store)) if store else set()
            hooks = dict.fromkeys([*cross, *storing] if recorded else (), look)
            kind = None if host and storing else (recorded, *sorted(site.name for site in storing))

            def some(*spans: Span) -> Tensor:
                nonlocal parts
                parts = spans
                return forwards.predict(*_rows(x, text, spans, t), level, hooks, kind)

            eps = self._over(x.shape[2], some, together)
            maps.pack(t)
            return eps

        with Forwards(backbone, usage) as forwards:
            if drawn:
                walk = _drawn(path, predict, latents, alpha, seed)
            else:
                walk = path.invert(predict, latents, alpha, solver=solver, draft=partial(predict, recorded=False))
            for i, (t, x) in enumerate(walk):
                trace.latents[t] = x = x.contiguous()  # so that a trace read from a file gives the same to the last bit
                # no step asked for the highest level's maps and features
                if solver != "ddim" and not drawn and t == ts[-1]:
                    predict(x, t, alpha[t])
                yield Step("invert", i + 1, len(ts), t)
        trace.maps.update(maps.packed())
        return trace

    @torch.inference_mode()
    def reconstruct_steps(self, trace: Trace, usage: Usage | None = None, one_row: bool = False) -> Steps[Tensor]:
        """Denoises with the source prompt and guidance 1: the latents that the inversion can give back at best. With
        `one_row` the spans of a long clip run one at a time."""
        backbone, usage = self.backbone, usage or Usage()
        text = backbone.text([trace.prompt])

        def predict(x: Tensor, t: int, level: float) -> Tensor:
            def some(*spans: Span) -> Tensor:
                return forwards.predict(*_rows(x, text, spans, t), level, kind="plain")

            return self._over(x.shape[2], some, 1 if one_row else TOGETHER)

        x = trace.latents[trace.timesteps[-1]]
        walk = backbone.path.denoise(predict, x, backbone.path.levels(trace.timesteps), solver=trace.solver)
        with Forwards(backbone, usage) as forwards:
            for i, (t, x) in enumerate(walk):  # noqa: B007
                yield Step("reconstruct", i + 1, len(trace.timesteps), t)
        return x.contiguous()

    def reconstruct(self, trace: Trace) -> Clip:
        """`reconstruct_steps` run to its end, decoded."""
        return self.decode(finish(self.reconstruct_steps(trace)), trace.clip)

    def maps(self, trace: Trace, word: str, *, usage: Usage | None = None) -> dict[tuple[int, str], np.ndarray]:
        """The soft maps (f, h, w) of a word by (t, site name): one of the source prompt's, or any concept that it
        lacks, beside the prompt's words (`concepts`). Raises PromptError for an empty one."""
        try:
            at = find_word(trace.prompt, word)
        except PromptError:
            found = finish(concept_steps(self.backbone, trace, [word], usage=usage))
            frames = len(trace.clip.frames)
            return {cell: to_frames(soft.of([0]), frames, trace.stride) for cell, soft in found.items()}
        cross = [site for site in trace.sites if site.kind == "cross"]
        return {(t, site.name): trace.word_map(t, site, at) for t in trace.timesteps for site in cross}

    # ------------------------------------------------------------------ editing

    def plan_masks(
        self,
        trace: Trace,
        *,
        word: str,
        task: Preset,
        mask: np.ndarray | None = None,
        site: str | None = None,
        timestep: int | None = None,
    ) -> MaskPlan:
        """The masks of an edit by a picked site and timestep, or this backbone's codebook; see `plan.plan_masks`."""
        choice = choose(self.backbone.name, trace.sites, trace.timesteps, trace.grid, site=site, timestep=timestep)
        return plan_masks(trace, choice, word=word, task=task, mask=mask)

    def plan_parts(self, trace: Trace, parts: Sequence[Part]) -> tuple[MaskPlan, tuple[MaskPlan | None, ...]]:
        """The masks of several changes: what changes, joined, and each change's own, disjoint; None of a place's. Of
        several objects each has the mask of its phrase, but where a layer was picked for it."""
        objects = [part for part in parts if not part.everywhere]
        apart, made = by_phrase(trace) if len(objects) > 1 else trace, []
        for part in objects:
            own: dict[str, Any] = {"mask": part.mask, "site": part.site, "timestep": part.timestep}
            seen = trace if part.site else apart
            made.append((part.word, part.task, self.plan_masks(seen, word=part.word, task=part.task, **own)))
        plans = disjoint(apart, made)
        kept = [part.kept for part in objects]
        left = iter(plans)
        return joined(plans, kept), tuple(None if part.everywhere else next(left) for part in parts)

    def edit(
        self,
        trace: Trace,
        *,
        prompt: str,
        task: Preset | str,
        method: str | None = None,
        word: str | None = None,
        **options: Any,
    ) -> Edited:
        """`edit_steps` run to its end, decoded: a task by its name as the method does it, FreeMask's where left out, or
        by a preset of one's own; the word is inferred where none is given.

        Raises SettingError for a method that is not the preset's own.
        """
        preset = load_preset(task, method or "freemask") if isinstance(task, str) else task
        if method not in (None, preset.method):
            raise SettingError(
                f"The preset is one of {preset.method!r}, not of {method!r}: leave the method out, or name the task."
            )
        word = word or infer_word(trace.prompt, prompt, preset.name)
        done = finish(self.edit_steps(trace, prompt=prompt, task=preset, word=word, **options))
        return Edited(self.decode(done.latents, trace.clip), done.plan)

    @torch.inference_mode()
    def edit_steps(
        self,
        trace: Trace,
        *,
        prompt: str,
        task: Preset,
        word: str,
        guidance: float = 7.5,
        eta: float = 0.0,
        seed: int = 0,
        mask: np.ndarray | None = None,
        site: str | None = None,
        timestep: int | None = None,
        usage: Usage | None = None,
        glances: int = 0,
        watch: bool = False,
        one_row: bool = False,
        deep_cache: int = 1,
        prepared: MutableMapping[str, Prepared] | None = None,
        preparing: Usage | None = None,
        bend: Bend | None = None,
        parts: Sequence[Part] = (),
    ) -> Steps[Denoised]:
        """Denoises with the edit prompt under classifier-free guidance and masked fusion.

        The source's features are read from the trace where the inversion stored them, else replayed. About `glances`
        of the steps carry a picture (h, w, 3) uint8: the middle frame of the clean clip as it is predicted then.
        `watch` keeps the maps of the words that the source prompt lacks. With `one_row` batch rows run one at a
        time, in a third of the memory; the source's features of the step wait in host RAM meanwhile. Of `deep_cache`
        steps one computes the coarse layers (`families.deep`). What a method prepares is put into `prepared` and taken
        from there if it is there already; `preparing` counts its UNet calls. `bend` changes one word's attention.
        With `parts` FreeMask makes several changes in one pass, each as its part says, not as `word` and the mask do.
        """
        usage, prepared = usage or Usage(), {} if prepared is None else prepared
        about: dict[str, Any] = {"prompt": prompt, "word": word, "guidance": guidance, "watch": watch, "usage": usage}
        each: tuple[MaskPlan | None, ...] = ()
        if parts:
            plan, each = self.plan_parts(trace, parts)
            about |= {"parts": parts, "plans": each, "alignment": align_phrases(trace.prompt, prompt)}
            session: Session = Several(self.backbone, trace, plan, task, **about)
        else:
            plan = self.plan_masks(trace, word=word, task=task, mask=mask, site=site, timestep=timestep)
            session = SESSIONS[task.method](self.backbone, trace, plan, task, **about)
        if key := session.key:
            if key not in prepared:
                prepared[key] = yield from session.prepare(preparing or Usage())
            session.prepared = prepared[key]
        bending = None
        if bend:
            at = find_word(prompt, bend.word)
            bending = Bending(bend, trace, [token for j in at for token in session.edit_tokens[j]])
        deep = DeepCache(self.backbone.unet, deep_cache if session.cacheable else 1)
        every = -(-len(trace.timesteps) // glances) if glances else len(trace.timesteps) + 1
        picture: np.ndarray | None = None
        done = 0

        def predict(x: Tensor, t: int, level: float) -> Tensor:
            nonlocal picture, done
            rows = session.rows(t, x)
            deep.begin(tuple(row.name for row in rows))
            groups = [(row,) for row in reversed(rows)] if one_row else [rows]

            def one(span: Span) -> Tensor:
                seen: dict[str, Tensor] = {}
                for group in groups:
                    names = tuple(row.name for row in group)
                    z = torch.cat([row.x[:, :, span.frames] for row in group])
                    told = _together([row.text for row in group], span)
                    hooks, kind = session.hooks(span, names), session.kind(names)
                    if bending:
                        hooks, kind = bending.over(hooks, names, t), bending.kind(kind, t)
                    with deep.over((names, span.start)):
                        eps = forwards.predict(z, t, told, level, hooks, kind and (kind, deep.reused))
                    seen |= dict(zip(names, eps.chunk(len(names)), strict=True))
                session.passed()
                return torch.cat([seen[row.name] for row in rows])

            all_eps = self._over(x.shape[2], one).chunk(len(rows))
            eps = session.combine(x, dict(zip([row.name for row in rows], all_eps, strict=True)))
            done += 1
            picture = self._glance(session.glimpse(x[:1], eps[:1], level)) if done % every == 0 else None
            return eps

        path = self.backbone.path
        every_level = session.walked(path.levels(trace.timesteps))
        about = {"solver": trace.solver, "eta": eta, "seed": seed}
        walk = path.denoise(predict, session.noise, every_level, adjust=session.settle, **about)
        with Forwards(self.backbone, usage) as forwards:
            for i, (t, x) in enumerate(walk):  # noqa: B007
                yield Step("edit", i + 1, len(every_level) - 1, t, picture)
        return Denoised(x[:1], plan, session.watched, session.seen.packed(), session.prepared, each)

    def _glance(self, clean: Tensor) -> np.ndarray:
        """The middle frame (h, w, 3) uint8 of a clip's latents (1, c, f, h, w)."""
        middle = clean.shape[2] // 2
        return self.backbone.decode(clean[:, :, middle : middle + 1])[0]


def _drawn(
    path: NoisePath, predict: Predict, x: Tensor, levels: dict[int, float], seed: int
) -> Iterator[tuple[int, Tensor]]:
    """The clip's latents with fresh noise at every level, each of which `predict` sees: what `invert` yields."""
    for t in sorted(levels)[1:]:
        noisy = path.noised(x, fresh_noise(x, t, seed), levels[t])
        predict(noisy, t, levels[t])
        yield t, noisy


def _rows(x: Tensor, text: Tensor, spans: Sequence[Span], t: int) -> tuple[Tensor, int, Tensor]:
    """Spans of latents (1, c, f, h, w) as rows, the label, and the text (1, k, d) of each."""
    return torch.cat([x[:, :, span.frames] for span in spans]), t, text.expand(len(spans), -1, -1)


def _together(texts: Sequence[Tensor], span: Span) -> Tensor:
    """The text of some rows, each (1, k, d) or (1, f, k, d), over a span: with a row a frame where any has that."""
    if all(text.ndim == 3 for text in texts):
        return torch.cat(list(texts))
    frames = span.stop - span.start
    each = [text[:, span.frames] if text.ndim == 4 else text[:, None].expand(-1, frames, -1, -1) for text in texts]
    return torch.cat(each)
