"""Does FreeMask work? Edits of rendered scenes, where the true result is known, by every method in one run.

A case (`toyworld.cases`) is inverted once; every method then edits from the same trace with the same steps and
guidance. Each case leaves a file in the output folder, so an interrupted run goes on where it stopped; the
table, its intervals and the pictures are made from those files.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from ..edit import Editor, Steps, finish
from ..errors import MaskError
from ..gallery import save_png
from ..jobs import Step
from ..masks import resize
from ..metrics import psnr, ssim
from ..mmc import iou
from ..presets import load_preset
from ..run import load_editor
from ..toyworld.cases import CASE_TASKS, Case, sample_case
from ..toyworld.classify import CLASSES, Classifier, load_classifier
from ..toyworld.scenes import REPORT, Rendered, Scene, motion, render
from ..video import Clip
from .methods import METHODS, presets
from .profile import extra_peak
from .table import METRICS, tabulate

__all__ = ["Options", "benchmark_steps", "measure_case", "warped_psnr"]

Row = dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every method of a run shares."""

    methods: tuple[str, ...] = METHODS
    steps: int = 25
    guidance: float = 7.5
    frames: int = 8


def warped_psnr(frames: np.ndarray, scene: Scene, masks: np.ndarray) -> float:
    """Temporal consistency by known motion: PSNR in dB between every frame and the one before it, moved as the
    scene moves: the object (`masks`, (f, h, w) bool) with the sprite, the rest with the background."""
    f, h, w, _ = frames.shape
    centres, pans = motion(scene, h, frames=f)
    before, after = [], []
    for i in range(1, f):
        dx, dy = centres[i] - centres[i - 1]
        for where, x, y in ((masks, dx, dy), (~masks, pans[i] - pans[i - 1], 0.0)):
            way = np.array([[1, 0, x], [0, 1, y]], np.float32)
            moved = cv2.warpAffine(frames[i - 1], way, (w, h), flags=cv2.INTER_LINEAR)
            still = cv2.warpAffine(where[i - 1].astype(np.float32), way, (w, h), flags=cv2.INTER_LINEAR) > 0.999
            both = still & where[i]
            before.append(moved[both])
            after.append(frames[i][both])
    return psnr(np.concatenate(before), np.concatenate(after))


def _frame_metrics(case: Case, source: Rendered, true: Rendered, frames: np.ndarray, judge: Classifier) -> Row:
    """What a result's frames tell; PSNRs in dB."""
    either = source.masks | true.masks
    kept = {"style": None, "place": source.masks}.get(case.task, ~either)
    wanted = CLASSES[case.field].index(getattr(case.true, case.field))
    return {
        "true_psnr": psnr(frames, true.frames),
        "true_ssim": ssim(frames, true.frames),
        "inside_psnr": psnr(frames, true.frames, keep=either),
        "outside_psnr": psnr(frames, true.frames, keep=~either),
        "background_psnr": None if kept is None else psnr(frames, source.frames, keep=kept),
        "present": float(judge.judge(frames)[case.field] == wanted),
        "temporal": warped_psnr(frames, case.true, true.masks),
    }


