"""What an inversion remembers: the latents of every noise level and the words' soft attention maps.

Everything is keyed by the scheduler's timestep value and the attention site, never by a loop index.
Maps are kept head-mean, for every token of the source prompt, as uint8 with one float32 scale per
(t, site, token, latent frame): raw word probabilities can sit near 0, where a fixed [0, 1] quantisation would
destroy the threshold. At 8 × 512² over zeroscope's 16 sites that is 0.21 MiB a step and token.

A trace can be written to a file and read again, in another process too, so that a second edit of the same clip and
prompt begins at denoising. Stored features stay behind: they are replayed then.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..clips.spans import Span
from ..clips.strides import latent_frames, to_frames
from ..clips.video import Clip
from ..families.ddim import CLEAN
from ..families.sites import Site
from ..families.specs import Solver
from .features import Features
from .stored import load_tensors, save_tensors

__all__ = ["MapSum", "SoftMap", "Trace", "load_trace", "save_trace", "shared"]


class SoftMap(NamedTuple):
    """`values` (k, f, h, w) uint8 and `scales` (k, f) float32: probability = values / 255 · scale."""

    values: np.ndarray
    scales: np.ndarray

    @classmethod
    def pack(cls, maps: np.ndarray) -> SoftMap:
        """From probabilities (k, f, h, w) float32."""
        return cls(*(part.numpy() for part in _quantised(torch.from_numpy(maps))))

    def of(self, tokens: list[int]) -> np.ndarray:
        """The summed probabilities of some tokens: (f, h, w) float32."""
        maps = self.values[tokens].astype(np.float32) / 255 * self.scales[tokens][..., None, None]
        return maps.sum(0)


def shared(part: Tensor, span: Span) -> Tensor:
    """A span's share of what is said of its frames, (…, f, h, w)."""
    return part * torch.from_numpy(span.share).to(part.device)[:, None, None]


def _quantised(maps: Tensor) -> tuple[Tensor, Tensor]:
    """The values and scales of a `SoftMap`, where the probabilities (k, f, h, w) float32 are."""
    scales = maps.amax((2, 3))
    return (maps / scales.clamp_min(1e-30)[..., None, None] * 255).round().byte(), scales


