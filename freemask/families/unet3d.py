"""Text-to-video models with a `UNet3DConditionModel`: zeroscope, ModelScope, and mini."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from diffusers import UNet3DConditionModel
from torch import Tensor

from .attention import Hook, installed
from .backbone import Backbone
from .sites import Site

__all__ = ["UNet3D"]


@dataclass(frozen=True)
class UNet3D(Backbone):
    """The network sees all frames together: its temporal layers attend over them."""

    network = UNet3DConditionModel

    def asked(self, latents: tuple[int, ...], text: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return latents, text

    def predict(
        self, x: Tensor, t: int, text: Tensor, level: float | None = None, hooks: Mapping[Site, Hook] | None = None
    ) -> Tensor:
        dtype = self.unet.dtype
        with installed(self.unet, hooks or {}):
            out = self.unet(x.to(dtype), t, encoder_hidden_states=text.to(dtype)).sample.float()
        return self._noise(x, out, t, level)
