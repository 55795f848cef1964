"""Trains the decoder of a run's autoencoder; the encoder, and so every latent, stays as it is.

The encoder is a principal component analysis, fixed before the UNet trains (see `models`), so the decoder
may learn before, while or after the UNet does. The loss is the mean over frames of the root mean square
error: between the mean square error, which the busiest frames would rule, and PSNR itself, which the
plainest would.
"""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from .models import Recipe, load_vae, new_autoencoder
from .scenes import DEVELOP, render, sample_scene

__all__ = ["train_decoder"]


def _pool(recipe: Recipe, first: int, scenes: int, each: int) -> Tensor:
    """Rendered frames (scenes · each, 3, H, W) uint8 of the seeds from `first`, spread over each clip."""
    cv2.setNumThreads(1)
    clips = [render(sample_scene(seed), recipe.size, frames=each).frames for seed in range(first, first + scenes)]
    return torch.from_numpy(np.concatenate(clips)).permute(0, 3, 1, 2).contiguous()


def _signed(pixels: Tensor) -> Tensor:
    return pixels.float() / 127.5 - 1


@torch.no_grad()
def _psnr(vae: AutoencoderTiny, pixels: Tensor, latents: Tensor) -> float:
    """Mean over frames of the decoded frames' PSNR, in dB."""
    shown = ((vae.decode(latents).sample.clamp(-1, 1) + 1) * 127.5).round()
    error = (shown - pixels.float()).square().mean((1, 2, 3)).clamp_min(1e-3)
    return float((10 * torch.log10(255**2 / error)).mean())


def train_decoder(
    run: Path,
    recipe: Recipe,
    *,
    minutes: float,
    device: str = "cpu",
    pool: int = 6000,
    batch: int = 8,
    lr: float = 2e-3,
) -> None:
    """Trains the decoder for `minutes` in all, counting those of its checkpoint, then puts it into `run/vae`.

    `pool` frames are rendered once from seeds under 1,000,000. The rate warms up over the first 2 % of the
    time, stays until 40 % and then falls to zero along a cosine. Writes `run/decoder.pt` about every minute
    and, in dB on 64 held-out frames, `run/log-decoder.txt`. `run/vae` is replaced only at the end; a decoder
    of another shape than the recipe's begins anew there, with the encoder unchanged.
    """
    vae, now = new_autoencoder(recipe), load_vae(run, recipe)
    vae.encoder.load_state_dict(now.encoder.state_dict())
    if now.config.num_decoder_blocks == vae.config.num_decoder_blocks:
        vae.decoder.load_state_dict(now.decoder.state_dict())
    vae.to(device)
    decoder, checkpoint = vae.decoder, run / "decoder.pt"
    average = {k: v.detach().clone() for k, v in decoder.state_dict().items()}
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-4)
    step, spent = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        decoder.load_state_dict(state["decoder"])
        optimizer.load_state_dict(state["optimizer"])
        average, step, spent = state["average"], state["step"], state["seconds"]

    pixels, held = _pool(recipe, 0, pool // 3, 3).to(device), _pool(recipe, DEVELOP, 64, 1).to(device)
    with torch.no_grad():
        latents = torch.cat([vae.encode(_signed(part)).latents for part in torch.split(pixels, 64)])
        held_latents = vae.encode(_signed(held)).latents
    generator = torch.Generator().manual_seed(step)
    begun, saved = time.monotonic() - spent, time.monotonic()
    seen: list[float] = []

    def keep() -> None:
        live = {k: v.clone() for k, v in decoder.state_dict().items()}
        state = {"decoder": live, "optimizer": optimizer.state_dict(), "average": average, "step": step}
        torch.save(state | {"seconds": time.monotonic() - begun}, checkpoint.with_suffix(".new"))
        checkpoint.with_suffix(".new").replace(checkpoint)
        decoder.load_state_dict(average)
        quality = _psnr(vae, held, held_latents)
        decoder.load_state_dict(live)
        with (run / "log-decoder.txt").open("a") as log:
            log.write(f"{step} loss {np.mean(seen):.5f} psnr {quality:.2f} {time.monotonic() - begun:.0f}s\n")
        seen.clear()

    while (share := (time.monotonic() - begun) / (60 * minutes)) < 1:
        fall = min(1.0, max(0.0, (share - 0.4) / 0.6))
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, share / 0.02 + 0.01) * 0.5 * (1 + math.cos(math.pi * fall))
        rows = torch.randint(len(pixels), (batch,), generator=generator).to(device)
        error = (vae.decode(latents[rows]).sample - _signed(pixels[rows])).square().mean((1, 2, 3))
        loss = error.clamp_min(1e-6).sqrt().mean()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        weight = 1 - min(0.998, (step + 1) / (step + 10))
        with torch.no_grad():
            live = decoder.state_dict()
            torch._foreach_lerp_(list(average.values()), [live[name] for name in average], weight)
        seen.append(loss.item())
        if time.monotonic() - saved > 60:
            keep()
            saved = time.monotonic()
    if seen:
        keep()
    decoder.load_state_dict(average)
    new = run / "vae.new"
    vae.cpu().save_pretrained(new)
    for part in new.iterdir():
        part.replace(run / "vae" / part.name)
    shutil.rmtree(new)
