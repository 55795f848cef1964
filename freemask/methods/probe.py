"""One attention layer of a clip at one timestep, looked at in full: its heads one by one, what a position attends to
and who attends to it, and its features as colours.

A trace keeps head means of words alone. What more there is is computed again from its latents, when somebody asks: one
forward of one row under the source prompt. A position's track over the frames is where its query finds its best key in
each (after DiffTrack, Nam et al. 2025, which reads it from a transformer's generation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from ..clips.spans import Span, spans
from ..errors import SettingError
from ..families.attention import attend, probabilities
from ..families.backbone import Backbone
from ..families.sites import Site
from ..masks.trace import SoftMap, Trace
from ..words.prompts import words
from .concepts import Concepts

__all__ = ["Position", "feature_colours", "head_maps", "position_attention"]

Seen = dict[Site, tuple[Tensor, Tensor]]  # queries and keys, as a hook gets them


@dataclass(frozen=True)
class Position:
    """What a place of a latent frame attends to at a layer, and who to it: head means.

    `out` and `into` (f, h, w) float32 are self-attention's weights from it, which sum to 1, and to it; None where the
    layer has none. `track` (f, 2) is where it is in each frame: (x, y) as shares of the width and the height.
    `temporal` (f,) are temporal attention's weights on the frames, None without. `told` (words,) are the source words'
    shares in cross-attention.
    """

    told: NDArray[np.float32]
    out: NDArray[np.float32] | None
    into: NDArray[np.float32] | None
    track: NDArray[np.float32] | None
    temporal: NDArray[np.float32] | None


def _look(backbone: Backbone, trace: Trace, t: int, sites: Sequence[Site], span: Span) -> Seen:
    """Queries and keys of some sites in one forward of a span's frames."""
    seen: Seen = {}

    def keep(site: Site, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen[site] = q.float(), k.float()
        return attend(q, k, v)

    x = trace.latents[trace.seen(t)][:, :, span.frames]
    backbone.predict(x, t, backbone.text([trace.prompt]), backbone.path.levels((t,))[t], dict.fromkeys(sites, keep))
    return seen


def _each_span(backbone: Backbone, frames: int) -> list[tuple[Span, list[int]]]:
    """The spans of a clip, each with the frames of which it says the most."""
    parts = spans(frames, backbone.native_frames)
    share = np.zeros((len(parts), frames))
    for n, span in enumerate(parts):
        share[n, span.frames] = span.share
    return [(span, np.flatnonzero(share.argmax(0) == n).tolist()) for n, span in enumerate(parts)]


def _site(trace: Trace, name: str, kind: str) -> Site | None:
    return next((site for site in trace.sites if site.name == name and site.kind == kind), None)


def _beside(trace: Trace, cross: Site) -> tuple[Site | None, Site | None]:
    """The self-attention of a cross site's block, and the temporal attention that follows it on the same grid."""
    own = _site(trace, cross.name.removesuffix("2") + "1", "self")
    after = trace.sites[trace.sites.index(cross) :]
    same = (site for site in after if site.kind == "temporal" and site.level == cross.level)
    return own, next(same, None)


def _cross(trace: Trace, t: int, name: str) -> Site:
    site = _site(trace, name, "cross")
    if site is None or t not in trace.timesteps:
        raise SettingError("There is no such layer and timestep in this edit: choose a cell of its matrix.")
    return site


@torch.inference_mode()
def head_maps(backbone: Backbone, trace: Trace, word: Sequence[int] | str, *, t: int, site: str) -> SoftMap:
    """A word's map (heads, f, h, w) of every head at a cross site and timestep; their mean is the cell's map. The word
    is its positions in the source prompt, or a concept that it lacks. Raises SettingError for an unknown cell."""
    at = _cross(trace, t, site)
    h, w = at.grid(trace.grid)
    found: Tensor | None = None
    for span, frames in _each_span(backbone, trace.latent_frames):
        q, k = _look(backbone, trace, t, [at], span)[at]
        if isinstance(word, str):
            added = Concepts(backbone, [word]).keys(at)
            k = torch.cat([k, added.expand(len(k), -1, -1, -1).to(k)], 2)
            columns = list(range(k.shape[2] - added.shape[2], k.shape[2]))
        else:
            columns = [token for i in word for token in trace.tokens[i]]
        soft = rearrange(probabilities(q, k)[..., columns].sum(-1), "f n (h w) -> n f h w", h=h, w=w)
        if found is None:
            found = soft.new_zeros((len(soft), trace.latent_frames, h, w))
        found[:, frames] = soft[:, [frame - span.start for frame in frames]]
    assert found is not None
    return SoftMap.pack(found.cpu().numpy())


@torch.inference_mode()
def feature_colours(backbone: Backbone, trace: Trace, *, t: int, site: str) -> NDArray[np.uint8]:
    """The first three principal components of the keys of self-attention beside a cross site, as colours (f, h, w, 3)
    over the whole clip; of cross-attention's queries where the block has no self-attention."""
    cross = _cross(trace, t, site)
    own = _beside(trace, cross)[0] or cross
    h, w = own.grid(trace.grid)
    found: Tensor | None = None
    for span, frames in _each_span(backbone, trace.latent_frames):
        q, k = _look(backbone, trace, t, [own], span)[own]
        what = rearrange(q if own.kind == "cross" else _own_keys(backbone, own, k, h * w), "f n p d -> f p (n d)")
        if found is None:
            found = what.new_zeros((trace.latent_frames, *what.shape[1:]))
        found[frames] = what[[frame - span.start for frame in frames]]
    assert found is not None
    flat = rearrange(found, "f p d -> (f p) d").double().cpu()
    flat = flat - flat.mean(0)
    _, vectors = torch.linalg.eigh(flat.T @ flat)
    main = vectors[:, -3:].flip(1)
    main = main * torch.sign(main.gather(0, main.abs().argmax(0, keepdim=True)))
    seen = (flat @ main).numpy()
    low, high = np.percentile(seen, (2, 98), axis=0)
    colours = np.rint(255 * np.clip((seen - low) / np.maximum(high - low, 1e-12), 0, 1)).astype(np.uint8)
    if colours.shape[1] < 3:
        colours = np.pad(colours, ((0, 0), (0, 3 - colours.shape[1])))
    return rearrange(colours, "(f h w) c -> f h w c", h=h, w=w)


@torch.inference_mode()
def position_attention(
    backbone: Backbone, trace: Trace, *, t: int, site: str, frame: int, x: float, y: float
) -> Position:
    """What the place at (x, y), shares of the width and the height in [0, 1), of a latent frame attends to in the block
    of a cross site: in space, in time, and in words. A long clip is seen in the span that says most of that frame."""
    cross = _cross(trace, t, site)
    if not (0 <= frame < trace.latent_frames and 0 <= x < 1 and 0 <= y < 1):
        raise SettingError("There is no such place on this clip.")
    own, temporal = _beside(trace, cross)
    span = next(span for span, frames in _each_span(backbone, trace.latent_frames) if frame in frames)
    seen = _look(backbone, trace, t, [one for one in (cross, own, temporal) if one], span)
    here, (h, w) = frame - span.start, cross.grid(trace.grid)
    place = int(y * h) * w + int(x * w)
    q, k = seen[cross]
    shares = probabilities(q[here, :, [place]], k[here]).mean(0)[0]
    told = [float(shares[list(trace.tokens[i])].sum()) for i in range(len(words(trace.prompt)))]
    spread = partial(_spread, frames=trace.latent_frames, span=span)
    weights = None
    if temporal:
        q, k = seen[temporal]  # (places, heads, frames, d)
        weights = spread(probabilities(q[place], k[place]).mean(0)[here])
    in_space = _in_space(backbone, own, *seen[own], here=here, place=place, grid=(h, w)) if own else ()
    out, into, track = map(spread, in_space) if in_space else (None, None, None)
    return Position(np.array(told, np.float32), out, into, track, weights)


def _spread(x: Tensor, *, frames: int, span: Span) -> NDArray[np.float32]:
    """What is said of a span's frames (f, …), with zeros for the others."""
    whole = np.zeros((frames, *x.shape[1:]), np.float32)
    whole[span.frames] = x.float().cpu().numpy()
    return whole


def _in_space(
    backbone: Backbone, site: Site, q: Tensor, k: Tensor, *, here: int, place: int, grid: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Self-attention from a place and to it, (f, h, w), and the place's track (f, 2)."""
    (h, w), p = grid, grid[0] * grid[1]
    frames = q.shape[2] // p if site.joint else len(q)
    ids = torch.arange(frames * p, device=q.device).view(frames, p)  # of each key, whose frame and place it is
    if site.joint:
        own, keys, met = q[0, :, [here * p + place]], k[0], ids.flatten()
        each_frame = (q[:, :, f * p : (f + 1) * p] for f in range(frames))
        into = torch.cat([probabilities(one, k)[0, :, :, here * p + place].mean(0) for one in each_frame])
    else:
        each = backbone.met(site, ids.float()).long()
        own, keys, met = q[here, :, [place]], k[here], each[here]
        rows = []
        for f in range(frames):
            soft = probabilities(q[f : f + 1], k[f : f + 1])[0].mean(0)
            rows.append(soft[:, each[f] == here * p + place].sum(1))
        into = torch.cat(rows)
    weights = probabilities(own, keys).mean(0)[0]
    out = torch.zeros(frames * p, device=q.device).index_add_(0, met, weights.float())
    mine, track = _own_keys(backbone, site, k, p), torch.empty(frames, 2)
    for f in range(frames):
        best = int(probabilities(own, mine[f]).mean(0)[0].argmax()) if f != here else place
        track[f] = torch.tensor([(best % w + 0.5) / w, (best // w + 0.5) / h])
    return out.view(frames, h, w), into.float().view(frames, h, w), track


def _own_keys(backbone: Backbone, site: Site, k: Tensor, p: int) -> Tensor:
    """The keys (f, heads, p, d) of each frame at a self site, from those that its queries meet, of all frames or of
    some; a frame that does not meet its own has the first that it meets."""
    if site.joint:
        return rearrange(k, "1 n (f p) d -> f n p d", p=p)
    ids = torch.arange(len(k) * p, device=k.device).view(len(k), p)
    met = backbone.met(site, ids.float()).long()
    at = [(met[f] // p == f).nonzero().flatten()[:p] for f in range(len(k))]
    return torch.stack([k[f][:, one if len(one) == p else slice(p)] for f, one in enumerate(at)])
