"""Trains a toy backbone on rendered scenes: mini, with the family "inflated" mini-sd, which has frames alone, with
"motion" the motion modules that make it mini-motion, while its own weights stay, or with "wan" a transformer.

Decisions, each of which keeps training within reach of a CPU, beside those of `models`:

- **Frames first, clips later**: temporal layers start as the identity (zero output projections), so the
  `frames` stage leaves them out entirely and the `clips` stage adds them without a jump.
- **Offset noise** (0.1, as zeroscope's own training had it): at the highest noise the mean of the latents still
  shows through, and a model that may trust it keeps the source's colours under any style.
- **A transformer** learns the velocity of a flow, in patches of 2 × 2 latent cells as Wan's: four times fewer positions
  than cells make a clip of it a tenth of the work.
- **Few frames of many scenes** teach words faster than long clips of few. Then nothing is trained but what reads the
  words, cross-attention and text encoder: of mini trained on with single frames of pairs, all but the temporal layers
  for 1,700 steps left 23 % of the paths smooth where 80 were (64 scenes; 260 steps of clips behind it did not bring
  them back), cross-attention alone for 1,500 steps 89 %, and its loss fell faster.
- min-SNR weighting (γ = 5, Hang et al. 2023), AdamW, warm-up then constant then linear decay, EMA.

Every stage resumes from its checkpoint; the same code runs on CPU and GPU, at any size. On a GPU the step is one CUDA
graph, for a network this small waits for its launches.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderTiny,
    UNet2DConditionModel,
    UNet3DConditionModel,
    UNetMotionModel,
    WanTransformer3DModel,
)
from einops import rearrange
from torch import Tensor, nn
from transformers import CLIPTextModel

from ..errors import SettingError
from ..families.attention import UNet
from ..families.backbone import per_frame
from ..families.motion import add_motion
from ..families.specs import ADAPTER, autoencoder_folder
from .graph import Graph
from .models import (
    FAMILIES,
    SHIFT,
    Recipe,
    encoded,
    load_tokenizer,
    load_vae,
    new_scheduler,
    new_text_encoder,
    new_unet,
    read_checkpoint,
    token_ids,
)
from .pairs import render_any
from .scenes import OBJECTS, PLACES, render_seed

__all__ = ["train_unet"]


SPREAD = (
    1.2  # of a flow's log-odds of noise in training (logit-normal, Esser et al. 2024), around the scheduler's shift
)
SHEET_STEPS = 20  # steps of the pictures on a sheet
READS = ".attn2.", ".transformer_blocks.0.norm2."  # in the names of the weights that read words
OFFSET_NOISE = 0.1  # spread of the noise's mean, by clip and channel


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
    job = partial(render_any if recipe.pairs else render_seed, size=recipe.size, frames=recipe.frames)
    # processes take seconds to begin, which pays for many scenes alone
    with multiprocessing.get_context("spawn").Pool() if recipe.scenes > 1000 else ThreadPool() as pool:
        for i, scene in enumerate(pool.imap(job, range(recipe.scenes), chunksize=32)):
            bank[i] = encoded(vae, scene.frames).half().numpy()
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


def _ask(unet: Any, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
    """What a network says of latents (b, c, f, h, w), under labels and text (b, k, d): noise, or a flow's velocity."""
    if isinstance(unet, WanTransformer3DModel):
        return unet(x, t.expand(len(x)), text).sample
    if isinstance(unet, UNetMotionModel):
        return unet(x, t, per_frame(text, x.shape[2])).sample
    if not isinstance(unet, UNet2DConditionModel):
        return unet(x, t, text).sample
    frames = x.shape[2]
    labels = t.expand(len(x)).repeat_interleave(frames)
    out = unet(rearrange(x, "b c f h w -> (b f) c h w"), labels, per_frame(text, frames)).sample
    return rearrange(out, "(b f) c h w -> b c f h w", f=frames)


@contextmanager
def _without_time(unet: UNet) -> Iterator[None]:
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


def _rate(step: int, total: int, peak: float) -> float:
    """Warm-up for 100 steps, constant, then linearly to zero over the last fifth."""
    return peak * min(1.0, (step + 1) / 100, max(0.01, (total - step) / (0.2 * total)))


