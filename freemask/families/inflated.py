"""Image models over frames: Stable Diffusion 1.x and 2.x, inflated as FateZero does (Qi et al. 2023, Sec. 3.2).

Frames fold into the batch. Self-attention becomes spatial-temporal (Eq. 8): the queries of frame i meet the keys and
values of a list of frames, by default its own and the middle one, [zⁱ; zʷ] with w = Round[n/2]. So its map is
hw × (frames in the list · hw). Sites with few channels may be left as they are. No weight changes, and no layer is
temporal, unless a clip was tuned (`temporal`): then every transformer block ends with attention over frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from diffusers import UNet2DConditionModel
from einops import rearrange
from torch import Tensor, nn

from .attention import Hook, installed, plainly
from .backbone import Backbone, per_frame
from .sites import Site
from .specs import Attended
from .temporal import over_frames, temporal_blocks

__all__ = ["Inflated", "attended_frames"]


def attended_frames(attends: Sequence[Attended], frames: int) -> Tensor:
    """For each frame those whose keys it meets: (frames, len(attends)) int64, in [0, frames)."""
    own = torch.arange(frames)
    where = {
        "self": own,
        "previous": (own - 1).clamp_min(0),
        "first": torch.zeros_like(own),
        "middle": torch.full_like(own, (frames - 1) // 2),
        "last": torch.full_like(own, frames - 1),
    }
    return torch.stack([where[one] for one in attends], dim=1)


def _gather(frames: Tensor, x: Tensor) -> Tensor:
    """Keys or values (b·f, heads, p, d) of each frame's list `frames` (f, l): (b·f, heads, l·p, d)."""
    each = rearrange(x, "(b f) heads p d -> b f heads p d", f=len(frames))[:, frames]
    return rearrange(each, "b f l heads p d -> (b f) heads (l p) d")


@dataclass(frozen=True)
class Inflated(Backbone):
    """The network sees each frame alone but for its self-attention, and its temporal attention where it has any."""

    network = UNet2DConditionModel

    @cached_property
    def _shared(self) -> frozenset[Site]:
        """The sites whose queries meet other frames."""
        if self.inflation.attends == ("self",):
            return frozenset()
        channels = {s: self.unet.get_submodule(s.name).to_q.in_features for s in self.sites if s.kind == "self"}
        return frozenset(site for site, count in channels.items() if count >= self.inflation.least_channels)

    @cached_property
    def _timed(self) -> tuple[nn.Module, ...]:
        """The blocks with temporal attention."""
        return temporal_blocks(self.unet)

    def keys(self, site: Site, grid: tuple[int, int]) -> int:
        each = super().keys(site, grid)
        return each * len(self.inflation.attends) if site in self._shared else each

    def met(self, site: Site, x: Tensor) -> Tensor:
        if site not in self._shared:
            return x
        frames = attended_frames(self.inflation.attends, len(x)).to(x.device)
        return rearrange(x[frames], "f l p -> f (l p)")

    def asked(self, latents: tuple[int, ...], text: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        b, c, f, h, w = latents
        return (b * f, c, h, w), (b * f, *text[1:])

    @contextmanager
    def over(self, frames: int, hooks: Mapping[Site, Hook] | None = None, text: Tensor | None = None) -> Iterator[None]:
        gather = partial(_gather, attended_frames(self.inflation.attends, frames).to(self.device))
        shared = dict.fromkeys(self._shared, gather)
        placed = {**dict.fromkeys(shared, plainly), **(hooks or {})}
        with installed(self.unet, placed, shared), over_frames(self._timed, frames):
            yield

    def output(self, x: Tensor, t: int | Tensor, text: Tensor) -> Tensor:
        dtype, frames = self.dtype, x.shape[2]
        z, told = rearrange(x.to(dtype), "b c f h w -> (b f) c h w"), per_frame(text.to(dtype), frames)
        out = self.unet(z, t, encoder_hidden_states=told).sample.float()
        return rearrange(out, "(b f) c h w -> b c f h w", f=frames)
