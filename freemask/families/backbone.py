"""A text-to-video diffusion model: UNet, autoencoder, text encoder and noise schedule, from a hub id or a folder.

The folder layout is that of a diffusers pipeline (`unet/ vae/ text_encoder/ tokenizer/ scheduler/`), so the
shipped mini backbone and zeroscope go the same way. The autoencoder may be `AutoencoderKL` (the posterior's
mode is taken, so encoding is deterministic) or `AutoencoderTiny`.

Weights that come as a `.bin`, zeroscope's for one, are pickles. diffusers passes `weights_only=True` to `torch.load`
wherever it reads one, shards too, and transformers does by default, which is stated here all the same: a file that
holds anything but tensors is refused before any of it runs.
"""

from __future__ import annotations

import gc
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from accelerate import cpu_offload_with_hook
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet3DConditionModel
from einops import rearrange
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from ..errors import BackboneError, SettingError
from ..validation import refuse_unknown
from ..words.prompts import word_spans
from .specs import NATIVE_FRAMES, backbone_name, backbone_spec, known_backbone, native_size, vae_factor
from .weights import PARTS, choose_weights, fetch

__all__ = [
    "Backbone",
    "default_device",
    "default_dtype",
    "free_memory",
    "is_out_of_memory",
    "named_dtype",
    "signed_pixels",
]

CHUNK = 4  # frames that the autoencoder takes at once: at 512² it then needs less than the UNet with three rows

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_LAYOUT = f"A backbone folder holds {', '.join(p + '/' for p in PARTS)} as diffusers saves a text-to-video pipeline"


def default_device() -> str:
    """ "cuda" or "mps" where there is one, else "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def default_dtype(device: str) -> torch.dtype:
    """float16 on CUDA, float32 elsewhere: CPUs compute halves slowly and MPS not always right."""
    return torch.float16 if device.startswith("cuda") else torch.float32


def named_dtype(name: str, device: str | None = None) -> torch.dtype | None:
    """The precision that a person asked for: "fp16", "bf16" or "fp32"; None, the device's own, for "".

    Raises SettingError for another name, and for fp32 on CUDA, where the UNet's weights would take twice the memory
    for nothing that can be seen. `Backbone.load` itself takes any `torch.dtype`, so that precisions can be compared.
    """
    if not name:
        return None
    refuse_unknown("precision", name, _DTYPES)
    if name == "fp32" and (device or default_device()).startswith("cuda"):
        raise SettingError("fp32 is for machines without a GPU: choose fp16 (the default on CUDA) or bf16.")
    return _DTYPES[name]


def _folder(name: str) -> Path:
    """The pipeline's folder, downloaded where the name is a hub id; BackboneError says what to do."""
    folder = fetch(name)
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise BackboneError(f"{folder} lacks {', '.join(p + '/' for p in missing)}. {_LAYOUT}.")
    return folder


def _weights(folder: Path, part: str) -> dict[str, Any]:
    """The arguments by which `from_pretrained` reads the chosen weights of a part, and no others."""
    weights = choose_weights(part, (path.name for path in (folder / part).iterdir()))
    if weights is None:
        raise BackboneError(f"{folder / part} holds no complete weights, neither .safetensors nor .bin. {_LAYOUT}.")
    return {"use_safetensors": weights.safe, "variant": weights.variant}


def _unpickling(error: BaseException | None) -> pickle.UnpicklingError | None:
    """The refusal of torch's weights-only loader behind an error; diffusers wraps it twice."""
    while error:
        if isinstance(error, pickle.UnpicklingError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _reason(error: pickle.UnpicklingError) -> str:
    """What torch's loader did not take, without its advice to load the file unsafely."""
    lines = str(error).splitlines()
    return next((line.strip(" .") for line in lines if "unsupported" in line.lower()), type(error).__name__)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the host, whichever library says it."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    told = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        reason in told for reason in ("out of memory", "can't allocate memory", "alloc_failed")
    )


def free_memory() -> None:
    """Gives back what nothing uses any more, after an allocation has failed."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _take_turns(device: torch.device, vae: Any, text_encoder: Any, unet: Any) -> None:
    """Each model comes to the device when it is called, and the one that computed before it leaves."""
    if isinstance(vae, AutoencoderKL):
        vae.enable_tiling()
    if device.type == "cpu":
        return
    hooks = [cpu_offload_with_hook(model, device)[1] for model in (vae, text_encoder, unet)]
    for hook, before in zip(hooks, hooks[-1:] + hooks[:-1], strict=True):
        hook.hook.prev_module_hook = before


def signed_pixels(frames: np.ndarray) -> Tensor:
    """(f, h, w, 3) uint8 -> (f, 3, h, w) float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1


