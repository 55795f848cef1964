"""A text-to-video diffusion model: UNet, autoencoder, text encoder and noise schedule, from a hub id or a folder.

The folder layout is that of a diffusers pipeline (`unet/ vae/ text_encoder/ tokenizer/ scheduler/`), so the
shipped mini backbone and zeroscope go the same way. The autoencoder may be `AutoencoderKL` (the posterior's
mode is taken, so encoding is deterministic) or `AutoencoderTiny`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet3DConditionModel
from einops import rearrange
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from .errors import BackboneError
from .presets import backbone_folder
from .prompts import word_spans

__all__ = ["Backbone", "default_device", "signed_pixels"]

_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_LAYOUT = f"A backbone folder holds {', '.join(p + '/' for p in _PARTS)} as diffusers saves a text-to-video pipeline"


def default_device() -> str:
    """ "cuda" or "mps" where there is one, else "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _dtype_for(device: str) -> torch.dtype:
    """float16 on CUDA, float32 elsewhere: CPUs compute halves slowly and MPS not always right."""
    return torch.float16 if device.startswith("cuda") else torch.float32


def _folder(name: str) -> Path:
    """The pipeline's folder, downloaded where the name is a hub id; BackboneError says what to do."""
    folder = backbone_folder(name)
    if folder is None:
        from huggingface_hub import snapshot_download

        patterns = [f"{part}/*" for part in _PARTS] + ["model_index.json"]
        try:
            folder = Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=["*.fp16.*", "*.onnx"]))
        except Exception as error:  # the hub's client raises many kinds: no network, no such model, no access
            raise BackboneError(
                f"The backbone {name!r} could not be fetched ({type(error).__name__}). Check the name and the "
                "network, or give the path of a folder that holds it."
            ) from error
    missing = [part for part in _PARTS if not (folder / part).is_dir()]
    if missing:
        raise BackboneError(f"{folder} lacks {', '.join(p + '/' for p in missing)}. {_LAYOUT}.")
    return folder