@torch.no_grad()
def _sample_sheet(unet: Any, text: Tensor, null: Tensor, vae: AutoencoderTiny, frames: int, side: int) -> np.ndarray:
    """Pictures drawn from noise with guidance 4 in `SHEET_STEPS`: (rows, w, 3) uint8, one row of frames a prompt;
    latents have `side` cells a side."""
    scheduler = new_scheduler("wan" if isinstance(unet, WanTransformer3DModel) else FAMILIES[0])
    scheduler.set_timesteps(SHEET_STEPS)
    c, s = unet.config.in_channels, side
    noise = torch.Generator().manual_seed(1)
    x = torch.randn(len(text), c, frames, s, s, generator=noise).to(text.device)
    both = torch.cat([null.expand_as(text), text])
    for t in scheduler.timesteps:
        e0, e1 = _ask(unet, torch.cat([x, x]), t, both).chunk(2)
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


def _refuse_other_family(init: Path, recipe: Recipe) -> None:
    if recipe.family == "wan" and not (init / "transformer").is_dir():
        return  # its words and its autoencoder serve all the same
    wanted, part = {
        "unet3d": (UNet3DConditionModel, "unet"),
        "wan": (WanTransformer3DModel, "transformer"),
    }.get(recipe.family, (UNet2DConditionModel, "unet"))
    try:
        kind = json.loads((init / part / "config.json").read_text())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        raise SettingError(f"{init} holds no backbone: give a folder with {part}/, vae/ and tokenizer/.") from None
    if kind != wanted.__name__:
        raise SettingError(f"{init}/{part} is a {kind}, and the family {recipe.family} has a {wanted.__name__}.")


