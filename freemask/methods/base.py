"""What a method is: a session, one edit under way, that one runner (`editor.edit_steps`) asks at every noise level.

The runner owns what is the same for all: the walk down the levels, the spans of a long clip, batch rows together or one
at a time, what is counted and told. A session says which rows the network sees at a level, what its hooks do there,
what noise comes of the rows' predictions, and what becomes of the latent that a step reached. This base is the plainest
method, classifier-free guidance under the edit prompt; a paper's method adds to it, in a file of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from ..clips.spans import Span, spans
from ..families.attention import Hook, attend, word_probabilities
from ..families.backbone import Backbone
from ..families.ddim import CLEAN, guide
from ..families.graphs import Usage, taken
from ..families.sites import Site
from ..masks.plan import MaskPlan
from ..masks.trace import MapSum, Trace, shared
from ..presets import Preset, refuse_path
from ..steps import Steps
from ..words.prompts import Alignment, align

__all__ = ["Prepared", "Row", "Session", "fused_sites", "over_spans", "window", "windows"]

Prepared = Mapping[str, Tensor]  # what a method makes of a trace before it edits, by name


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


def over_spans(frames: int, native: int, predict: Callable[..., Tensor], together: int = 1) -> Tensor:
    """What is predicted for a whole clip, (b, c, f, h, w), put together from its spans of `native` frames; `predict`
    takes up to so many of them `together` and says the rows of one after those of the other."""
    parts = spans(frames, native)
    if len(parts) == 1:
        return predict(parts[0])
    total: Tensor | None = None
    for group in (parts[i : i + together] for i in range(0, len(parts), together)):
        for span, eps in zip(group, predict(*group).chunk(len(group)), strict=True):
            if total is None:
                total = eps.new_zeros((*eps.shape[:2], frames, *eps.shape[3:]))
            total[:, :, span.frames] += shared(eps, span)
    assert total is not None
    return total


class Row(NamedTuple):
    """One row of a forward's batch: `x` (1, c, f, h, w) under the text (1, k, d), or (1, f, k, d), one for a frame."""

    name: str
    x: Tensor
    text: Tensor


class Session:
    """One edit of a trace under a plan of masks.

    With `watch` the maps of the words that the source prompt lacks are kept: `watched` are those words by position,
    `seen` their maps in that order, by (t, site name), as the edit looks before anything is fused.
    """

    cacheable = True  # whether coarse layers may be taken from the step before

    def __init__(
        self,
        backbone: Backbone,
        trace: Trace,
        plan: MaskPlan,
        task: Preset,
        *,
        prompt: str,
        word: str,
        guidance: float = 7.5,
        watch: bool = False,
        usage: Usage | None = None,
        alignment: Alignment | None = None,
    ) -> None:
        refuse_path(task.method, backbone.name, backbone.path.name)
        self.trace, self.plan, self.task, self.word, self.guidance = trace, plan, task, word, guidance
        self.backbone, self.usage = backbone, usage or Usage()
        self.prepared: Prepared = {}
        self.alignment = alignment or align(trace.prompt, prompt)
        self.edit_tokens = backbone.word_tokens(prompt)
        self.text = dict(
            zip(("plain", "edit", "source"), backbone.text(["", prompt, trace.prompt]).chunk(3), strict=True)
        )
        self.watched = self.alignment.changed if watch else ()
        self.watched_tokens = [list(self.edit_tokens[j]) for j in self.watched]
        count = max(1, window(task.strength, len(trace.timesteps)))
        self.order = {t: j for j, t in enumerate(reversed(trace.timesteps[:count]))}
        frames = trace.latent_frames
        self.seen = MapSum(frames)
        self.t, self.span = CLEAN, spans(frames, frames)[0]
        self.now: tuple[str, ...] = ()

    # ------------------------------------------------------------------ what the runner asks

    @property
    def key(self) -> str:
        """Names what `prepare` would make, by all that it depends on; "" where there is nothing to make."""
        return ""

    def prepare(self, usage: Usage) -> Steps[Prepared]:
        """What is made before the walk and put into `prepared`, so that a later edit need not make it again."""
        yield from ()
        return {}

    @property
    def noise(self) -> Tensor:
        """The latents (n, c, f, h, w) that the walk begins from; the edit's are the first."""
        return self.trace.latents[max(self.order)]

    def walked(self, levels: dict[int, float]) -> dict[int, float]:
        """The levels that the walk goes down, of all that the trace has: the task's `strength` of them."""
        return {t: level for t, level in levels.items() if t == CLEAN or t in self.order}

    def rows(self, t: int, x: Tensor) -> tuple[Row, ...]:
        """A step with label `t` begins at latents x: the rows that the network is to see, unconditional and told; a
        guidance of 1 is the second alone."""
        self.t = t
        names = ("plain", "edit") if self.guidance != 1 else ("edit",)
        return tuple(Row(name, x[:1], self.text[name]) for name in names)

    def hooks(self, span: Span, names: tuple[str, ...]) -> Mapping[Site, Hook]:
        """The hooks of a forward with the rows of these names over a span."""
        self.span, self.now = span, names
        return dict.fromkeys(self.seen_sites if "edit" in names else (), self.look)

    def kind(self, names: tuple[str, ...]) -> Hashable:
        """What the forwards with the rows of these names in this step have in common with those of other steps, so that
        one may be recorded for all (`graphs`); None where it cannot be."""
        return names, len(self.seen_sites)

    def passed(self) -> None:
        """All rows of a span have been seen."""

    def combine(self, x: Tensor, eps: Mapping[str, Tensor]) -> Tensor:
        """The noise (n, c, f, h, w) in the step's latents x by the predictions of the rows, when all are there."""
        self.seen.pack(self.t)
        return guide(eps["plain"], eps["edit"], self.guidance, self.task.rescale) if "plain" in eps else eps["edit"]

    def glimpse(self, x: Tensor, out: Tensor, level: float) -> Tensor:
        """The clip's latents (1, c, f, h, w) that a step's latents and the noise in them predict."""
        return self.backbone.path.clean(x, out, level)

    def settle(self, level: int, x: Tensor) -> Tensor:
        """What becomes of the latents x that a step reached at a level."""
        return x

    # ------------------------------------------------------------------ what hooks share

    @property
    def seen_sites(self) -> list[Site]:
        """The sites at which new words are watched."""
        return [site for site in self.trace.sites if site.kind == "cross"] if self.watched else []

    def look(self, site: Site, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Plain attention of all rows, the edit's watched."""
        at, count = self.now.index("edit"), len(self.now)
        last = max(token for tokens in self.watched_tokens for token in tokens) + 1
        soft = word_probabilities(q.chunk(count)[at], k.chunk(count)[at], slice(0, last))
        taken(partial(self.see, self.seen, site, self.watched_tokens), soft)
        return attend(q, k, v)

    def see(self, into: MapSum, site: Site, each: list[list[int]], soft: Tensor) -> None:
        """Adds the maps of some words, each a list of columns of head-mean probabilities (f, p, k)."""
        h, w = site.grid(self.trace.grid)
        maps = torch.stack([soft[..., columns].sum(-1) for columns in each])
        into.add(site.name, rearrange(maps, "n f (h w) -> n f h w", h=h, w=w), self.span)
