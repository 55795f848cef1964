"""The parts of a toy backbone before any training, and its folder after: for mini the classes that zeroscope uses, for
mini-sd Stable Diffusion's, which differ in the UNet alone, for mini-motion AnimateDiff's motion modules beside it, and
for mini-wan Wan's transformer, with the same words and autoencoder.

- The autoencoder's **encoder is a principal component analysis** of image patches, written into the
  convolutions of a stock `AutoencoderTiny`. It needs no training, so the latents are fixed from the first
  second; only the decoder learns, and it may go on learning while or after the UNet does.
- Components are scaled to the square root of their spread: whitening them fully would make the noise
  of the fine ones the main thing to predict, leaving them alone would drown shapes.
- Words do not mix in the text encoder (a `CLIPTextModel` with embeddings and final norm, no layer), so a
  word's attention map is that word's alone.
- Temporal layers start as the identity: their output projections are zero.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    MotionAdapter,
    UNet2DConditionModel,
    UNet3DConditionModel,
    UNetMotionModel,
    WanTransformer3DModel,
)
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from einops import rearrange
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..errors import SettingError
from ..families.attention import UNet
from ..families.weights import forget_origin
from ..validation import refuse_unknown
from .scenes import render, sample_scene, vocabulary

__all__ = [
    "FAMILIES",
    "SHIFT",
    "Recipe",
    "encoded",
    "export",
    "load_tokenizer",
    "load_vae",
    "new_autoencoder",
    "new_scheduler",
    "new_text_encoder",
    "new_unet",
    "read_checkpoint",
    "token_ids",
]


FAMILIES = ("unet3d", "inflated", "motion", "wan")
SHIFT = 2.0  # of a flow's noise levels: σ becomes s·σ/(1 + (s−1)·σ); Wan has 3 for larger pictures
LARGE = 128  # pixels, from which side on frames are made of patches of 8 pixels


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is trained: the family of the network, and sizes of the pictures, the latents and the networks."""

    family: str = "unet3d"
    size: int = 128
    factor: int = 8
    latent_channels: int = 16
    channels: tuple[int, ...] = (48, 96, 128, 128)
    text_width: int = 96
    head_dim: int = 16
    patch: int = 2  # these five are a transformer's
    blocks: int = 6
    heads: int = 6
    head_width: int = 32
    feed_forward: int = 512
    decoder_width: int = 64
    decoder_blocks: tuple[int, ...] = (5, 4, 2, 0)
    scenes: int = 24_000
    pairs: bool = False  # whether a third of the scenes have two objects
    frames: int = 8

    @classmethod
    def of(cls, size: int, family: str = FAMILIES[0]) -> Recipe:
        """What suits frames of a size: mini's and mini-sd's recipe, or smaller patches below 128 pixels."""
        refuse_unknown("family", family, FAMILIES)
        if size >= LARGE:
            return cls(size=size, family=family)
        blocks = (6, 3, 0)
        return cls(size=size, family=family, factor=4, latent_channels=8, decoder_width=32, decoder_blocks=blocks)


def new_scheduler(family: str = FAMILIES[0]) -> Any:
    """zeroscope's noise schedule, or of a transformer the flow's with the shift of small pictures."""
    if family == "wan":
        return FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def load_tokenizer(run: Path) -> CLIPTokenizer:
    """The run's tokenizer, made on the first call and kept: two makings may number tokens differently."""
    folder = run / "tokenizer"
    if not (folder / "vocab.json").exists():
        _make_tokenizer(folder)
    return CLIPTokenizer.from_pretrained(folder, model_max_length=24)


def _make_tokenizer(folder: Path) -> None:
    """Writes a `CLIPTokenizer` whose merges make every word of the toy world one token.

    Bytes stay in the vocabulary, so any other word still has tokens: several, and untrained.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    letters = "abcdefghijklmnopqrstuvwxyz"
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=1,
        end_of_word_suffix="</w>",
        initial_alphabet=list(letters),
        show_progress=False,
    )
    bpe.train_from_iterator([" ".join(vocabulary())], trainer)
    learned = json.loads(bpe.to_str())["model"]
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    alphabet = list(bytes_to_unicode().values())
    tokens = alphabet + [a + "</w>" for a in alphabet]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learned["merges"]]
    tokens += [t for t in dict.fromkeys(a + b for a, b in merges) if t not in tokens]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    lines = ["#version: 0.2"] + [" ".join(m) for m in merges]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")


def _patches(frames: Tensor, factor: int) -> Tensor:
    """(n, 3, H, W) -> (n·h·w, 3·factor²), channels ordered as the encoder's stride-2 convolutions do."""
    x = frames
    while factor > 1:
        x = rearrange(x, "n c (h a) (w b) -> n (c a b) h w", a=2, b=2)
        factor //= 2
    return rearrange(x, "n c h w -> (n h w) c")


