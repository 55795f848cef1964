"""Text-to-video models with a `UNet3DConditionModel`: zeroscope, ModelScope, and mini."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
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

    def predict(
        self,
        x: Tensor,
        t: int,
        text: Tensor,
        level: float | None = None,
        hooks: Mapping[Site, Hook] | None = None,
        held: ExitStack | None = None,
    ) -> Tensor:
        told, each = text.to(self.unet.dtype), None
        if told.ndim == 4:  # the network itself knows one row for all frames
            each, told = per_frame(told, x.shape[2]), told[:, 0]
            hooks = {**{site: plainly for site in self.sites if site.kind == "cross"}, **(hooks or {})}
        with ExitStack() as own:
            (held or own).enter_context(installed(self.unet, hooks or {}, text=each))
            out = self.unet(x.to(self.unet.dtype), t, encoder_hidden_states=told).sample.float()
        return self._noise(x, out, t, level)
