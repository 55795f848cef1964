"""What the method costs beside the plain UNet forwards that a job cannot avoid, and beside the arithmetic.

`overhead_invert` and `overhead_edit` are ratios measured in one run: a stage's time without the autoencoder over that
of stock-processor forwards with the very rows of its steps, recorded where ours are (`graphs`). After each step comes
its plain forward, so what else the machine does falls on both alike. `peer` is our denoising without fusion over
diffusers' own text-to-video denoising, on the same rows and step by step in the same way.

`table` has a whole edit's stages, and comes first: seconds, the UNet's floating-point operations, the rate, and its
share of the rate of one large matrix product on this device. `floor_seconds` is what those operations take at that
rate, and `others` are the largest costs of a fused step that are no matrix products. On CUDA `pace` has of each stage
how often the host waited for the device, and the share of its time in which the host was at work.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch

from ..clips.video import Clip
from ..errors import SettingError
from ..families.graphs import Forwards
from ..families.unet3d import UNet3D
from ..jobs.memory import Peak
from ..masks.trace import Trace
from ..methods.base import windows
from ..methods.editor import Denoised, Editor
from ..presets import Preset, load_preset
from ..steps import Step, Steps, finish, mapped
from .speed import beside_peer, circumstances, host_pace, in_turn, matrix_rate, other_costs, row_flops, whole_edit

__all__ = ["extra_peak", "profile_steps"]

T = TypeVar("T")

SOURCE, EDIT, WORD = "a red car driving on the grass", "a blue car driving on the grass", "car"


def _clip(editor: Editor, frames: int, size: tuple[int, int] | None) -> Clip:
    """A moving square, at the backbone's own size where none is given; timing does not depend on what it shows."""
    w, h = editor.fit(size or editor.backbone.native_size)
    video = np.full((frames, h, w, 3), 90, np.uint8)
    for i in range(frames):
        x = i * w // (2 * frames)
        video[i, h // 4 : 3 * h // 4, x : x + w // 2] = (200, 60, 40)
    return Clip(video, 8.0)


def extra_peak(work: Callable[[], T], device: torch.device) -> tuple[float, T]:
    """MiB that `work` needs at its peak beyond what was held before, and what it returns."""
    gc.collect()
    memory = Peak(device)
    result = work()
    return memory.mib() - memory.before, result


def profile_steps(
    editor: Editor,
    *,
    steps: int = 10,
    frames: int = 8,
    size: tuple[int, int] | None = None,
    repeats: int = 5,
    features: str = "auto",
    ratio_steps: int | None = None,
    figures: dict[str, Any] | None = None,
) -> Generator[Step, None, dict[str, Any]]:
    """The table of one whole edit in `steps`, whose own steps are told too, then medians over `repeats` rounds of
    `ratio_steps` each: figures by feature source ("replay", "store"), and the `seconds` of each part with those of what
    it is compared with.

    `ratio_steps` are 6 on CUDA and `steps` elsewhere where they are not given. `figures` is filled as each part becomes
    known, a step's before the step is told, so that whoever is interrupted has what there is; it is what is returned.

    `size` is (width, height) in pixels, rounded down to what the networks take; `features` (as in `Settings`) are those
    of the whole edit in the table. Raises SettingError for more frames than the backbone sees at once.
    """
    if len(editor.spans(frames)) > 1:
        raise SettingError(f"{frames} frames are several spans: profile as many as the network sees at once.")
    backbone, clip = editor.backbone, _clip(editor, frames, size)
    latents = backbone.encode(clip.frames)
    text = backbone.text(["", EDIT, SOURCE])
    task = load_preset("attribute")
    open_task = replace(task, alpha_self=0.0, alpha_cross=0.0, alpha_temporal=0.0, alpha_latent=0.0)
    if ratio_steps is None:
        ratio_steps = min(steps, 6) if backbone.device.type == "cuda" else steps
    ts = backbone.path.timesteps(ratio_steps)
    window = max(windows(task, len(ts)).values())

    kinds = ("replay", "store") if backbone.path.storable else ("replay",)
    n, device = len(ts), backbone.device
    passes = 1 if backbone.path.storable else 2  # a flow's inversion corrects each step

    forwards = Forwards(backbone)

    @torch.inference_mode()
    def plain(rows: int, times: int = 1) -> None:
        for _ in range(times):
            forwards.predict(latents.expand(rows, -1, -1, -1, -1), ts[0], text[:rows], kind="plain")

    def invert(store: bool) -> Steps[Trace]:
        kept = task if store else None
        return editor.invert_steps(clip, prompt=SOURCE, steps=ratio_steps, store=kept, latents=latents)

    def edit(trace: Trace, task: Preset = task, watch: bool = True) -> Steps[Denoised]:
        return editor.edit_steps(trace, prompt=EDIT, task=task, word=WORD, watch=watch)

    def whole(store: bool) -> None:
        finish(edit(finish(invert(store))))

    w, h = clip.frames.shape[2], clip.frames.shape[1]
    figures = {} if figures is None else figures
    figures |= circumstances(backbone) | {"steps": steps, "frames": frames, "size": [w, h], "ratio_steps": n}
    for rows in (1, 2, 3):
        plain(rows)  # the first call of a shape sets up kernels
    yield from _against_arithmetic(editor, clip, steps, tuple(latents.shape), features, figures)
    yield Step("profile", 1, repeats + 2)

    rounds: list[dict[str, tuple[float, float]]] = []  # seconds of each part, and of what it is compared with

    def ratio(part: str) -> float:
        return round(statistics.median(ours / theirs for ours, theirs in (times[part] for times in rounds)), 3)

    for i in range(repeats):
        times: dict[str, tuple[float, float]] = {}
        for kind in kinds:
            edit_rows = [3 if kind == "replay" and j < window else 2 for j in range(n)]
            times[f"invert_{kind}"], trace = in_turn(invert(kind == "store"), [partial(plain, 1, passes)] * n, device)
            times[f"edit_{kind}"], _ = in_turn(edit(trace), [partial(plain, rows) for rows in edit_rows], device)
        if isinstance(backbone, UNet3D):  # diffusers denoises no image model over frames
            times["peer"] = beside_peer(backbone, edit(trace, open_task, False), tuple(latents.shape), n)
        del trace
        rounds.append(times)
        for stage in ("invert", "edit"):
            figures[f"overhead_{stage}"] = {kind: ratio(f"{stage}_{kind}") for kind in kinds}
        figures |= {"peer": ratio("peer") if "peer" in times else None, "rounds": len(rounds)}
        figures["seconds"] = {
            part: [round(statistics.median(sides), 3) for sides in zip(*(one[part] for one in rounds), strict=True)]
            for part in times
        }
        yield Step("profile", i + 2, repeats + 2)
    figures["extra_peak_mib"] = {
        kind: round(extra_peak(partial(whole, kind == "store"), device)[0], 1) for kind in kinds
    }
    forwards.close()
    trace = finish(invert(False))
    figures["others"] = other_costs(lambda: next(edit(trace)), device)
    if device.type == "cuda":
        stages: dict[str, Steps[Any]] = {"invert": invert(False)}
        stages |= {f"edit_{kind}": edit(finish(invert(kind == "store"))) for kind in kinds}
        figures["pace"] = {stage: host_pace(steps, device)[0] for stage, steps in stages.items()}
    yield Step("profile", repeats + 2, repeats + 2)
    return figures


def _against_arithmetic(
    editor: Editor, clip: Clip, steps: int, shape: tuple[int, ...], features: str, figures: dict[str, Any]
) -> Steps[None]:
    """The table of a whole edit, and its floor. While it goes on the table has the seconds and steps so far."""
    backbone = editor.backbone
    rate = matrix_rate(backbone.device, backbone.dtype)
    row = row_flops(backbone, shape)
    so_far: dict[str, dict[str, Any]] = {}
    figures["table"] = so_far
    begun = time.perf_counter()

    def told(step: Step) -> Step:
        before = sum(one["seconds"] for stage, one in so_far.items() if stage != step.stage)
        seconds = time.perf_counter() - begun - before
        so_far[step.stage] = {"seconds": round(seconds, 3), "steps": f"{step.index} of {step.total}"}
        return step

    report = yield from mapped(whole_edit(editor, clip, steps, (SOURCE, EDIT), features), told)
    table: dict[str, dict[str, Any]] = {}
    for stage, seconds in report["seconds"].items():
        work = report["unet"][stage]["rows"] * row if stage in report["unet"] else 0
        table[stage] = {"seconds": round(seconds, 3)}
        if work:
            reached = work / seconds
            table[stage] |= {"tflop": round(work / 1e12, 3), "tflops": round(reached / 1e12, 3)}
            table[stage]["share"] = round(reached / rate, 3)
    table["all, files written"] = {"seconds": round(report["wall"], 3)}
    work = sum(used["rows"] for used in report["unet"].values()) * row
    figures |= {
        "row_tflop": round(row / 1e12, 4),
        "matrix_tflops": round(rate / 1e12, 3),
        "table": table,
        "floor_seconds": round(work / rate, 3),
        "memory": report["memory"],
    }
