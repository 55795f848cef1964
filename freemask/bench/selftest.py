"""Does a backbone work here? What to run first once its weights have come.

A shipped clip, whose scene and therefore the place of whose object is known, is inverted at the backbone's own size.
Every figure has bounds, and the likely cause where it leaves them: wrong or damaged weights, a precision that
overflows, too few steps. The bounds are wide, and stand between what mini measures in 10 steps and what copies of it
with random or broken weights did at 64 pixels (noise explained .97 and −.12, spread .77 and .35, reconstruction 28.0
and 15.3 dB, contrast 3.0 and 1.2, IoU .78 and .16); no larger model has been measured. They tell working from broken,
not good from better; `calibrate` and `benchmark` do that.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from ..clips.video import read_clip
from ..errors import MaskError
from ..families.devices import default_device
from ..families.loading import pipeline_folder
from ..families.specs import ROOT, BackboneSpec, backbone_spec
from ..jobs.files import word_arrays
from ..jobs.memory import Peak
from ..jobs.metrics import psnr
from ..masks.mmc import codebook_path, iou, read_codebook
from ..masks.trace import Trace
from ..methods.editor import Denoised, Editor
from ..pictures.sheets import mask_sheet, save_png
from ..presets import load_preset
from ..steps import Step
from ..toyworld.scenes import render, sample_scene
from ..words.prompts import find_word

__all__ = ["Check", "selftest_steps"]

CLIP, PROMPT, WORD = "car-grass.mp4", "a red car driving on the grass", "car"
SCENE = replace(sample_scene(2_000_011), object="car", colour="red", place="grass")  # what the clip was rendered from
SIDE, FRAMES = 256, 8
INF = math.inf


@dataclass(frozen=True)
class Check:
    """One criterion: `value` should be from `low` to `high`; `what` it measures, and the `cure` where it fails.

    A value that is not a number fails.
    """

    name: str
    value: float
    low: float
    high: float
    what: str
    cure: str

    @property
    def passed(self) -> bool:
        return bool(self.low <= self.value <= self.high)

    def __str__(self) -> str:
        low, high, value = (f"{number:,.10g}" for number in (self.low, self.high, round(self.value, 3)))
        bounds = low if low == high else f"{low} or more" if self.high == INF else f"{low} to {high}"
        line = f"{'ok ' if self.passed else 'BAD'} {self.name}: {value}, should be {bounds}. {self.what}"
        return line if self.passed else f"{line} What to do: {self.cure}"

    def record(self) -> dict[str, object]:
        """The check as JSON has it, which knows no infinity: None."""
        numbers = {name: getattr(self, name) for name in ("value", "low", "high")}
        finite = {name: round(float(x), 4) if math.isfinite(x) else None for name, x in numbers.items()}
        return {"name": self.name, "passed": self.passed} | finite


def _place(size: tuple[int, int]) -> np.ndarray:
    """The car's true mask (f, h, w) bool in the frames that `read_clip` makes of the clip at (width, height)."""
    w, h = size
    side = max(w, h)
    masks = render(SCENE, SIDE, frames=FRAMES).masks
    large = [cv2.resize(mask.astype(np.uint8), (side, side), interpolation=cv2.INTER_NEAREST) for mask in masks]
    top, left = (side - h) // 2, (side - w) // 2
    return np.stack(large)[:, top : top + h, left : left + w].astype(bool)


@torch.inference_mode()
def _noise_explained(editor: Editor, latents: torch.Tensor, steps: int) -> float:
    """1 − MSE of the noise that the model finds in the clip's latents, half-way up: 1 is all of it, 0 none."""
    backbone, path = editor.backbone, editor.backbone.path
    t = min(path.timesteps(steps), key=lambda t: abs(t - 500))
    level = path.levels((t,))[t]
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).to(latents)
    noisy = path.noised(latents, noise, level)
    found = path.noise(noisy, backbone.predict(noisy, t, backbone.text([PROMPT]), level), level)
    return 1 - float((found - noise).square().mean() / noise.square().mean())


def _contrast(trace: Trace) -> float:
    """How far a map of the word stands out: its maximum over its mean, the median over sites, timesteps and frames."""
    at = find_word(trace.prompt, WORD)
    maps = [trace.word_map(t, site, at) for t in trace.timesteps for site in trace.sites if site.kind == "cross"]
    return float(np.median([frame.max() / max(float(frame.mean()), 1e-12) for soft in maps for frame in soft]))