def measure_case(
    editor: Editor, judge: Classifier, case: Case, options: Options
) -> tuple[dict[str, Row], dict[str, np.ndarray]]:
    """Every method's figures and its frames (f, h, w, 3), with the source's and the truth's frames beside them."""
    size = min(editor.backbone.native_size)
    source, true = (render(scene, size, frames=options.frames) for scene in (case.scene, case.true))
    prompt, wanted = case.prompts
    every = replace(load_preset("style"), alpha_self=1.0, alpha_cross=1.0, alpha_temporal=1.0)
    trace = editor.invert(Clip(source.frames, 8.0), prompt=prompt, steps=options.steps, store=every)
    known = presets(case.task)
    rows: dict[str, Row] = {}
    shown = {"source": source.frames, "truth": true.frames}
    for method in options.methods:
        start = time.perf_counter()
        if method == "copy":
            copying = partial(finish, editor.reconstruct_steps(trace))
            peak, latents = extra_peak(copying, editor.backbone.device)
            overlap = None
        else:
            preset = known[method]
            steps = editor.edit_steps(
                trace,
                prompt=wanted,
                task=preset,
                word=case.word,
                guidance=options.guidance,
                mask=source.masks if method == "freemask-oracle" else None,
            )
            try:
                peak, done = extra_peak(partial(finish, steps), editor.backbone.device)
            except MaskError:  # flat maps: this method has no mask here
                continue
            latents = done.latents
            masked = preset.mask != "none" and (preset.delta == 0 or preset.alpha_self or preset.alpha_latent)
            seen = [iou(resize(m, (size, size)), source.masks) for m in done.plan.object_at.values()]
            overlap = float(np.mean(seen)) if masked else None
        seconds = time.perf_counter() - start
        frames = editor.backbone.decode(latents)
        rows[method] = _frame_metrics(case, source, true, frames, judge) | {
            "mask_iou": overlap,
            "seconds": seconds,
            "peak_mib": peak,
        }
        shown[method] = frames
    return rows, shown


def _strip(shown: dict[str, np.ndarray], case: Case) -> np.ndarray:
    """Four frames of each method in a row with its name: (h, w, 3) uint8."""
    rows = []
    for name, frames in shown.items():
        pick = frames[np.linspace(0, len(frames) - 1, 4).round().astype(int)]
        row = np.hstack([cv2.resize(frame, (128, 128), interpolation=cv2.INTER_NEAREST) for frame in pick])
        label = np.full((128, 190, 3), 20, np.uint8)
        cv2.putText(label, name, (12, 70), (226, 228, 234), cv2.FontFace("sans"), 18, 400)
        rows.append(np.hstack([label, row]))
    return np.vstack(rows)


def _name(case: Case) -> str:
    return f"{case.task}-{case.seed}"


def _measure_into(case: Case, *, name: str, options: Options, out: Path, key: list[object], alone: bool) -> None:
    """Measures a case and writes its file and its strip."""
    if not alone:
        torch.set_num_threads(1)
    rows, shown = measure_case(load_editor(name), load_classifier(), case, options)
    save_png(out / "strips" / f"{_name(case)}.png", _strip(shown, case))
    told = {"key": key, "task": case.task, "seed": case.seed, "prompts": case.prompts, "rows": rows}
    part = out / "cases" / f"{_name(case)}.part"
    part.write_text(json.dumps(told))
    part.replace(part.with_suffix(".json"))


def benchmark_steps(
    name: str,
    out: Path,
    options: Options,
    *,
    limit: int = 12,
    seed: int = REPORT,
    tasks: Sequence[str] = tuple(CASE_TASKS),
    workers: int = 0,
) -> Steps[dict[str, Any]]:
    """Measures `limit` cases of each task from `seed` on with the backbone `name` and returns the table
    (`table.tabulate`); `workers` processes measure, or this one where it is 0."""
    key: list[object] = [name, options.steps, options.guidance, options.frames, list(options.methods)]
    cases = [sample_case(task, seed + i) for i in range(limit) for task in tasks]
    for folder in ("cases", "strips"):
        (out / folder).mkdir(parents=True, exist_ok=True)

    def read(case: Case) -> dict[str, Any] | None:
        path = out / "cases" / f"{_name(case)}.json"
        told = json.loads(path.read_text()) if path.exists() else None
        return told if told and told["key"] == key else None

    todo = [case for case in cases if read(case) is None]
    done = len(cases) - len(todo)
    work = partial(_measure_into, name=name, options=options, out=out, key=key, alone=workers == 0)
    if done:
        yield Step("benchmark", done, len(cases))
    if workers and todo:
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            for _ in pool.imap_unordered(work, todo):
                done += 1
                yield Step("benchmark", done, len(cases))
    else:
        for case in todo:
            work(case)
            done += 1
            yield Step("benchmark", done, len(cases))
    measured = [told for case in cases if (told := read(case)) is not None]
    return tabulate(measured, METRICS)
