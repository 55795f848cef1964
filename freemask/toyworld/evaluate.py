"""How good is a backbone at the toy world? Figures on seeds from 3,000,000, which nothing else uses.

Generated clips are judged by the independent classifier, beside its accuracy on real renders: what they show, and
whether the object's centre keeps to a smooth path. Rendered clips are inverted and reconstructed, and the word maps
of their inversions are held against the true masks.

Scenes are measured a few at a time, in this process or by a pool: a UNet of this size is mostly small
operations, so two processes with a thread each end sooner than one process with two.
"""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..clips.video import Clip
from ..families.backbone import Backbone
from ..families.ddim import CLEAN, guide
from ..families.specs import usual_guidance
from ..jobs.metrics import psnr
from ..jobs.run import load_editor
from ..masks.candidates import candidates, consensus, extract, resize
from ..masks.mmc import iou
from ..methods.editor import Editor
from ..presets import SELECTION_TAU
from ..steps import Step, Steps
from .classify import CLASSES, Classifier, labels, load_classifier
from .scenes import REPORT, caption, render, sample_scene

__all__ = ["Measured", "evaluate_steps", "generate", "measure", "wander"]

SMOOTH = 2.0  # pixels that a centre may leave its path by


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The figures of one scene. `right` and `right_real`: by head, whether the classifier sees in the generated
    and in the rendered clip what the scene says (no colour where the scene has a style), and under
    "smooth" whether the object's centre keeps to a smooth path."""

    right: dict[str, bool]
    right_real: dict[str, bool]
    reconstruction_psnr: float
    vae_psnr: float
    iou: dict[tuple[int, str], float]
    consensus_iou: float
    full_iou: float


def _denoise(backbone: Backbone, x: Tensor, text: Tensor, null: Tensor | None, steps: int, guidance: float) -> Tensor:
    """Latents (b, c, f, h, w) denoised with text (b, k, d); with classifier-free guidance where `null` is given."""
    both = text if null is None else torch.cat([null.expand_as(text), text])

    def predict(x: Tensor, t: int, level: float) -> Tensor:
        if null is None:
            return backbone.predict(x, t, both, level)
        plain, told = backbone.predict(torch.cat([x, x]), t, both, level).chunk(2)
        return guide(plain, told, guidance)

    path = backbone.path
    for _, x in path.denoise(predict, x, path.levels(path.timesteps(steps))):  # noqa: B007, B020
        pass
    return x


def wander(centres: np.ndarray) -> float:
    """How far, in pixels, centres (f, 2) leave the nearest path of the world's own kind (`scenes.motion`): straight
    along x, a mean and one turn of a sine along y."""
    turn = np.linspace(0, 2 * np.pi, len(centres))
    fitted = []
    for values, basis in ((centres[:, 0], [turn]), (centres[:, 1], [np.cos(turn), np.sin(turn)])):
        terms = np.stack([np.ones_like(turn), *basis], 1)
        fitted.append(terms @ np.linalg.lstsq(terms, values, rcond=None)[0])
    return float(np.linalg.norm(centres - np.stack(fitted, 1), axis=1).max())