def selftest_steps(
    name: str, out: Path, *, dtype: torch.dtype | None = None, steps: int = 10
) -> Generator[Step, None, dict[str, Any]]:
    """Tests the backbone `name` (a short name, a hub id or a folder) and returns the figures.

    `passed` says whether all is well, `words` says it in lines for a person. Writes into the folder `out` `masks.png`,
    the sheet of the word's maps. Raises SettingError for an unknown name, BackboneError where the backbone cannot be
    loaded at all.
    """
    start = time.perf_counter()
    memory = Peak(torch.device(default_device()))
    yield Step("load", 0, 1)
    spec = backbone_spec(name, pipeline_folder(name))
    editor = Editor.load(name, dtype=dtype)
    backbone = editor.backbone
    seconds = {"load": time.perf_counter() - start}
    yield Step("load", 1, 1)
    size = editor.fit(backbone.native_size)
    clip = read_clip(ROOT / "static" / "clips" / CLIP, frames=FRAMES, size=size)
    latents = backbone.encode(clip.frames)
    vae = psnr(backbone.decode(latents), clip.frames)
    explained = _noise_explained(editor, latents, steps)
    begun = time.perf_counter()
    trace = yield from editor.invert_steps(clip, prompt=PROMPT, steps=steps, latents=latents)
    seconds["invert"] = time.perf_counter() - begun
    latents = yield from editor.reconstruct_steps(trace)
    restored = psnr(backbone.decode(latents), clip.frames)
    spread = float(trace.latents[trace.timesteps[-1]].std())
    area, overlap, sheet = 0.0, 0.0, None
    try:
        plan = editor.plan_masks(trace, word=WORD, task=load_preset("attribute"))
        area, overlap = plan.area, iou(plan.shown, _place(size))
        out.mkdir(parents=True, exist_ok=True)
        every = word_arrays(trace, Denoised(latents, plan), PROMPT)
        save_png(out / "masks.png", mask_sheet(every, WORD, frame=0))
        sheet = str(out / "masks.png")
    except MaskError:  # what the last two checks then say
        pass
    seconds["total"] = time.perf_counter() - start
    parts = {part: getattr(backbone, part) for part in ("unet", "vae", "text_encoder")}
    counted = {part: sum(weight.numel() for weight in model.parameters()) for part, model in parts.items()}
    count, wanted = sum(counted.values()), sum((spec.parameters or counted).values())
    fewer = "try more --steps; if that does not help, the UNet's weights or the scheduler's config are not right."
    unet = "the UNet's weights are not those of its config, or are damaged: download them again."
    vae_cure = "vae/ is damaged, or overflows in this precision: download it again, or try --dtype bf16."
    text = "the weights of text encoder and UNet do not belong together, or are damaged: download them again."
    look = f"look at masks.png; if no map shows the car, {text}"
    checks = [
        Check("parameters", count, wanted, wanted, "What the spec says.", unet),
        Check("autoencoder PSNR in dB", vae, 20, INF, "The clip encoded and decoded, the best that can be.", vae_cure),
        Check("noise explained", explained, 0.5, 1, "The share of added noise that the UNet finds.", unet),
        Check("spread of the inverted clip", spread, 0.7, 1.4, "Inversion ends in noise of deviation 1.", fewer),
        Check("reconstruction PSNR in dB", restored, 18, INF, "The clip inverted and denoised again.", fewer),
        Check("contrast of the word maps", _contrast(trace), 1.5, INF, "Maximum over mean; a flat map has 1.", text),
        Check("area of the mask", area, 0.02, 0.6, "The share of the picture that is the car.", look),
        Check(
            "IoU of the mask",
            overlap,
            0.35,
            1,
            "Overlap with the car's true place; all of the frame: 0.3 or less.",
            look,
        ),
    ]
    passed = all(check.passed for check in checks)
    gib = count * backbone.dtype.itemsize / 2**30
    figures = {
        "backbone": backbone.name,
        "passed": passed,
        "device": str(backbone.device),
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "licence": spec.licence,
        "size": size,
        "frames": FRAMES,
        "steps": steps,
        "codebook": codebook_path(backbone.name).name if read_codebook(backbone.name) else None,
        "seconds": {stage: round(value, 2) for stage, value in seconds.items()},
        "weights_gib": round(gib, 3),
        "peak_gib": round(memory.mib() / 1024, 3),
        "sheet": sheet,
        "checks": [check.record() for check in checks],
    }
    return figures | {"words": _words(figures, spec, [str(check) for check in checks])}


def _words(figures: dict[str, Any], spec: BackboneSpec, checks: list[str]) -> list[str]:
    """The figures as lines for a person."""
    book = figures["codebook"]
    known = f"{book}, measured" if book else "none is measured, so each clip's own maps choose (calibrate measures one)"
    w, h = figures["size"]
    halves = f" (in fp16 or bf16 {spec.weight_bytes / 2**30:.2f})" if spec.weight_bytes else ""
    seconds = figures["seconds"]
    verdict = "It looks right." if figures["passed"] else "It does not look right: see what is marked BAD."
    return [
        f"{spec.title}. Licence of the weights: {spec.licence}.",
        f"{FRAMES} frames of {w}x{h} in {figures['steps']} steps on {figures['device']} in {figures['dtype']}; made "
        f"for {spec.frames} frames of {spec.size[0]}x{spec.size[1]}.",
        f"Codebook: {known}.",
        f"Seconds: load {seconds['load']}, invert {seconds['invert']}, all {seconds['total']}.",
        f"GiB of memory: weights {figures['weights_gib']}{halves}, peak {figures['peak_gib']}.",
        *checks,
        f"Word maps: {figures['sheet'] or 'no sheet, for no map holds a mask'}.",
        verdict,
    ]
