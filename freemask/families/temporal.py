"""Temporal attention for image models, as Tune-A-Video adds it (Wu et al. 2022, Sec. 3.2) and FateZero's shape edits
want it (Qi et al. 2023, Sec. 3.3): at the end of every transformer block, each position attends to itself over frames.

    x + to_out(softmax(QKᵀ/√d)·V), with Q, K, V of LayerNorm(x), x (positions, frames, channels)

The output projection starts at zero, so that an untrained layer changes nothing. The layers are children of the UNet's
blocks, `norm_temp` and `attn_temp`, but act only inside `with over_frames(...)`: outside the UNet is a stock one. They
are kept in a folder of their own beside `unet/`, which holds the stock layers alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .specs import TEMPORAL, Tuned

__all__ = ["add_temporal", "load_temporal", "over_frames", "save_temporal", "temporal_blocks"]

_PARTS = ("norm_temp", "attn_temp")
_CONFIG, _WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"


def temporal_blocks(unet: nn.Module) -> tuple[nn.Module, ...]:
    """The transformer blocks that have temporal attention."""
    return tuple(module for module in unet.modules() if hasattr(module, "attn_temp"))


def add_temporal(unet: UNet2DConditionModel, device: str | None = None) -> None:
    """Gives every transformer block temporal attention that changes nothing yet, random but for its output.

    Its heads are those of the block's self-attention, its precision and, where no other is given, its device the
    block's own.
    """
    blocks = [module for module in unet.modules() if isinstance(module, BasicTransformerBlock)]
    for block in blocks:
        own: Any = block.attn1
        like: Tensor = own.to_q.weight
        with torch.device(device or like.device):
            norm = nn.LayerNorm(own.to_q.in_features)
            attn: Any = Attention(own.to_q.in_features, heads=own.heads, dim_head=own.to_q.out_features // own.heads)
        for parameter in attn.to_out[0].parameters():
            nn.init.zeros_(parameter)
        for name, part in zip(_PARTS, (norm, attn), strict=True):
            block.add_module(name, nn.Module.to(part, like.dtype))


@contextmanager
def over_frames(blocks: Sequence[nn.Module], frames: int) -> Iterator[None]:
    """Inside, the temporal attention of some blocks acts on a batch (rows · frames, positions, channels)."""

    def meet(block: Any, _: object, x: Tensor) -> Tensor:
        told = block.norm_temp(rearrange(x, "(b f) p c -> (b p) f c", f=frames))
        return x + rearrange(block.attn_temp(told), "(b p) f c -> (b f) p c", p=x.shape[1])

    handles = [block.register_forward_hook(meet) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def save_temporal(unet: UNet2DConditionModel, folder: Path, tuned: Tuned) -> None:
    """Takes the temporal attention out of a UNet and saves it in a pipeline's folder, in halves."""
    state = {name: value.half() for name, value in unet.state_dict().items() if set(_PARTS) & set(name.split("."))}
    for block in temporal_blocks(unet):
        for name in _PARTS:
            delattr(block, name)
    (folder / TEMPORAL).mkdir(exist_ok=True)
    save_file({name: value.contiguous().cpu() for name, value in state.items()}, folder / TEMPORAL / _WEIGHTS)
    (folder / TEMPORAL / _CONFIG).write_text(json.dumps(asdict(tuned), indent=2) + "\n")


def load_temporal(unet: UNet2DConditionModel, folder: Path) -> None:
    """Gives a UNet the temporal attention in a pipeline's folder; raises an error of torch where it is another's."""
    like = next(unet.parameters())
    state = {name: value.to(like) for name, value in load_file(folder / TEMPORAL / _WEIGHTS).items()}
    add_temporal(unet, "meta")
    wanted = [name for name, value in unet.state_dict().items() if value.is_meta]
    if sorted(wanted) != sorted(state):
        raise ValueError(f"its layers are not those of {folder.name}/unet.")
    unet.load_state_dict(state, strict=False, assign=True)
