"""A tiny `CLIPModel` of the toy world, so that CLIP metrics run everywhere, without a download.

OpenAI CLIP's own classes and loss (Radford et al. 2021, Fig. 3) and its normalisation of pixels, small: a vision
transformer over 8 × 8 patches of a frame, two text layers, the mini backbone's tokenizer. It learns from rendered
frames and their captions, disturbed as the classifier's are, and never sees the diffusion model.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from ..families.specs import TOY_CLIP
from ..jobs.metrics import clip_pixels
from .classify import descend, disturbed, training_frames, training_scenes
from .models import load_tokenizer, token_ids
from .scenes import caption

__all__ = ["new_clip", "train_clip"]


def new_clip(tokenizer: CLIPTokenizer, *, size: int, width: int = 128) -> CLIPModel:
    """An untrained model for frames of `size` × `size`."""
    torch.manual_seed(0)
    shared = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": 4, "projection_dim": 64}
    text = shared | {
        "num_hidden_layers": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 24,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
    }
    vision = shared | {"num_hidden_layers": 4, "image_size": size, "patch_size": size // 8}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


def train_clip(
    out: Path = TOY_CLIP,
    *,
    size: int = 64,
    steps: int = 2000,
    scenes: int = 12_000,
    first: int = 200_000,
    batch: int = 96,
    lr: float = 1e-3,
) -> None:
    """Trains on two frames each of `training_scenes` and saves fp16 weights and mini's tokenizer.

    Prints a line every 50 steps.
    """
    drawn = training_scenes(first, scenes)
    pixels, _ = training_frames(drawn, size)
    shutil.copytree(TOY_CLIP.parent / "mini" / "tokenizer", out / "tokenizer", dirs_exist_ok=True)
    tokenizer = load_tokenizer(out)
    ids = token_ids(tokenizer, [caption(scene) for scene in drawn])
    model = new_clip(tokenizer, size=size).train()

    def loss() -> Tensor:
        rows = torch.randint(scenes, (batch,))
        given = disturbed(pixels[rows, torch.randint(2, (batch,))].float() / 127.5 - 1)
        result = model(input_ids=ids[rows], pixel_values=clip_pixels(given, size))
        same = (ids[rows][:, None] == ids[rows][None]).all(-1).float()  # two scenes may share a caption
        target = same / same.sum(-1, keepdim=True)
        images, texts = (F.cross_entropy(x, target) for x in (result.logits_per_image, result.logits_per_text))
        return (images + texts) / 2

    descend(model, loss, steps=steps, lr=lr, weight_decay=0.05, longest=1.0)
    shutil.rmtree(out / "tokenizer")
    tokenizer.save_pretrained(out)
    model.half().save_pretrained(out)
