"""Video transformers that follow a flow: Wan 2.1 (Wan Team 2025), a `WanTransformer3DModel`.

Every block has self-attention over space and time at once (`attn1`, with normed and rotated queries and keys) and
cross-attention to the text (`attn2`), so that there is a mask in every block. A patch is one latent frame of p × p
cells, and so a site's grid is the latents', halved by the patch. Hooks get cross-attention frame by frame, as from a
UNet, and self-attention with the positions of all frames in one row. The text encoder is UMT5, whose states after the
prompt's end are zero, or a CLIP without layers. Latents are Wan's own autoencoder's, one latent frame for the first
frame and one for every four after it, normed by channel, or those of an `AutoencoderTiny`, frame by frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from einops import rearrange
from torch import Tensor
from transformers import CLIPTextModel

from ..clips.strides import padded
from ..errors import BackboneError
from .attention import Hook, processed
from .backbone import Backbone, signed_pixels
from .flow import Flow
from .paths import NoisePath
from .sites import Site
from .specs import TIME_STRIDE, WAN_SIZE, backbone_spec

__all__ = ["Wan", "refuse_other_layouts"]

TEXT = 512  # tokens at most that Wan's transformers are given


def refuse_other_layouts(config: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
    """Raises BackboneError for a pipeline of these classes that FreeMask cannot edit with: by the transformer's config,
    and by what `model_index.json` says of its parts."""
    if parts.get("transformer_2", [None])[0] or parts.get("boundary_ratio") is not None:
        raise BackboneError("Wan 2.2's two experts are not supported: take Wan 2.1's text-to-video model.")
    if config.get("added_kv_proj_dim") or config.get("image_dim") or config["in_channels"] != config["out_channels"]:
        raise BackboneError("Image-to-video transformers are not supported: take a text-to-video model.")
    if config["in_channels"] > 16:
        raise BackboneError("Latents of 48 channels, as Wan 2.2's 5B has them, are not supported: take Wan 2.1's.")
    if config.get("num_layers", 40) > 30:
        raise BackboneError("Wan's 14B has never been run here, and is not supported: take the model of 1.3B.")
    time, high, wide = config["patch_size"]
    if time != 1 or high != wide or high & (high - 1):
        raise BackboneError(
            f"Patches of {time}x{high}x{wide} are not supported: one latent frame, and sides 1, 2 or 4."
        )


class _Processor:
    """Wan's attention with a hook in the place of scaled dot-product attention."""

    def __init__(self, site: Site, hook: Hook, frames: int) -> None:
        self.site, self.hook, self.frames = site, hook, frames

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        assert attn.add_k_proj is None and not attn.fused_projections and attention_mask is None, self.site.name
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        each = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(context)), attn.to_v(context)
        q, k, v = (rearrange(x, "b s (heads d) -> b heads s d", heads=attn.heads) for x in each)
        if rotary_emb is not None:
            q, k = _rotated(q, *rotary_emb), _rotated(k, *rotary_emb)
        if self.site.kind == "cross":
            q = rearrange(q, "b heads (f p) d -> (b f) heads p d", f=self.frames)
            k, v = (x.repeat_interleave(self.frames, 0) for x in (k, v))
        out = self.hook(self.site, q, k, v).to(q.dtype)
        if self.site.kind == "cross":
            out = rearrange(out, "(b f) heads p d -> b heads (f p) d", f=self.frames)
        return attn.to_out[1](attn.to_out[0](rearrange(out, "b heads s d -> b s (heads d)")))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021) of x (b, heads, s, d) by the transformer's tables (1, s, 1, d)."""
    cos, sin = cos[..., 0::2].transpose(1, 2), sin[..., 1::2].transpose(1, 2)
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)


