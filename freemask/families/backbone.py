"""What every kind of model has in common: an autoencoder, a text encoder, a noise schedule, and a network to ask.

A family (`unet3d`, `inflated`, `motion`, `wan`) says how its network is asked and where its attention is; `loading`
chooses it. The folder layout is that of a diffusers pipeline (`unet/ vae/ text_encoder/ tokenizer/ scheduler/`, or
`transformer/`). The autoencoder may be `AutoencoderKL` (the posterior's mode is taken, so encoding is deterministic) or
`AutoencoderTiny`.
"""

from __future__ import annotations

import reprlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ..errors import PromptError
from ..words.prompts import word_spans
from .attention import Hook, find_sites, installed
from .devices import free_memory, is_out_of_memory
from .paths import Diffusion, NoisePath
from .sites import Site
from .specs import Inflation, known_backbone, native_size, vae_factor

__all__ = ["Backbone", "per_frame", "signed_pixels"]

CHUNK = 4  # frames that the autoencoder takes at once: at 512² it then needs less than the UNet with three rows


def signed_pixels(frames: np.ndarray) -> Tensor:
    """(f, h, w, 3) uint8 -> (f, 3, h, w) float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1


def per_frame(text: Tensor, frames: int) -> Tensor:
    """(b·f, k, d): text (b, k, d), which all frames share, or (b, f, k, d), a row for each."""
    return text.repeat_interleave(frames, 0) if text.ndim == 3 else rearrange(text, "b f k d -> (b f) k d")


@dataclass(frozen=True)
class Backbone(ABC):
    """A loaded model. Latents are (b, c, f, h, w), scaled, with f latent frames; text is (b, k, d), or (b, f, k, d)
    with a row a frame.

    With `low_vram` a model is on the device only while it computes, and the autoencoder takes a frame at a time, in
    tiles where it is large.
    """

    network: ClassVar[Any]  # diffusers' class of the UNet
    halves: ClassVar[torch.dtype] = torch.float16  # on a GPU

    name: str
    unet: Any  # the network, which may be a transformer
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any
    device: torch.device
    native_frames: int  # latent frames that the network sees at once
    low_vram: bool = False
    inflation: Inflation = field(default_factory=Inflation)

    @property
    def chunk(self) -> int:
        """How many frames the autoencoder takes at once."""
        return 1 if self.low_vram else CHUNK

    @cached_property
    def dtype(self) -> torch.dtype:
        """What the network computes in; the library itself looks through all modules for it, at each call."""
        told: torch.dtype = self.unet.dtype
        return told

    @property
    def vae_factor(self) -> int:
        """How many pixels one latent cell stands for, along a side."""
        return vae_factor(self.vae.config)

    @property
    def time_stride(self) -> int:
        """How many frames one latent frame stands for (`clips.strides`)."""
        return 1

    @cached_property
    def path(self) -> NoisePath:
        """How latents go to noise and back."""
        return Diffusion(self.scheduler)

    @property
    def multiple(self) -> int:
        """Frame sides are multiples of this: the autoencoder's factor times the UNet's downsampling."""
        return self.vae_factor * int(2 ** (len(self.unet.config["block_out_channels"]) - 1))

    @property
    def native_size(self) -> tuple[int, int]:
        """(width, height) in pixels that the model was made for."""
        spec = known_backbone(self.name)
        # a tuned model's config may still hold the size of the one that it was made from, as zeroscope's does
        return spec.size if spec else native_size(self.unet.config, self.vae.config)

    @torch.inference_mode()
    def encode(self, frames: np.ndarray) -> Tensor:
        """(f, h, w, 3) uint8 -> (1, c, f', h', w') float32 scaled latents; deterministic."""

        def run(piece: Tensor) -> Tensor:
            out = self.vae.encode(piece.to(self.device, self.vae.dtype))
            return (out.latent_dist.mode() if hasattr(out, "latent_dist") else out.latents).float()

        latents = self._in_chunks(signed_pixels(frames), run)
        return rearrange(latents, "f c h w -> 1 c f h w") * float(self.vae.config["scaling_factor"])

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> np.ndarray:
        """(1, c, f', h', w') scaled latents -> (f, h, w, 3) uint8, padded frames too."""

        def run(piece: Tensor) -> Tensor:
            drawn = self.vae.decode(piece.to(self.vae.dtype)).sample.float()
            return drawn.clamp(-1, 1).add(1).mul(127.5).round().byte().cpu()

        z = rearrange(latents, "1 c f h w -> f c h w") / float(self.vae.config["scaling_factor"])
        return self._in_chunks(z, run).permute(0, 2, 3, 1).numpy()

    def _in_chunks(self, x: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        """The autoencoder over all frames (f, …), fewer at a time where memory runs out."""
        size = self.chunk
        while True:
            try:
                return torch.cat([run(piece) for piece in torch.split(x, size)])
            except Exception as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
            size //= 2
            free_memory()

    @property
    def text_shape(self) -> tuple[int, int]:
        """(k, d) of a prompt's states: how many tokens the text encoder reads, those that begin and end a prompt
        counted, and the width of what it makes of each."""
        config = self.text_encoder.config
        length = min(self.tokenizer.model_max_length, config.max_position_embeddings)
        return int(length), int(config.hidden_size)

    @torch.inference_mode()
    def text(self, prompts: list[str]) -> Tensor:
        """(n, k, d): the text encoder's states, padded to its length."""
        batch = self.tokenizer(
            prompts, padding="max_length", max_length=self.text_shape[0], truncation=True, return_tensors="pt"
        )
        mask = batch.attention_mask if getattr(self.text_encoder.config, "use_attention_mask", False) else None
        return self.text_encoder(batch.input_ids.to(self.device), attention_mask=mask).last_hidden_state

    def word_tokens(self, prompt: str) -> tuple[tuple[int, ...], ...]:
        """For every word of a prompt, the positions of its tokens. Raises PromptError where a word is beyond what the
        model reads, since nothing of it would reach the model."""
        pieces = self.tokenizer(prompt, return_offsets_mapping=True, truncation=False, verbose=False)
        rows = []
        for start, end in word_spans(prompt):
            spans = enumerate(pieces["offset_mapping"])
            rows.append(tuple(i for i, (a, b) in spans if a < end and b > start and a < b))
        if rows and (not all(rows) or rows[-1][-1] >= self.text_shape[0] - 1):
            marks = self.tokenizer.num_special_tokens_to_add()
            raise PromptError(
                f"The prompt {reprlib.repr(prompt)} is longer than the {self.text_shape[0] - marks} tokens that "
                f"{self.name} reads: shorten it."
            )
        return tuple(rows)

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Every attention site of the network, in the order in which a forward pass meets them."""
        return find_sites(self.unet)

    def keys(self, site: Site, grid: tuple[int, int]) -> int:
        """How many keys a query of a self or cross site has, where latents are (h, w)."""
        h, w = site.grid(grid)
        return self.text_shape[0] if site.kind == "cross" else h * w

    def cross_keys(self, site: Site, text: Tensor) -> Tensor:
        """The keys (n, heads, k, d) of text (n, k, d) at a cross site."""
        attn: Any = self.unet.get_submodule(site.name)
        return rearrange(attn.to_k(text.to(self.dtype)), "n k (heads d) -> n heads k d", heads=attn.heads)

    @abstractmethod
    def asked(self, latents: tuple[int, ...], text: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes in which the network itself gets latents (b, c, f, h, w) and text (b, k, d)."""

    def met(self, site: Site, x: Tensor) -> Tensor:
        """What is said of positions (f, p), for the keys that each frame's queries meet at a self site: (f, keys)."""
        return x

    @contextmanager
    def over(self, frames: int, hooks: Mapping[Site, Hook] | None = None, text: Tensor | None = None) -> Iterator[None]:
        """The UNet as it runs over a clip of so many frames, with hooks at some sites; `text` is what it will be told,
        for a network that has to be changed for it."""
        with installed(self.unet, hooks or {}):
            yield

    @abstractmethod
    def output(self, x: Tensor, t: int | Tensor, text: Tensor) -> Tensor:
        """What the network itself says (b, c, f, h, w) float32 of latents under label `t`, inside `over`."""

    def predict(
        self,
        x: Tensor,
        t: int,
        text: Tensor,
        level: float | None = None,
        hooks: Mapping[Site, Hook] | None = None,
        held: ExitStack | None = None,
    ) -> Tensor:
        """The predicted noise (b, c, f, h, w) float32 for latents under label `t`, with hooks at some sites; of a flow
        its velocity: what the model's `path` steps along.

        `level` is the latents' own ᾱ, which only a v-prediction model needs (default: that of `t`). Whether gradients
        are kept is the caller's choice; what is changed in the network stays so until `held` closes, since a backward
        pass may run parts of it again.
        """
        with ExitStack() as own:
            (held or own).enter_context(self.over(x.shape[2], hooks, text))
            return self.noise(x, self.output(x, t, text), t, level)

    def noise(self, x: Tensor, out: Tensor, t: int, level: float | None) -> Tensor:
        """The noise that the network's output for `x` means; a flow's output is its velocity already."""
        if self.scheduler.config["prediction_type"] == "v_prediction":
            a = float(self.scheduler.alphas_cumprod[t]) if level is None else level
            return a**0.5 * out + (1 - a) ** 0.5 * x.float()
        return out
