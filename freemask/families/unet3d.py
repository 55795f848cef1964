"""Text-to-video models with a `UNet3DConditionModel`: zeroscope, ModelScope, and mini."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from diffusers import UNet3DConditionModel
from torch import Tensor

from .attention import Hook, installed, plainly
from .backbone import Backbone, per_frame
from .sites import Site

__all__ = ["UNet3D"]


@dataclass(frozen=True)
class UNet3D(Backbone):
    """The network sees all frames together: its temporal layers attend over them."""

    network = UNet3DConditionModel

    def asked(self, latents: tuple[int, ...], text: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return latents, text

    @contextmanager
    def over(self, frames: int, hooks: Mapping[Site, Hook] | None = None, text: Tensor | None = None) -> Iterator[None]:
        each = None
        if text is not None and text.ndim == 4:  # the network itself knows one row for all frames
            each = per_frame(text.to(self.dtype), frames)
            hooks = {**{site: plainly for site in self.sites if site.kind == "cross"}, **(hooks or {})}
        with installed(self.unet, hooks or {}, text=each):
            yield

    def output(self, x: Tensor, t: int | Tensor, text: Tensor) -> Tensor:
        dtype = self.dtype
        told = text if text.ndim == 3 else text[:, 0]
        return self.unet(x.to(dtype), t, encoder_hidden_states=told.to(dtype)).sample.float()