def encoded(vae: AutoencoderTiny, frames: np.ndarray) -> Tensor:
    """(f, c, h, w) float32 scaled latents of (f, H, W, 3) uint8: what the autoencoder's convolutions compute, as the
    one matrix that they are, in a hundredth of the time."""
    last = [m for m in vae.encoder.layers if isinstance(m, nn.Conv2d)][-1]
    factor = math.isqrt(last.in_channels // 3)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    h, w = (side // factor for side in pixels.shape[2:])
    z = F.linear(_patches(pixels, factor), last.weight[:, :, 1, 1], last.bias) * vae.config.scaling_factor
    return rearrange(z, "(f h w) c -> f c h w", h=h, w=w)


def new_autoencoder(recipe: Recipe) -> AutoencoderTiny:
    """An `AutoencoderTiny` of the recipe's shape, untrained.

    The decoder begins as mid-grey plus a little, its residual blocks as the identity.
    """
    levels = recipe.factor.bit_length()
    torch.manual_seed(0)
    vae = AutoencoderTiny(
        latent_channels=recipe.latent_channels,
        encoder_block_out_channels=(3 * recipe.factor**2,) * levels,
        num_encoder_blocks=(0,) * levels,
        decoder_block_out_channels=(recipe.decoder_width,) * levels,
        num_decoder_blocks=recipe.decoder_blocks,
        scaling_factor=2.0,
    )
    for module in vae.decoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    for module in vae.decoder.layers:
        if isinstance(module, AutoencoderTinyBlock):
            nn.init.zeros_(module.conv[-1].weight)
            nn.init.zeros_(module.conv[-1].bias)
    with torch.no_grad():
        vae.decoder.layers[-1].weight.mul_(0.1)
        vae.decoder.layers[-1].bias.fill_(0.5)
    return vae


@torch.no_grad()
def _new_vae(recipe: Recipe) -> AutoencoderTiny:
    """An `AutoencoderTiny` whose encoder computes the leading principal components of patches."""
    vae = new_autoencoder(recipe)
    scenes = [render(sample_scene(seed), recipe.size, frames=2).frames for seed in range(1500)]
    pixels = torch.from_numpy(np.concatenate(scenes)).permute(0, 3, 1, 2).float() / 255
    patches = _patches(pixels, recipe.factor)
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((patches - mean).T))
    spread = values.flip(0)[: recipe.latent_channels].clamp_min(1e-12).sqrt()
    basis = vectors.flip(1)[:, : recipe.latent_channels].T / spread[:, None].sqrt()
    basis = basis * (0.5 / spread.mean().sqrt())  # a spread of 1 after scaling_factor, on the average
    *convs, last = (m for m in vae.encoder.layers if isinstance(m, nn.Conv2d))
    for parameter in vae.encoder.parameters():
        parameter.zero_()
    for c in range(3):
        convs[0].weight[c, c, 1, 1] = 1
    for level, conv in enumerate(convs[1:]):
        for c in range(3 * 4**level):
            for a in range(2):
                for b in range(2):
                    conv.weight[c * 4 + a * 2 + b, c, 1 + a, 1 + b] = 1
    last.weight[:, :, 1, 1] = basis
    last.bias = nn.Parameter(-basis @ mean)
    return vae


def _new_transformer(recipe: Recipe) -> WanTransformer3DModel:
    """A Wan transformer, random, which says that nothing moves: its last layer is zero."""
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        patch_size=(1, recipe.patch, recipe.patch),
        num_attention_heads=recipe.heads,
        attention_head_dim=recipe.head_width,
        in_channels=recipe.latent_channels,
        out_channels=recipe.latent_channels,
        text_dim=recipe.text_width,
        freq_dim=64,
        ffn_dim=recipe.feed_forward,
        num_layers=recipe.blocks,
        rope_max_seq_len=64,
    )
    nn.init.zeros_(transformer.proj_out.weight)
    nn.init.zeros_(transformer.proj_out.bias)
    return transformer