def _begin(model: nn.ModuleDict, recipe: Recipe, init: Path) -> None:
    """Gives a model the weights of an exported backbone; of motion modules those beside its UNet, where there are, and
    a transformer the words alone of a backbone that has none."""
    unet: Any = model["unet"]
    text = model["text"]
    text.load_state_dict(CLIPTextModel.from_pretrained(init / "text_encoder").float().state_dict())
    if recipe.family == "wan":
        if (init / "transformer").is_dir():
            unet.load_state_dict(WanTransformer3DModel.from_pretrained(init / "transformer").float().state_dict())
    elif recipe.family == "motion":
        image = UNet2DConditionModel.from_pretrained(init / "unet").float()
        beside = init / ADAPTER
        told = add_motion(image, beside).float() if beside.is_dir() else image
        missing = unet.load_state_dict(told.state_dict(), strict=False).missing_keys
        assert all("motion_modules" in name for name in missing)
    else:
        unet.load_state_dict(type(unet).from_pretrained(init / "unet").float().state_dict())


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
    graph: bool = True,
) -> None:
    """Trains network and text encoder for `steps` more steps of a stage, "frames" or "clips"; resumable.

    Writes `run/unet-{stage}.pt`, `run/log-{stage}.txt` and sample sheets. The clips stage begins with the averaged
    weights of the frames stage; a run with no checkpoint may begin with those of an exported
    backbone, `init`, whose autoencoder and tokenizer it takes too. `graph` acts on a GPU alone. Raises SettingError
    for the clips stage of an image model, for an `init` of another family, and for motion modules without the image
    model as `init`, with a folder `motion_adapter` in it where they are to be trained on.
    """
    if stage == "clips" and recipe.family == "inflated":
        raise SettingError("An image model knows no clips: its only stage is frames.")
    if recipe.family == "motion" and (stage == "frames" or not (init or (run / "unet-clips.pt").exists())):
        raise SettingError("Motion modules are trained on clips, beside an image model: give its folder as init.")
    if init:
        _refuse_other_family(init, recipe)
    run.mkdir(parents=True, exist_ok=True)
    if init and not (run / "vae").exists():
        AutoencoderTiny.from_pretrained(autoencoder_folder(init) / "vae").float().save_pretrained(run / "vae")
        shutil.copytree(init / "tokenizer", run / "tokenizer", dirs_exist_ok=True)
    tokenizer = load_tokenizer(run)
    vae = load_vae(run, recipe)
    bank, captions = _latent_bank(run, recipe, vae)
    ids = token_ids(tokenizer, captions)
    null_ids = token_ids(tokenizer, [""])
    unet, text = new_unet(recipe).to(device), new_text_encoder(recipe, tokenizer).to(device)
    model = nn.ModuleDict({"unet": unet, "text": text})
    if recipe.family == "motion":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("motion_modules" in name)
    if recipe.family == "unet3d" and stage == "clips" and recipe.frames < Recipe.frames:
        for name, parameter in model.named_parameters():  # so short a clip says nothing of motion
            parameter.requires_grad_(name.startswith("text.") or any(part in name for part in READS))
    checkpoint, first = run / f"unet-{stage}.pt", run / "unet-frames.pt"
    average = {k: v.detach().clone() for k, v in model.state_dict().items()}
    on_gpu = device == "cuda"
    rate = torch.tensor(lr, device=device)  # a graph reads it anew at each step
    optimizer = torch.optim.AdamW(
        [one for one in model.parameters() if one.requires_grad],
        lr=rate,
        betas=(0.9, 0.99),
        weight_decay=0.01,
        capturable=on_gpu,
        foreach=on_gpu,
    )
    step = 0
    if checkpoint.exists():
        state = read_checkpoint(checkpoint, recipe, device)
        model.load_state_dict(state["model"], strict=stage == "clips")
        for group in state["optimizer"]["param_groups"]:  # which may have been trained on another device
            group |= {"capturable": on_gpu, "foreach": on_gpu}
        optimizer.load_state_dict(state["optimizer"])
        for group in optimizer.param_groups:
            group["lr"] = rate
        average, step = state["average"], state["step"]
    elif stage == "clips" and first.exists():
        average |= read_checkpoint(first, recipe, device)["average"]
        model.load_state_dict(average)
    elif init:
        _begin(model, recipe, init)
        average = {k: v.detach().clone() for k, v in model.state_dict().items()}
    flows = recipe.family == "wan"
    alphas = None if flows else new_scheduler().alphas_cumprod.to(device)
    rng = np.random.default_rng(step)
    torch.manual_seed(step)
    total, start, seen = step + steps, time.monotonic(), []

    def save() -> None:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average, "step": step}
        torch.save(state | {"family": recipe.family}, checkpoint.with_suffix(".new"))
        checkpoint.with_suffix(".new").replace(checkpoint)

    def sheet() -> None:
        live = {k: v.clone() for k, v in model.state_dict().items()}
        model.load_state_dict(average)
        prompts = SHEET if stage == "frames" else SHEET[::3]
        frames = 1 if stage == "frames" else recipe.frames
        words = text(token_ids(tokenizer, prompts).to(device)).last_hidden_state
        null = text(null_ids.to(device)).last_hidden_state
        pixels = _sample_sheet(unet, words, null, load_vae(run, recipe).to(device), frames, bank.shape[-1])
        if stage == "frames":
            pixels = rearrange(pixels, "(a b h) w c -> (a h) (b w) c", h=recipe.size, a=2)
        cv2.imwrite(str(run / f"sheet-{stage}-{step:06d}.png"), pixels[..., ::-1])
        model.load_state_dict(live)

    def loss_of(z: Tensor, noise: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """A batch's loss: of the noise with min-SNR weights, or of a flow's velocity."""
        weight: Any = 1.0
        if alphas is None:
            s = (t / 1000).view(-1, 1, 1, 1, 1)
            x, wanted = (1 - s) * z + s * noise, noise - z
        else:
            a = alphas[t].view(-1, 1, 1, 1, 1)
            snr = (a / (1 - a)).flatten()
            x, wanted, weight = a.sqrt() * z + (1 - a).sqrt() * noise, noise, snr.clamp(max=5.0) / snr
        with torch.autocast(device, torch.bfloat16, enabled=on_gpu, cache_enabled=False):
            out = _ask(unet, x, t, text(tokens).last_hidden_state)
        return (weight * F.mse_loss(out.float(), wanted, reduction="none").mean((1, 2, 3, 4))).mean()

    def descend(z: Tensor, noise: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """A step against the loss of a batch, which is returned."""
        loss = loss_of(z, noise, t, tokens)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    descent = Graph(descend) if graph and on_gpu else descend

    def advance() -> None:
        nonlocal step
        rows = np.sort(rng.integers(len(bank), size=batch))
        z = torch.from_numpy(np.asarray(bank[rows])).to(device).float()
        if stage == "frames":
            z = z[torch.arange(batch), torch.from_numpy(rng.integers(z.shape[1], size=batch))][:, None]
        z = rearrange(z, "b f c h w -> b c f h w")
        noise = torch.randn_like(z)
        if flows:
            odds = (SPREAD * torch.randn(batch, device=device)).exp() * SHIFT  # of noise to clip: σ/(1−σ)
            t = 1000 * odds / (1 + odds)
        else:
            t = torch.randint(0, 1000, (batch,), device=device)
            noise += OFFSET_NOISE * torch.randn(*z.shape[:2], 1, 1, 1, device=device)
        tokens = torch.where(torch.rand(batch, 1) < 0.1, null_ids, ids[rows]).to(device)
        rate.fill_(_rate(step, total, lr))
        loss = descent(z, noise, t, tokens)
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
            trained = model.state_dict().keys()
            average = {k: v for k, v in average.items() if k in trained}
            loop()
    else:
        loop()
