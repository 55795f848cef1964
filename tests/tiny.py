"""Makers of tiny random models and moving clips."""

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DConditionModel,
    UNet3DConditionModel,
    UNetMotionModel,
    WanTransformer3DModel,
)
from safetensors.torch import load_file
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

from freemask.clips.video import Clip, write_clip
from freemask.families.ddim import CLEAN
from freemask.families.sites import Site
from freemask.masks.trace import SoftMap, Trace


def close(a: torch.Tensor, b: torch.Tensor, relative: float = 1e-4) -> bool:
    """Whether they differ by rounding alone: by that share of the largest value of b at most."""
    return float((a - b).abs().max()) <= relative * float(b.abs().max())


def write_disc(path: Path, *, frames: int = 12, fps: float = 8.0) -> Path:
    """A video of a red disc that crosses a green field of 64 × 64."""
    video = np.full((frames, 64, 64, 3), (60, 140, 60), np.uint8)
    for i, frame in enumerate(video):
        cv2.circle(frame, (16 + 3 * i, 32), 12, (200, 40, 40), -1)
    write_clip(path, Clip(video, fps))
    return path


def write_noise(path: Path) -> Path:
    """A video of coloured noise in 64 × 64, which is nothing like the toy world."""
    write_clip(path, Clip(np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), np.uint8), 8.0))
    return path


def tiny_unet(levels: int = 2) -> UNet3DConditionModel:
    """A random text-to-video UNet with so many grids: /1, /2 and so on."""
    return _tiny(UNet3DConditionModel, "3D", levels, attention_head_dim=8)


def tiny_image_unet(levels: int = 2) -> UNet2DConditionModel:
    """A random image UNet of the same shape."""
    return _tiny(UNet2DConditionModel, "2D", levels, attention_head_dim=(2, 4, 4)[:levels])


def tiny_motion_unet(levels: int = 2) -> UNetMotionModel:
    """A random image UNet of the same shape with motion modules."""
    heads = {"num_attention_heads": (2, 4, 4)[:levels], "motion_num_attention_heads": 2}
    return _tiny(UNetMotionModel, "Motion", levels, **heads)


def _tiny(kind: Any, ending: str, levels: int, **heads: Any) -> Any:
    torch.manual_seed(0)
    unet = kind(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32, 32)[:levels],
        down_block_types=(*(f"CrossAttnDownBlock{ending}",) * (levels - 1), f"DownBlock{ending}"),
        up_block_types=(f"UpBlock{ending}", *(f"CrossAttnUpBlock{ending}",) * (levels - 1)),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=24,
        **heads,
    )
    for parameter in unet.parameters():  # the library zeroes some layers, which would hide what passes them
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    for name, module in unet.named_modules():
        if name.endswith(("attn1.to_q", "attn2.to_q")):  # sharp maps, so that masks are neither full nor empty
            module.weight.data *= 5
    return unet


def tiny_wan(folder: Path, *, patch: int = 2) -> Path:
    """Saves a random pipeline of Wan's kind and layout: three blocks, Wan's own autoencoder with its strides of 8 and
    4, and UMT5 with a tokenizer that knows the words of a few prompts."""
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        patch_size=(1, patch, patch),
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=3,
        rope_max_seq_len=32,
    )
    for block in transformer.blocks:  # sharp maps, so that masks are neither full nor empty
        block.attn2.norm_q.weight.data *= 5
        block.scale_shift_table.data[:, [2, 5]] = 1.0  # gates, which begin near 0 and would hide what passes them
    vae = AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    words = "a red blue green car bus dog on in the grass snow beach driving is moving watercolor painting of".split()
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), *((f"▁{word}", -2.0) for word in words)]
    letters = [(letter, -6.0) for letter in "▁abcdefghijklmnopqrstuvwxyz"]
    tokenizer = T5Tokenizer(vocab=[*pieces, *letters], extra_ids=0, model_max_length=32)
    config = UMT5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, tie_word_embeddings=False
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    models = {"transformer": transformer, "vae": vae, "text_encoder": UMT5EncoderModel(config), "scheduler": scheduler}
    for part, model in (models | {"tokenizer": tokenizer}).items():
        model.save_pretrained(folder / part)
    index = {"_class_name": "WanPipeline", "transformer_2": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def save_pipeline(folder: Path, backbone: Any, unet: Any) -> Path:
    """Saves a random pipeline in zeroscope's layout: this network, a tiny backbone's text encoder and tokenizer, and an
    AutoencoderKL."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=4,
    )
    parts = {"vae": vae, "unet": unet, "text_encoder": backbone.text_encoder, "tokenizer": backbone.tokenizer}
    for part, model in (parts | {"scheduler": tiny_scheduler()}).items():
        model.save_pretrained(folder / part)
    return folder


def tiny_scheduler(**changes: object) -> DDIMScheduler:
    values = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    return DDIMScheduler(**(values | changes))


def drawn_trace(maps: dict[tuple[int, Site], np.ndarray], grid: tuple[int, int]) -> Trace:
    """The trace of the prompt "car" that has these maps (f, h, w) float32 of it, on frames of four times the grid."""
    frames = len(next(iter(maps.values())))
    clip = Clip(np.zeros((frames, 4 * grid[0], 4 * grid[1], 3), np.uint8), 8.0)
    ts, sites = sorted({t for t, _ in maps}), dict.fromkeys(site for _, site in maps)
    packed = {(t, site.name): SoftMap.pack(soft[None]) for (t, site), soft in maps.items()}
    return Trace(clip, "car", tuple(ts), tuple(sites), ((0,),), {CLEAN: torch.zeros(1, 4, frames, *grid)}, packed)


def to_bins(pipeline: Path, copy: Path, *, sharded: bool = False) -> Path:
    """A copy of a pipeline whose weights are .bin files, whole or in two shards, as older repositories hold them."""
    shutil.copytree(pipeline, copy)
    for part in ("unet", "vae", "text_encoder"):
        stem = "pytorch_model" if part == "text_encoder" else "diffusion_pytorch_model"
        file = next((copy / part).glob("*.safetensors"))
        state = load_file(file)
        file.unlink()
        if not sharded:
            torch.save(state, copy / part / f"{stem}.bin")
            continue
        names = sorted(state)
        where = {name: f"{stem}-0000{1 + (i >= len(names) // 2)}-of-00002.bin" for i, name in enumerate(names)}
        for shard in set(where.values()):
            torch.save({name: state[name] for name in names if where[name] == shard}, copy / part / shard)
        index = {"metadata": {"total_size": sum(t.nbytes for t in state.values())}, "weight_map": where}
        (copy / part / f"{stem}.bin.index.json").write_text(json.dumps(index))
    return copy