def signed_pixels(frames: np.ndarray) -> Tensor:
    """(f, h, w, 3) uint8 -> (f, 3, h, w) float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1


@dataclass(frozen=True)
class Backbone:
    """A loaded model. Latents are (b, c, f, h, w), scaled; text is (b, k, d)."""

    name: str
    unet: UNet3DConditionModel
    vae: AutoencoderKL | AutoencoderTiny
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: DDIMScheduler
    device: torch.device
    native_frames: int = 24  # that the temporal layers were trained on

    @classmethod
    def load(cls, name: str, device: str | None = None, dtype: torch.dtype | None = None) -> Backbone:
        """From "mini", a hub id or a folder; raises BackboneError saying what is missing and what to do."""
        device = device or default_device()
        dtype = dtype or _dtype_for(device)
        folder = _folder(name)
        part = "?"

        def load(part_class: Any, part_name: str, **kwargs: Any) -> Any:
            nonlocal part
            part = part_name
            return part_class.from_pretrained(folder / part_name, local_files_only=True, **kwargs)

        try:
            kind = json.loads((folder / "vae" / "config.json").read_text())["_class_name"]
            if kind not in ("AutoencoderKL", "AutoencoderTiny"):
                raise BackboneError(f"{folder}/vae is a {kind}; AutoencoderKL and AutoencoderTiny are supported.")
            quiet = diffusers.logging.get_verbosity()
            diffusers.logging.set_verbosity_error()
            transformers.utils.logging.disable_progress_bar()
            try:
                unet = load(UNet3DConditionModel, "unet", torch_dtype=dtype)
                vae = load(getattr(diffusers, kind), "vae", torch_dtype=dtype)
            finally:
                diffusers.logging.set_verbosity(quiet)
            text_encoder = load(CLIPTextModel, "text_encoder", dtype=dtype)
            tokenizer = load(CLIPTokenizer, "tokenizer")
            scheduler = load(DDIMScheduler, "scheduler")
        except BackboneError:
            raise
        except Exception as error:  # the libraries raise many kinds for a bad file
            raise BackboneError(
                f"{folder}/{part} could not be loaded: {str(error).splitlines()[0]} {_LAYOUT}; save it again."
            ) from error
        for model in (unet, vae, text_encoder):
            model.eval().requires_grad_(False).to(device)
        return cls(name, unet, vae, text_encoder, tokenizer, scheduler, torch.device(device))

    @property
    def vae_factor(self) -> int:
        """How many pixels one latent cell stands for, along a side."""
        config: Any = self.vae.config
        channels = config.get("block_out_channels") if isinstance(self.vae, AutoencoderKL) else None
        return int(2 ** (len(channels or config["encoder_block_out_channels"]) - 1))

    @property
    def multiple(self) -> int:
        """Frame sides are multiples of this: the autoencoder's factor times the UNet's downsampling."""
        return self.vae_factor * int(2 ** (len(self.unet.config["block_out_channels"]) - 1))

    @property
    def native_size(self) -> tuple[int, int]:
        """(width, height) in pixels that the model was made for."""
        sample: Any = self.unet.config["sample_size"]
        h, w = (sample, sample) if isinstance(sample, int) else sample
        return int(w) * self.vae_factor, int(h) * self.vae_factor

    @torch.inference_mode()
    def encode(self, frames: np.ndarray, chunk: int = 8) -> Tensor:
        """(f, h, w, 3) uint8 -> (1, c, f, h', w') float32 scaled latents; deterministic."""
        x = signed_pixels(frames)
        parts = []
        for piece in torch.split(x, chunk):
            out = self.vae.encode(piece.to(self.device, self.vae.dtype))
            parts.append((out.latent_dist.mode() if hasattr(out, "latent_dist") else out.latents).float())
        return rearrange(torch.cat(parts), "f c h w -> 1 c f h w") * float(self.vae.config["scaling_factor"])

    @torch.inference_mode()
    def decode(self, latents: Tensor, chunk: int = 4) -> np.ndarray:
        """(1, c, f, h', w') scaled latents -> (f, h, w, 3) uint8."""
        z = rearrange(latents, "1 c f h w -> f c h w") / float(self.vae.config["scaling_factor"])
        parts = [self.vae.decode(piece.to(self.vae.dtype)).sample.float().cpu() for piece in torch.split(z, chunk)]
        pixels = torch.cat(parts).clamp(-1, 1).add(1).mul(127.5).round().byte()
        return pixels.permute(0, 2, 3, 1).numpy()

    @property
    def _text_length(self) -> int:
        return int(min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings))

    @torch.inference_mode()
    def text(self, prompts: list[str]) -> Tensor:
        """(n, k, d): the text encoder's states, padded to its length."""
        batch = self.tokenizer(
            prompts, padding="max_length", max_length=self._text_length, truncation=True, return_tensors="pt"
        )
        mask = batch.attention_mask if getattr(self.text_encoder.config, "use_attention_mask", False) else None
        return self.text_encoder(batch.input_ids.to(self.device), attention_mask=mask).last_hidden_state

    def word_tokens(self, prompt: str) -> tuple[tuple[int, ...], ...]:
        """For every word of a prompt, the positions of its tokens; a word beyond the model's text length
        is an error, because nothing of it would reach the model."""
        pieces = self.tokenizer(prompt, return_offsets_mapping=True, truncation=False)
        rows = []
        for start, end in word_spans(prompt):
            spans = enumerate(pieces["offset_mapping"])
            rows.append(tuple(i for i, (a, b) in spans if a < end and b > start and a < b))
        if rows and (not all(rows) or rows[-1][-1] >= self._text_length - 1):
            raise BackboneError(
                f"The prompt is longer than the {self._text_length - 2} tokens that {self.name} reads; shorten it."
            )
        return tuple(rows)

    @torch.inference_mode()
    def eps(self, x: Tensor, t: int, text: Tensor, level: float | None = None) -> Tensor:
        """The predicted noise (b, c, f, h, w) float32 for latents under label `t`.

        `level` is the latents' own ᾱ, which only a v-prediction model needs (default: that of `t`).
        """
        out = self.unet(x.to(self.unet.dtype), t, encoder_hidden_states=text.to(self.unet.dtype)).sample.float()
        if self.scheduler.config["prediction_type"] == "v_prediction":
            a = float(self.scheduler.alphas_cumprod[t]) if level is None else level
            out = a**0.5 * out + (1 - a) ** 0.5 * x.float()
        return out
