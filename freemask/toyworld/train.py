"""Trains the mini backbone on rendered scenes and saves it in the layout of a diffusers pipeline.

Decisions, each of which keeps training within reach of a CPU:

- The autoencoder's **encoder is a principal component analysis** of image patches, written into the
  convolutions of a stock `AutoencoderTiny`. It needs no training, so the latents are fixed from the first
  second; only the decoder learns, and it may go on learning while or after the UNet does.
- Components are scaled to the square root of their spread: whitening them fully would make the noise
  of the fine ones the main thing to predict, leaving them alone would drown shapes.
- Words do not mix in the text encoder (a `CLIPTextModel` with embeddings and final norm, no layer), so a
  word's attention map is that word's alone.
- **Frames first, clips later**: temporal layers start as the identity (zero output projections), so the
  `frames` stage leaves them out entirely and the `clips` stage adds them without a jump.
- **Offset noise** (0.1, as zeroscope's own training had it): at the highest noise the mean of the latents still
  shows through, and a model that may trust it keeps the source's colours under any style.
- min-SNR weighting (γ = 5, Hang et al. 2023), AdamW, warm-up then constant then linear decay, EMA.

Every stage resumes from its checkpoint; the same code runs on CPU and GPU, at any size.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, DDIMScheduler, UNet3DConditionModel
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from einops import rearrange
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .scenes import OBJECTS, PLACES, render, render_seed, sample_scene, vocabulary

__all__ = ["Recipe", "export", "load_vae", "new_autoencoder", "train_unet"]


OFFSET_NOISE = 0.1  # spread of the noise's mean, by clip and channel


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is trained: sizes of the pictures, the latents and the networks."""

    size: int = 64
    factor: int = 4
    latent_channels: int = 8
    channels: tuple[int, ...] = (48, 96, 128, 128)
    text_width: int = 96
    head_dim: int = 16
    decoder_width: int = 32
    decoder_blocks: tuple[int, ...] = (6, 3, 0)
    scenes: int = 24_000
    frames: int = 8


def _scheduler() -> DDIMScheduler:
    """zeroscope's noise schedule."""
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


def _tokenizer(folder: Path) -> CLIPTokenizer:
    """A `CLIPTokenizer` whose merges make every word of the toy world one token.

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
    return CLIPTokenizer.from_pretrained(folder, model_max_length=24)


def _patches(frames: Tensor, factor: int) -> Tensor:
    """(n, 3, H, W) -> (n·h·w, 3·factor²), channels ordered as the encoder's stride-2 convolutions do."""
    x = frames
    while factor > 1:
        x = rearrange(x, "n c (h a) (w b) -> n (c a b) h w", a=2, b=2)
        factor //= 2
    return rearrange(x, "n c h w -> (n h w) c")


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


@torch.no_grad()
def _latent_bank(run: Path, recipe: Recipe, vae: AutoencoderTiny) -> tuple[np.ndarray, list[str]]:
    """Latents of the training scenes (n, f, c, h, w) float16, scaled, and their captions; made once."""
    path, words = run / "latents.npy", run / "captions.json"
    if path.exists() and words.exists():
        return np.load(path, mmap_mode="r"), json.loads(words.read_text())
    grid = recipe.size // recipe.factor
    shape = (recipe.scenes, recipe.frames, recipe.latent_channels, grid, grid)
    bank = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    captions = []
    job = partial(render_seed, size=recipe.size, frames=recipe.frames)
    with multiprocessing.get_context("spawn").Pool() as pool:
        for i, scene in enumerate(pool.imap(job, range(recipe.scenes), chunksize=32)):
            x = torch.from_numpy(scene.frames).permute(0, 3, 1, 2).float() / 127.5 - 1
            bank[i] = (vae.encode(x).latents * vae.config.scaling_factor).half().numpy()
            captions.append(scene.caption)
    words.write_text(json.dumps(captions))
    return bank, captions


class _Identity(nn.Module):
    """Stands in for a temporal layer while single frames are trained."""

    def __init__(self, returns_tuple: bool) -> None:
        super().__init__()
        self.returns_tuple = returns_tuple

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor | tuple[Tensor]:
        return (x,) if self.returns_tuple else x


@contextmanager
def _without_time(unet: UNet3DConditionModel) -> Iterator[None]:
    """The UNet with its temporal layers taken out; they are put back on leaving."""
    saved = []
    for module in list(unet.modules()):
        for name, child in list(module.named_children()):
            if name == "transformer_in":
                saved.append((module, name, child))
                setattr(module, name, _Identity(True))
            elif name in ("temp_attentions", "temp_convs"):
                saved.append((module, name, child))
                stand_in = [_Identity(name == "temp_attentions") for _ in child]
                setattr(module, name, nn.ModuleList(stand_in))
    try:
        yield
    finally:
        for module, name, child in saved:
            setattr(module, name, child)