def new_unet(recipe: Recipe) -> Any:
    """The family's network, random; as an image model's attention_head_dim counts heads, it is given their number.
    Motion modules change nothing yet."""
    if recipe.family == "wan":
        return _new_transformer(recipe)
    if recipe.family == "motion":
        image_unet = new_unet(replace(recipe, family="inflated"))
        modules = MotionAdapter(
            block_out_channels=recipe.channels,
            motion_layers_per_block=1,
            motion_num_attention_heads=4,
            motion_norm_num_groups=16,
        )
        return UNetMotionModel.from_unet2d(image_unet, modules)
    depth = len(recipe.channels) - 1
    image = recipe.family == "inflated"
    ending = "2D" if image else "3D"
    heads: Any = tuple(channels // recipe.head_dim for channels in recipe.channels) if image else recipe.head_dim
    torch.manual_seed(0)
    unet: UNet = (UNet2DConditionModel if image else UNet3DConditionModel)(
        sample_size=recipe.size // recipe.factor,
        in_channels=recipe.latent_channels,
        out_channels=recipe.latent_channels,
        block_out_channels=recipe.channels,
        down_block_types=(f"CrossAttnDownBlock{ending}",) * depth + (f"DownBlock{ending}",),
        up_block_types=(f"UpBlock{ending}",) + (f"CrossAttnUpBlock{ending}",) * depth,
        layers_per_block=1,
        norm_num_groups=16,
        cross_attention_dim=recipe.text_width,
        attention_head_dim=heads,
    )
    for name, module in unet.named_modules():
        if name.endswith("proj_out") and ("temp_attentions" in name or "transformer_in" in name):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return unet


def new_text_encoder(recipe: Recipe, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.text_width,
        intermediate_size=recipe.text_width,
        num_hidden_layers=0,
        num_attention_heads=4,
        max_position_embeddings=24,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    return CLIPTextModel(config)


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    return tokenizer(captions, padding="max_length", max_length=24, truncation=True, return_tensors="pt").input_ids


def load_vae(run: Path, recipe: Recipe) -> AutoencoderTiny:
    """The run's autoencoder, made on the first call."""
    if not (run / "vae").exists():
        _new_vae(recipe).save_pretrained(run / "vae")
    return AutoencoderTiny.from_pretrained(run / "vae").eval()


def read_checkpoint(path: Path, recipe: Recipe, device: str = "cpu") -> dict[str, Any]:
    """What a stage of training left; raises SettingError where that is of another family, whose layers have the same
    names."""
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    if (family := state.get("family", FAMILIES[0])) != recipe.family:
        raise SettingError(f"{path} is of the family {family}, and {recipe.family} is asked: name that family.")
    return state


def export(run: Path, recipe: Recipe, out: Path) -> None:
    """Saves the newest averaged weights as a pipeline folder: fp16 safetensors in the layout of the family's
    pipelines, or of motion modules as the folder of a `MotionAdapter`. Raises SettingError where there are none, or
    where they are of another family."""
    stages = [run / f"unet-{stage}.pt" for stage in ("clips", "frames")]
    newest = next((path for path in stages if path.exists()), None)
    if newest is None:
        raise SettingError(f"{run} holds neither unet-clips.pt nor unet-frames.pt: train a stage first.")
    average = read_checkpoint(newest, recipe)["average"]
    tokenizer = load_tokenizer(run)
    if recipe.family == "motion":
        modules = new_unet(recipe)
        modules.load_state_dict({name[5:]: value for name, value in average.items() if name.startswith("unet.")})
        modules.half().save_motion_modules(out)
        return
    shutil.copytree(run / "tokenizer", out / "tokenizer", dirs_exist_ok=True)
    tokenizer.save_pretrained(out / "tokenizer")
    unet, text = new_unet(recipe), new_text_encoder(recipe, tokenizer)
    model = nn.ModuleDict({"unet": unet, "text": text})
    model.load_state_dict(average, strict=False)
    wan = recipe.family == "wan"
    network = "transformer" if wan else "unet"
    unet.half().save_pretrained(out / network)
    text.half().save_pretrained(out / "text_encoder")
    load_vae(run, recipe).half().save_pretrained(out / "vae")
    scheduler = new_scheduler(recipe.family)
    scheduler.save_pretrained(out / "scheduler")
    image = recipe.family == "inflated"
    index: dict[str, Any] = {
        "_class_name": "WanPipeline" if wan else "StableDiffusionPipeline" if image else "TextToVideoSDPipeline",
        "scheduler": ["diffusers", type(scheduler).__name__],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        network: ["diffusers", type(unet).__name__],
        "vae": ["diffusers", "AutoencoderTiny"],
    }
    if wan:  # whose configs tell neither; names with a line before them are no parts
        index |= {"_frame_size": [recipe.size, recipe.size], "_frames": recipe.frames}
    if image:  # parts that the pipeline has and may do without
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
    forget_origin(out)
    captions = run / "captions.json"  # of what it learned from
    known = {word for one in json.loads(captions.read_text()) for word in one.split()} if captions.exists() else None
    (out / "vocabulary.json").write_text(json.dumps(sorted(known or vocabulary())) + "\n")
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
