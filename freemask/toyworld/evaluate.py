"""How good is a backbone at the toy world? Figures on seeds from 3,000,000, which nothing else uses.

Generated clips are judged by the independent classifier, beside its accuracy on real renders; rendered
clips are inverted and reconstructed, and the word maps of their inversions are held against the true masks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..ddim import denoise, levels, timesteps
from ..edit import Editor, Steps, finish
from ..jobs import Step
from ..masks import candidates
from ..metrics import psnr
from ..mmc import iou
from ..trace import CLEAN
from ..video import Clip
from .classify import CLASSES, Classifier, labels, load_classifier
from .scenes import REPORT, Scene, caption, render, sample_scene

__all__ = ["evaluate", "evaluate_steps", "generate_steps"]


def evaluate(
    editor: Editor,
    *,
    clips: int = 64,
    steps: int = 25,
    seed: int = REPORT,
    guidance: float = 4.0,
) -> dict[str, Any]:
    """`evaluate_steps` run to its end."""
    return finish(evaluate_steps(editor, clips=clips, steps=steps, seed=seed, guidance=guidance))


@torch.inference_mode()
def generate_steps(
    editor: Editor, captions: list[str], *, steps: int, seed: int, guidance: float, frames: int = 8, batch: int = 4
) -> Steps[list[np.ndarray]]:
    """Clips (frames, h, w, 3) uint8 drawn from noise, `batch` at a time; clip i's noise has the seed `seed + i`.

    DDIM with classifier-free guidance over `steps` steps, at the backbone's own size.
    """
    backbone = editor.backbone
    width, height = (side // backbone.vae_factor for side in backbone.native_size)
    shape = (int(backbone.unet.config["in_channels"]), frames, height, width)
    ts = timesteps(backbone.scheduler, steps)
    alpha = levels(backbone.scheduler, ts)
    null = backbone.text([""])
    drawn: list[np.ndarray] = []
    starts = range(0, len(captions), batch)
    for n, first in enumerate(starts):
        words = backbone.text(captions[first : first + batch])
        text = torch.cat([null.expand_as(words), words])
        noises = (torch.Generator().manual_seed(seed + first + i) for i in range(len(words)))
        x = torch.stack([torch.randn(shape, generator=noise) for noise in noises]).to(backbone.device)

        def predict(x: Tensor, t: int, level: float, text: Tensor = text) -> Tensor:
            plain, told = backbone.eps(torch.cat([x, x]), t, text, level).chunk(2)
            return plain + guidance * (told - plain)

        for i, (t, x) in enumerate(denoise(predict, x, alpha)):  # noqa: B007, B020
            yield Step("generate", n * len(ts) + i + 1, len(starts) * len(ts), t)
        drawn += [backbone.decode(clip[None]) for clip in x]
    return drawn


def _accuracy(judge: Classifier, scenes: list[Scene], clips: list[np.ndarray]) -> dict[str, float]:
    """The share of clips, head by head, that show what their scenes say; colour over unstyled ones only."""
    right: dict[str, list[bool]] = {head: [] for head in CLASSES}
    for scene, clip in zip(scenes, clips, strict=True):
        seen, truth = judge.judge(clip), labels(scene)
        for head in CLASSES:
            if head != "colour" or scene.style is None:
                right[head].append(seen[head] == truth[head])
    return {head: float(np.mean(hits)) for head, hits in right.items()}


def evaluate_steps(
    editor: Editor,
    *,
    clips: int = 64,
    steps: int = 25,
    seed: int = REPORT,
    guidance: float = 4.0,
    frames: int = 8,
    tau: float = 0.3,
    batch: int = 4,
    judge: Classifier | None = None,
) -> Steps[dict[str, Any]]:
    """Generates and inverts the scenes with seeds `seed` … `seed + clips`; returns a JSON-ready dict.

    `object, colour, place, style`: the accuracies, in [0, 1], of generated clips; `classifier`: the same
    four of real renders of the scenes; `reconstruction_psnr` (after inversion) and `vae_psnr`: means over
    clips against the source frames, in dB; `best_iou`: the best mean over clips of the object word's mask
    at τ, over every (timestep, site), named by `best_timestep` and `best_site`; `full_iou`: that of a mask
    that is True everywhere. At least one scene must be unstyled.
    """
    size = min(editor.backbone.native_size)
    judge = judge or load_classifier()
    scenes = [sample_scene(seed + i) for i in range(clips)]
    words = [caption(scene) for scene in scenes]
    drawn = yield from generate_steps(
        editor, words, steps=steps, seed=seed, guidance=guidance, frames=frames, batch=batch
    )
    real = [render(scene, size, frames=frames) for scene in scenes]
    restored, decoded, full = [], [], []
    overlaps: dict[tuple[int, str], list[float]] = {}
    for i, (scene, clip) in enumerate(zip(scenes, real, strict=True)):
        trace = editor.invert(Clip(clip.frames, 8.0), prompt=clip.caption, steps=steps)
        restored.append(psnr(clip.frames, editor.reconstruct(trace).frames))
        decoded.append(psnr(clip.frames, editor.backbone.decode(trace.latents[CLEAN])))
        full.append(float(clip.masks.mean()))
        for key, mask in candidates(trace, scene.object, tau=tau, size=(size, size)).items():
            overlaps.setdefault(key, []).append(iou(mask, clip.masks))
        yield Step("invert", i + 1, clips)
    (timestep, site), best = max(((key, float(np.mean(ious))) for key, ious in overlaps.items()), key=lambda k: k[1])
    return {
        **_accuracy(judge, scenes, drawn),
        "classifier": _accuracy(judge, scenes, [clip.frames for clip in real]),
        "reconstruction_psnr": float(np.mean(restored)),
        "vae_psnr": float(np.mean(decoded)),
        "best_iou": best,
        "best_site": site,
        "best_timestep": timestep,
        "full_iou": float(np.mean(full)),
        "clips": clips,
        "steps": steps,
        "guidance": guidance,
    }
