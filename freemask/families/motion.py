"""Image models with motion modules: AnimateDiff (Guo et al. 2023), a `UNetMotionModel`.

Each frame is drawn as Stable Diffusion 1.x draws it, its own text row beside it; after every layer a motion module's
two attentions run over frames, at each position alone. The modules come in the UNet of an AnimateDiff pipeline, or as a
`MotionAdapter` beside an image model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel
from torch import Tensor

from .backbone import Backbone, per_frame

__all__ = ["Motion", "add_motion"]


@dataclass(frozen=True)
class Motion(Backbone):
    """The network sees all frames together, as many as its motion modules have positions for."""

    network = UNetMotionModel

    def asked(self, latents: tuple[int, ...], text: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return latents, (text[0] * latents[2], *text[1:])

    def output(self, x: Tensor, t: int | Tensor, text: Tensor) -> Tensor:
        told = per_frame(text.to(self.dtype), x.shape[2])
        return self.unet(x.to(self.dtype), t, encoder_hidden_states=told).sample.float()


def add_motion(unet: UNet2DConditionModel, adapter: Path, **weights: object) -> UNetMotionModel:
    """The image model with the motion modules of a folder, read as `from_pretrained` is told by `weights`; raises
    ValueError where they are another model's."""
    modules = MotionAdapter.from_pretrained(adapter, local_files_only=True, **weights)
    return UNetMotionModel.from_unet2d(unet, modules)