class MapSum:
    """The soft maps of one forward pass after the other, each put together from spans of latent frames by their shares.

    Those of a pass leave a GPU in one copy beside what computes there, so that neither waits for the other.
    """

    def __init__(self, frames: int) -> None:
        self.frames = frames
        self.sums: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}
        self._packed: list[tuple[int, dict[str, torch.Size], Tensor, Tensor]] = []

    def add(self, site: str, maps: Tensor, span: Span) -> None:
        """Adds a span's probabilities (k, its frames, h, w) float32."""
        if len(span.share) == self.frames:
            self.sums[site] = maps
            return
        if site not in self.sums:
            self.sums[site] = maps.new_zeros(len(maps), self.frames, *maps.shape[2:])
        self.sums[site][:, span.frames] += shared(maps, span)

    def take(self) -> dict[str, Tensor]:
        """The maps (k, f, h, w) by site; what was added is forgotten."""
        taken, self.sums = self.sums, {}
        return taken

    def pack(self, t: int) -> None:
        """What was added is of label `t`: it is sent to the host as `SoftMap.pack` makes it. A site that a pass did not
        meet, since its layer was taken from the pass before, has the maps of that one."""
        if not self.sums:
            return
        self._before = every = self._before | self.take()
        shapes = {site: maps.shape for site, maps in every.items()}
        parts = zip(*map(_quantised, every.values()), strict=True)
        values, scales = (_to_host(torch.cat([part.flatten() for part in each])) for each in parts)
        self._packed.append((t, shapes, values, scales))

    def packed(self) -> dict[tuple[int, str], SoftMap]:
        """The maps of every label and site that were packed, when all have arrived."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found = {}
        for t, shapes, values, scales in self._packed:
            each = torch.split(values, [shape.numel() for shape in shapes.values()])
            by_frame = torch.split(scales, [shape[:2].numel() for shape in shapes.values()])
            for (site, shape), one, scale in zip(shapes.items(), each, by_frame, strict=True):
                found[t, site] = SoftMap(one.reshape(shape).numpy().copy(), scale.reshape(shape[:2]).numpy().copy())
        return found


def _to_host(x: Tensor) -> Tensor:
    if x.device.type != "cuda":
        return x.cpu()
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)


@dataclass(frozen=True)
class Trace:
    """The memory of one inversion.

    `latents` maps each level (timestep, and CLEAN) to (1, c, f', h, w) float32: the pivots, which have a latent frame
    for every `stride` frames after the first; so have the maps. `timesteps`
    rise from low to high noise. `tokens` lists, for every word of the prompt, the rows of the maps that
    belong to it. `features` holds Q and K of the fused sites where they were stored, else nothing. `solver` is the one
    that made the latents, "ddim" or "dpm", and that denoises from them; `seen_below` says whether under a label it
    evaluated the latent of the level below. `drawn`: no inversion, the clip's latents with fresh noise at every level.
    """

    clip: Clip
    prompt: str
    timesteps: tuple[int, ...]
    sites: tuple[Site, ...]
    tokens: tuple[tuple[int, ...], ...]
    latents: dict[int, Tensor] = field(default_factory=dict)
    maps: dict[tuple[int, str], SoftMap] = field(default_factory=dict)
    features: Features = field(default_factory=Features)
    solver: Solver = "ddim"
    stride: int = 1
    seen_below: bool = True
    drawn: bool = False

    def below(self, t: int) -> int:
        """The level below a timestep."""
        i = self.timesteps.index(t)
        return self.timesteps[i - 1] if i else CLEAN

    def seen(self, t: int) -> int:
        """The level whose latent the inversion evaluated under label `t`: DDIM's the one below, else its own."""
        return self.below(t) if self.seen_below else t

    @property
    def latent_frames(self) -> int:
        return latent_frames(len(self.clip.frames), self.stride)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the latents."""
        h, w = self.latents[CLEAN].shape[-2:]
        return h, w

    def word_map(self, t: int, site: Site, at: list[int]) -> np.ndarray:
        """The soft map (f, h, w) of the words at `at`: each summed over its tokens, then each to a
        maximum of 1 and the largest taken where there are several."""
        soft, frames = self.maps[t, site.name], len(self.clip.frames)
        each = [to_frames(soft.of(list(self.tokens[i])), frames, self.stride) for i in at]
        if len(each) == 1:
            return each[0]
        return np.max([m / max(float(m.max()), 1e-30) for m in each], axis=0)


def save_trace(path: Path, trace: Trace) -> None:
    """Writes all of a trace but its features to one safetensors file, which appears whole or not at all."""
    levels = [CLEAN, *trace.timesteps]
    about = {"prompt": trace.prompt, "fps": trace.clip.fps, "sites": trace.sites, "tokens": trace.tokens}
    about |= {"solver": trace.solver, "timesteps": trace.timesteps, "stride": trace.stride}
    about |= {"seen_below": trace.seen_below, "drawn": trace.drawn}
    tensors = {
        "frames": torch.from_numpy(trace.clip.frames),
        "latents": torch.stack([trace.latents[level] for level in levels]),
    }
    for site in trace.sites:
        if site.kind == "cross":
            maps = [trace.maps[t, site.name] for t in trace.timesteps]
            tensors[f"maps {site.name}"] = torch.from_numpy(np.stack([soft.values for soft in maps]))
            tensors[f"scales {site.name}"] = torch.from_numpy(np.stack([soft.scales for soft in maps]))
    save_tensors(path, tensors, about)


def load_trace(path: Path, device: torch.device) -> Trace:
    """Reads what `save_trace` wrote, with its latents on `device`; raises as `load_tensors` does."""
    tensors, about = load_tensors(path)
    timesteps, sites = tuple(about["timesteps"]), tuple(Site(*site) for site in about["sites"])
    maps: dict[tuple[int, str], SoftMap] = {}
    for site in sites:
        if site.kind == "cross":
            values, scales = (tensors[f"{what} {site.name}"].numpy() for what in ("maps", "scales"))
            maps |= {(t, site.name): SoftMap(values[i], scales[i]) for i, t in enumerate(timesteps)}
    return Trace(
        Clip(tensors["frames"].numpy(), about["fps"]),
        about["prompt"],
        timesteps,
        sites,
        tuple(map(tuple, about["tokens"])),
        dict(zip([CLEAN, *timesteps], tensors["latents"].to(device), strict=True)),
        maps,
        **{name: about[name] for name in ("solver", "stride", "seen_below", "drawn")},
    )