@dataclass(frozen=True)
class Backbone:
    """A loaded model. Latents are (b, c, f, h, w), scaled; text is (b, k, d).

    With `low_vram` a model is on the device only while it computes, and the autoencoder takes a frame at a time, in
    tiles where it is large.
    """

    name: str
    unet: UNet3DConditionModel
    vae: AutoencoderKL | AutoencoderTiny
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: DDIMScheduler
    device: torch.device
    native_frames: int = NATIVE_FRAMES  # that the temporal layers were trained on
    low_vram: bool = False

    @classmethod
    def load(
        cls, name: str, device: str | None = None, dtype: torch.dtype | None = None, *, low_vram: bool = False
    ) -> Backbone:
        """From a short name, a hub id or a folder, in `dtype` (float16 on CUDA and float32 elsewhere where left out).

        What is not here yet is downloaded. Raises SettingError for an unknown name, BackboneError saying what is
        missing or refused and what to do.
        """
        device = device or default_device()
        dtype = dtype or default_dtype(device)
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
                unet = load(UNet3DConditionModel, "unet", torch_dtype=dtype, **_weights(folder, "unet"))
                vae = load(getattr(diffusers, kind), "vae", torch_dtype=dtype, **_weights(folder, "vae"))
            finally:
                diffusers.logging.set_verbosity(quiet)
            text = {"dtype": dtype, "weights_only": True} | _weights(folder, "text_encoder")
            text_encoder = load(CLIPTextModel, "text_encoder", **text)
            tokenizer = load(CLIPTokenizer, "tokenizer")
            scheduler = load(DDIMScheduler, "scheduler")
        except BackboneError:
            raise
        except Exception as error:  # the libraries raise many kinds for a bad file
            refused = _unpickling(error)
            if refused:
                raise BackboneError(
                    f"The .bin in {folder}/{part} was refused, and nothing in it was run: it is damaged or holds more "
                    f"than tensors ({_reason(refused)}). Get the weights as .safetensors, from a source you trust."
                ) from error
            raise BackboneError(
                f"{folder}/{part} could not be loaded: {str(error).splitlines()[0]} {_LAYOUT}; save it again."
            ) from error
        at = torch.device(device, torch.cuda.current_device()) if device == "cuda" else torch.device(device)
        for model in (unet, vae, text_encoder):
            model.eval().requires_grad_(False)
            if not low_vram or at.type == "cpu":
                model.to(at)
        if low_vram:
            _take_turns(at, vae, text_encoder, unet)
        frames = backbone_spec(name, folder).frames
        return cls(backbone_name(name), unet, vae, text_encoder, tokenizer, scheduler, at, frames, low_vram)

    @property
    def chunk(self) -> int:
        """How many frames the autoencoder takes at once."""
        return 1 if self.low_vram else CHUNK

    @property
    def vae_factor(self) -> int:
        """How many pixels one latent cell stands for, along a side."""
        return vae_factor(self.vae.config)

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
        """(f, h, w, 3) uint8 -> (1, c, f, h', w') float32 scaled latents; deterministic."""

        def run(piece: Tensor) -> Tensor:
            out = self.vae.encode(piece.to(self.device, self.vae.dtype))
            return (out.latent_dist.mode() if hasattr(out, "latent_dist") else out.latents).float()

        latents = self._in_chunks(signed_pixels(frames), run)
        return rearrange(latents, "f c h w -> 1 c f h w") * float(self.vae.config["scaling_factor"])

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> np.ndarray:
        """(1, c, f, h', w') scaled latents -> (f, h, w, 3) uint8."""

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
        """For every word of a prompt, the positions of its tokens; a word beyond the model's text length
        is an error, because nothing of it would reach the model."""
        pieces = self.tokenizer(prompt, return_offsets_mapping=True, truncation=False, verbose=False)
        rows = []
        for start, end in word_spans(prompt):
            spans = enumerate(pieces["offset_mapping"])
            rows.append(tuple(i for i, (a, b) in spans if a < end and b > start and a < b))
        if rows and (not all(rows) or rows[-1][-1] >= self.text_shape[0] - 1):
            raise BackboneError(
                f"The prompt is longer than the {self.text_shape[0] - 2} tokens that {self.name} reads; shorten it."
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