@torch.inference_mode()
def generate(
    backbone: Backbone, captions: list[str], seeds: list[int], *, steps: int, guidance: float, frames: int
) -> list[np.ndarray]:
    """Clips (frames, h, w, 3) uint8 drawn from the noise of their seeds in `steps`, at the backbone's own size."""
    width, height = (side // backbone.vae_factor for side in backbone.native_size)
    shape = (int(backbone.unet.config["in_channels"]), frames, height, width)
    x = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    done = _denoise(
        backbone, x.to(backbone.device), backbone.text(captions), backbone.text([""]), steps=steps, guidance=guidance
    )
    return [backbone.decode(clip[None]) for clip in done]


@torch.inference_mode()
def measure(
    editor: Editor, judge: Classifier, seeds: list[int], *, steps: int, guidance: float, frames: int, tau: float
) -> list[Measured]:
    """The scenes of some seeds, together in a batch where that saves time."""
    backbone, size = editor.backbone, min(editor.backbone.native_size)
    scenes = [sample_scene(seed) for seed in seeds]
    clips = [render(scene, size, frames=frames) for scene in scenes]
    words = [caption(scene) for scene in scenes]
    drawn = generate(backbone, words, seeds, steps=steps, guidance=guidance, frames=frames)
    traces = [editor.invert(Clip(clip.frames, 8.0), prompt=clip.caption, steps=steps) for clip in clips]
    noise = torch.cat([trace.latents[trace.timesteps[-1]] for trace in traces])
    restored = _denoise(backbone, noise, backbone.text(words), None, steps, guidance=1.0)

    def right(frames: np.ndarray, truth: dict[str, int]) -> dict[str, bool]:
        seen = judge.judge(frames)
        plain = truth["style"] == CLASSES["style"].index(None)
        found = {head: seen[head] == truth[head] for head in CLASSES if head != "colour" or plain}
        return found | {"smooth": wander(judge.locate(frames)) <= SMOOTH}

    found = []
    for i, (scene, clip, trace) in enumerate(zip(scenes, clips, traces, strict=True)):
        masks = candidates(trace, scene.object, tau=tau, size=(size, size))
        agreed = extract(consensus(trace, scene.object).soft, SELECTION_TAU["consensus"], pool=False)
        found.append(
            Measured(
                right=right(drawn[i], labels(scene)),
                right_real=right(clip.frames, labels(scene)),
                reconstruction_psnr=psnr(clip.frames, backbone.decode(restored[i : i + 1])),
                vae_psnr=psnr(clip.frames, backbone.decode(trace.latents[CLEAN])),
                iou={key: iou(mask, clip.masks) for key, mask in masks.items()},
                consensus_iou=iou(resize(agreed, (size, size)), clip.masks),
                full_iou=float(clip.masks.mean()),
            )
        )
    return found


def _measure_in_pool(seeds: list[int], name: str, **options: Any) -> list[Measured]:
    torch.set_num_threads(1)
    return measure(load_editor(name), load_classifier(), seeds, **options)


def evaluate_steps(
    editor: Editor,
    *,
    clips: int = 64,
    steps: int = 25,
    seed: int = REPORT,
    guidance: float | None = None,
    frames: int = 8,
    tau: float = 0.4,
    batch: int = 4,
    workers: int = 0,
    judge: Classifier | None = None,
) -> Steps[dict[str, Any]]:
    """Measures the scenes with seeds `seed` … `seed + clips`; returns a JSON-ready dict. `guidance` of the generated
    clips is the backbone's own where left out.

    `object, colour, place, style`: the accuracies, in [0, 1], of generated clips, colour over unstyled ones; at
    least one scene must be unstyled. `smooth`: the share of generated clips whose object keeps to a smooth path to
    within 2 pixels. `classifier`: the same five of real renders. `reconstruction_psnr` (after inversion) and
    `vae_psnr`: means over clips against the source frames, in dB. `best_iou`: the best mean over clips of the object
    word's mask at τ, over every (timestep, site), named by `best_timestep` and `best_site`; `consensus_iou`: that of
    the mask that the clip's sharper maps agree on; `full_iou`: that of one that is True everywhere. `workers`
    processes measure, or this one where it is 0.

    A grid of 16 × 16 bounds them: the true mask on it has an IoU of .84 (64 scenes).
    """
    guidance = usual_guidance(editor.backbone.name) if guidance is None else guidance
    seeds = [list(range(seed, seed + clips))[i : i + batch] for i in range(0, clips, batch)]
    options: dict[str, Any] = {"steps": steps, "guidance": guidance, "frames": frames, "tau": tau}
    found: list[Measured] = []
    if workers:
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            for part in pool.imap(partial(_measure_in_pool, name=editor.backbone.name, **options), seeds):
                found += part
                yield Step("measure", len(found), clips)
    else:
        judge = judge or load_classifier()
        for some in seeds:
            found += measure(editor, judge, some, **options)
            yield Step("measure", len(found), clips)

    def accuracy(rows: list[dict[str, bool]]) -> dict[str, float]:
        return {head: float(np.mean([row[head] for row in rows if head in row])) for head in (*CLASSES, "smooth")}

    overlaps = {key: float(np.mean([scene.iou[key] for scene in found])) for key in found[0].iou}
    timestep, site = max(overlaps, key=lambda key: overlaps[key])
    return {
        **accuracy([scene.right for scene in found]),
        "classifier": accuracy([scene.right_real for scene in found]),
        "reconstruction_psnr": float(np.mean([scene.reconstruction_psnr for scene in found])),
        "vae_psnr": float(np.mean([scene.vae_psnr for scene in found])),
        "best_iou": overlaps[timestep, site],
        "best_site": site,
        "best_timestep": timestep,
        "consensus_iou": float(np.mean([scene.consensus_iou for scene in found])),
        "full_iou": float(np.mean([scene.full_iou for scene in found])),
        "clips": clips,
        "steps": steps,
        "guidance": guidance,
    }