@dataclass(frozen=True)
class Wan(Backbone):
    """The network sees all frames together, in space and time at once."""

    network = WanTransformer3DModel
    halves = torch.bfloat16

    @property
    def time_stride(self) -> int:
        return TIME_STRIDE if isinstance(self.vae, AutoencoderKLWan) else 1

    @cached_property
    def path(self) -> NoisePath:
        """The flow of the pipeline's scheduler, by its shift."""
        config = self.scheduler.config
        return Flow(float(config.get("flow_shift") or config.get("shift") or 1.0))

    @property
    def native_size(self) -> tuple[int, int]:
        try:
            return backbone_spec(self.name).size
        except BackboneError:  # an unlisted hub id, whose folder the name does not tell
            return WAN_SIZE

    @property
    def patch(self) -> int:
        """How many latent cells a position stands for, along a side."""
        return int(self.unet.config["patch_size"][-1])

    @property
    def multiple(self) -> int:
        return self.vae_factor * self.patch

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        level = self.patch.bit_length() - 1
        found = []
        for i in range(len(self.unet.blocks)):
            found += [Site(f"blocks.{i}.attn1", "self", level, True), Site(f"blocks.{i}.attn2", "cross", level)]
        return tuple(found)

    @torch.inference_mode()
    def encode(self, frames: np.ndarray) -> Tensor:
        if self.time_stride == 1:
            return super().encode(frames)
        x = rearrange(signed_pixels(padded(frames, self.time_stride)), "f c h w -> 1 c f h w")
        z = self.vae.encode(x.to(self.device, self.vae.dtype)).latent_dist.mode().float()
        mean, std = self._norm(z)
        return (z - mean) / std

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> np.ndarray:
        if self.time_stride == 1:
            return super().decode(latents)
        mean, std = self._norm(latents)
        drawn = self.vae.decode((latents * std + mean).to(self.vae.dtype)).sample[0].float()
        pixels = drawn.clamp(-1, 1).add(1).mul(127.5).round().byte().cpu()
        return rearrange(pixels, "c f h w -> f h w c").numpy()

    def _norm(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and spread of each channel of the autoencoder's own latents: (1, c, 1, 1, 1)."""
        mean, std = (torch.tensor(self.vae.config[name]).to(like) for name in ("latents_mean", "latents_std"))
        return mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1)

    @property
    def text_shape(self) -> tuple[int, int]:
        if isinstance(self.text_encoder, CLIPTextModel):
            return super().text_shape
        return min(self.tokenizer.model_max_length, TEXT), int(self.text_encoder.config.d_model)

    @torch.inference_mode()
    def text(self, prompts: list[str]) -> Tensor:
        if isinstance(self.text_encoder, CLIPTextModel):
            return super().text(prompts)
        length = self.text_shape[0]
        batch = self.tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        at = self.text_encoder.device  # which may be the host, beside a GPU with little memory
        ids, mask = batch.input_ids, batch.attention_mask
        states = self.text_encoder(ids.to(at), attention_mask=mask.to(at)).last_hidden_state.to(self.device)
        return states * mask[..., None].to(states)

    def cross_keys(self, site: Site, text: Tensor) -> Tensor:
        attn = self.unet.get_submodule(site.name)
        told = self.unet.condition_embedder.text_embedder(text.to(self.dtype))
        return rearrange(attn.norm_k(attn.to_k(told)), "n k (heads d) -> n heads k d", heads=attn.heads)

    def asked(self, latents: tuple[int, ...], text: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return latents, text

    @contextmanager
    def over(self, frames: int, hooks: Mapping[Site, Hook] | None = None, text: Tensor | None = None) -> Iterator[None]:
        with processed(self.unet, {site.name: _Processor(site, hook, frames) for site, hook in (hooks or {}).items()}):
            yield

    def output(self, x: Tensor, t: int | Tensor, text: Tensor) -> Tensor:
        dtype = self.dtype
        label = torch.as_tensor(t, device=x.device).expand(len(x))
        return self.unet(x.to(dtype), label, text.to(dtype)).sample.float()

    def noise(self, x: Tensor, out: Tensor, t: int, level: float | None) -> Tensor:
        return out
