"""Maps of words that the source prompt lacks: any concept's cross-attention over a clip (after ConceptAttention,
Helbling et al. 2025, and DAAM, Tang et al. 2023).

A concept is a prompt of its own, of which only the keys are wanted: at every cross site the source's own queries, asked
once more at the latents that the inversion saw, meet the keys of the concept's tokens. `beside` the prompt, all tokens
share one softmax, so that a concept competes with the words that are there; else the concepts share one among
themselves, which says where each is the strongest of them. A concept whose words stand in the source prompt has the
map of those words.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ..clips.spans import Span
from ..errors import PromptError
from ..families.attention import attend, probabilities
from ..families.backbone import Backbone
from ..families.graphs import Forwards, Usage, taken
from ..families.sites import Site
from ..masks.trace import MapSum, SoftMap, Trace
from ..steps import Step, Steps
from ..words.positions import locate
from ..words.prompts import words
from .base import over_spans

__all__ = ["Concepts", "concept_steps"]


class Concepts:
    """Some concepts, each read by the text encoder as a prompt of its own; `counts` are their numbers of tokens."""

    def __init__(self, backbone: Backbone, concepts: Sequence[str]) -> None:
        self._backbone, self._told = backbone, backbone.text(list(concepts))
        self._rows = [[k for word in backbone.word_tokens(one) for k in word] for one in concepts]
        self.counts = [len(row) for row in self._rows]

    def keys(self, site: Site) -> Tensor:
        """Those of all their tokens at a cross site, (1, heads, tokens, d)."""
        keys = self._backbone.cross_keys(site, self._told)
        return torch.cat([keys[n, :, tokens] for n, tokens in enumerate(self._rows)], 1)[None]


@torch.inference_mode()
def concept_steps(
    backbone: Backbone, trace: Trace, concepts: Sequence[str], *, beside: bool = True, usage: Usage | None = None
) -> Steps[dict[tuple[int, str], SoftMap]]:
    """The maps of some concepts, in their order as a `SoftMap` has tokens, by (t, site name): one forward of one row a
    timestep. Raises PromptError for an empty concept or one that is too long, and without `beside` for a single
    one."""
    if not concepts or not all(map(words, concepts)):
        raise PromptError("A concept is empty: write a word or a few, such as 'wheels'.")
    if not beside and len(concepts) < 2:
        raise PromptError(
            "A single concept has nothing to stand against: give several, or let it stand beside the prompt."
        )
    source = backbone.text([trace.prompt])
    told = Concepts(backbone, concepts)
    own = words(trace.prompt)
    known = {n: at for n, one in enumerate(concepts) if beside and (at := locate(own, words(one)))}
    maps = MapSum(trace.latent_frames)
    cross = [site for site in trace.sites if site.kind == "cross"]
    now: Span

    def look(site: Site, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys = told.keys(site).expand(len(k), -1, -1, -1).to(k)
        soft = probabilities(q, torch.cat([k, keys], 2) if beside else keys).mean(1)
        parts = torch.split(soft[..., -sum(told.counts) :], told.counts, -1)
        each = [part.sum(-1) for part in parts]
        h, w = site.grid(trace.grid)
        soft = rearrange(torch.stack(each), "n f (h w) -> n f h w", h=h, w=w)
        taken(partial(lambda span, seen: maps.add(site.name, seen, span), now), soft)
        return attend(q, k, v)

    levels = backbone.path.levels(trace.timesteps)
    hooks = dict.fromkeys(cross, look)
    with Forwards(backbone, usage) as forwards:
        for i, t in enumerate(trace.timesteps):
            x = trace.latents[trace.seen(t)]

            def one(span: Span, x: Tensor = x, t: int = t) -> Tensor:
                nonlocal now
                now = span
                return forwards.predict(x[:, :, span.frames], t, source, levels[t], hooks)

            over_spans(x.shape[2], backbone.native_frames, one)
            maps.pack(t)
            yield Step("concepts", i + 1, len(trace.timesteps), t)
    found = maps.packed()
    for cell, soft in found.items():
        for n, positions in known.items():
            each = [trace.maps[cell].of(list(trace.tokens[i])) for i in positions]
            packed = SoftMap.pack(np.max(each, axis=0)[None])
            soft.values[n], soft.scales[n] = packed.values[0], packed.scales[0]
    return found