def _new_unet(recipe: Recipe) -> UNet3DConditionModel:
    depth = len(recipe.channels) - 1
    torch.manual_seed(0)
    unet = UNet3DConditionModel(
        sample_size=recipe.size // recipe.factor,
        in_channels=recipe.latent_channels,
        out_channels=recipe.latent_channels,
        block_out_channels=recipe.channels,
        down_block_types=("CrossAttnDownBlock3D",) * depth + ("DownBlock3D",),
        up_block_types=("UpBlock3D",) + ("CrossAttnUpBlock3D",) * depth,
        layers_per_block=1,
        norm_num_groups=16,
        cross_attention_dim=recipe.text_width,
        attention_head_dim=recipe.head_dim,
    )
    for name, module in unet.named_modules():
        if name.endswith("proj_out") and ("temp_attentions" in name or "transformer_in" in name):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return unet


def _new_text_encoder(recipe: Recipe, tokenizer: CLIPTokenizer) -> CLIPTextModel:
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


def _ids(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    return tokenizer(captions, padding="max_length", max_length=24, truncation=True, return_tensors="pt").input_ids


def _rate(step: int, total: int, peak: float) -> float:
    """Warm-up for 100 steps, constant, then linearly to zero over the last fifth."""
    return peak * min(1.0, (step + 1) / 100, max(0.01, (total - step) / (0.2 * total)))


@torch.no_grad()
def _sample_sheet(
    unet: UNet3DConditionModel, text: Tensor, null: Tensor, vae: AutoencoderTiny, frames: int
) -> np.ndarray:
    """Pictures drawn from noise with guidance 4 in 20 steps: (rows, w, 3) uint8, one row of frames a prompt."""
    scheduler = _scheduler()
    scheduler.set_timesteps(20)
    c, s = unet.config.in_channels, unet.config.sample_size
    noise = torch.Generator().manual_seed(1)
    x = torch.randn(len(text), c, frames, s, s, generator=noise).to(text.device)
    both = torch.cat([null.expand_as(text), text])
    for t in scheduler.timesteps:
        e0, e1 = unet(torch.cat([x, x]), t, both).sample.chunk(2)
        x = scheduler.step(e0 + 4 * (e1 - e0), t, x).prev_sample
    pictures = vae.decode(rearrange(x, "b c f h w -> (b f) c h w") / vae.config.scaling_factor).sample
    pixels = ((pictures.clamp(-1, 1) + 1) * 127.5).byte().cpu().numpy()
    return rearrange(pixels, "(b f) c h w -> (b h) (f w) c", f=frames)


SHEET = [
    f"a {colour} {noun} {OBJECTS[noun]} {PLACES[place]}".replace("a  ", "a ")
    for noun, colour, place in zip(
        [*OBJECTS, "car", "bus", "boat"],
        ["red", "", "", "blue", "", "", "", "yellow", "", "", "green", "", "", "blue", "purple", "red"],
        list(PLACES) * 2,
        strict=True,
    )
]


def train_unet(
    run: Path,
    recipe: Recipe,
    *,
    stage: str,
    steps: int,
    batch: int,
    lr: float,
    device: str = "cpu",
    init: Path | None = None,
) -> None:
    """Trains UNet and text encoder for `steps` more steps of a stage, "frames" or "clips"; resumable.

    Writes `run/unet-{stage}.pt`, `run/log-{stage}.txt` and sample sheets. The clips stage begins with
    the averaged weights of the frames stage; a run with no checkpoint may begin with those of an exported
    backbone, `init`, whose autoencoder it takes too.
    """
    run.mkdir(parents=True, exist_ok=True)
    if init and not (run / "vae").exists():
        AutoencoderTiny.from_pretrained(init / "vae").float().save_pretrained(run / "vae")
    tokenizer = _tokenizer(run / "tokenizer")
    vae = load_vae(run, recipe)
    bank, captions = _latent_bank(run, recipe, vae)
    ids = _ids(tokenizer, captions)
    null_ids = _ids(tokenizer, [""])
    unet, text = _new_unet(recipe).to(device), _new_text_encoder(recipe, tokenizer).to(device)
    model = nn.ModuleDict({"unet": unet, "text": text})
    checkpoint, first = run / f"unet-{stage}.pt", run / "unet-frames.pt"
    average = {k: v.detach().clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
    step = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"], strict=stage == "clips")
        optimizer.load_state_dict(state["optimizer"])
        average, step = state["average"], state["step"]
    elif stage == "clips" and first.exists():
        average |= torch.load(first, map_location=device, weights_only=True)["average"]
        model.load_state_dict(average)
    elif init:
        unet.load_state_dict(UNet3DConditionModel.from_pretrained(init / "unet").float().state_dict())
        text.load_state_dict(CLIPTextModel.from_pretrained(init / "text_encoder").float().state_dict())
        average = {k: v.detach().clone() for k, v in model.state_dict().items()}
    scheduler = _scheduler()
    alphas = scheduler.alphas_cumprod.to(device)
    rng = np.random.default_rng(step)
    torch.manual_seed(step)
    total, start, seen = step + steps, time.monotonic(), []

    def save() -> None:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average, "step": step}
        torch.save(state, checkpoint.with_suffix(".new"))
        checkpoint.with_suffix(".new").replace(checkpoint)

    def sheet() -> None:
        live = {k: v.clone() for k, v in model.state_dict().items()}
        model.load_state_dict(average)
        prompts = SHEET if stage == "frames" else SHEET[::3]
        frames = 1 if stage == "frames" else recipe.frames
        words = text(_ids(tokenizer, prompts).to(device)).last_hidden_state
        null = text(null_ids.to(device)).last_hidden_state
        pixels = _sample_sheet(unet, words, null, load_vae(run, recipe).to(device), frames)
        if stage == "frames":
            pixels = rearrange(pixels, "(a b h) w c -> (a h) (b w) c", h=recipe.size, a=2)
        cv2.imwrite(str(run / f"sheet-{stage}-{step:06d}.png"), pixels[..., ::-1])
        model.load_state_dict(live)

    def advance() -> None:
        nonlocal step
        rows = np.sort(rng.integers(len(bank), size=batch))
        z = torch.from_numpy(np.asarray(bank[rows])).to(device).float()
        if stage == "frames":
            z = z[torch.arange(batch), torch.from_numpy(rng.integers(z.shape[1], size=batch))][:, None]
        z = rearrange(z, "b f c h w -> b c f h w")
        t = torch.randint(0, 1000, (batch,), device=device)
        a = alphas[t].view(-1, 1, 1, 1, 1)
        noise = torch.randn_like(z) + OFFSET_NOISE * torch.randn(*z.shape[:2], 1, 1, 1, device=device)
        tokens = torch.where(torch.rand(batch, 1) < 0.1, null_ids, ids[rows]).to(device)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            words = text(tokens).last_hidden_state
            eps = unet(a.sqrt() * z + (1 - a).sqrt() * noise, t, words).sample
        snr = (a / (1 - a)).flatten()
        weight = snr.clamp(max=5.0) / snr
        loss = (weight * F.mse_loss(eps.float(), noise, reduction="none").mean((1, 2, 3, 4))).mean()
        for group in optimizer.param_groups:
            group["lr"] = _rate(step, total, lr)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        keep = min(0.998, (step + 1) / (step + 10))
        with torch.no_grad():
            live = model.state_dict()
            torch._foreach_lerp_(list(average.values()), [live[name] for name in average], 1 - keep)
        step += 1
        seen.append(loss.item())

    def loop() -> None:
        saved = time.monotonic()
        while step < total:
            advance()
            if step % 50 == 0:
                line = f"{step} loss {np.mean(seen[-200:]):.4f} {time.monotonic() - start:.0f}s"
                with (run / f"log-{stage}.txt").open("a") as log:
                    log.write(line + "\n")
            if time.monotonic() - saved > 300:
                save()
                saved = time.monotonic()
            if step % 500 == 0:
                sheet()
        save()
        sheet()

    if stage == "frames":
        with _without_time(unet):
            # the averages and checkpoints of this stage hold the layers that it trains; the rest stay as made
            average = {k: v for k, v in average.items() if k in model.state_dict()}
            loop()
    else:
        loop()


def load_vae(run: Path, recipe: Recipe) -> AutoencoderTiny:
    """The run's autoencoder, made on the first call."""
    if not (run / "vae").exists():
        _new_vae(recipe).save_pretrained(run / "vae")
    return AutoencoderTiny.from_pretrained(run / "vae").eval()


def export(run: Path, recipe: Recipe, out: Path) -> None:
    """Saves the newest averaged weights as a pipeline folder: fp16 safetensors in zeroscope's layout."""
    stages = [run / f"unet-{stage}.pt" for stage in ("clips", "frames")]
    newest = next(path for path in stages if path.exists())
    tokenizer = _tokenizer(out / "tokenizer")
    tokenizer.save_pretrained(out / "tokenizer")
    unet, text = _new_unet(recipe), _new_text_encoder(recipe, tokenizer)
    model = nn.ModuleDict({"unet": unet, "text": text})
    model.load_state_dict(torch.load(newest, map_location="cpu", weights_only=True)["average"], strict=False)
    unet.half().save_pretrained(out / "unet")
    text.half().save_pretrained(out / "text_encoder")
    load_vae(run, recipe).half().save_pretrained(out / "vae")
    _scheduler().save_pretrained(out / "scheduler")
    index = {
        "_class_name": "TextToVideoSDPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet3DConditionModel"],
        "vae": ["diffusers", "AutoencoderTiny"],
    }
    (out / "vocabulary.json").write_text(json.dumps(vocabulary()) + "\n")
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
