"""Does FreeMask work? Edits of rendered scenes, where the true result is known, by every method in one run.

A case (`toyworld.cases`) is inverted once; every method then edits from the same trace with the same steps and
guidance. Each case leaves its figures and frames in the output folder, so an interrupted run goes on where it
stopped, and a method whose preset changed is measured again alone. The table, its intervals and the pictures are
made from those files.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import torch

from ..clips.video import Clip
from ..errors import MaskError
from ..families.specs import TOY_CLIP, backbone_folder
from ..jobs.metrics import ClipScore, clip_metrics, load_clip, psnr, ssim
from ..jobs.run import load_editor
from ..masks.candidates import candidates, consensus, extract, resize
from ..masks.mmc import codebook_path, iou
from ..masks.trace import Trace
from ..methods.base import Prepared
from ..methods.editor import Editor
from ..pictures.sheets import save_png
from ..presets import SELECTION_TAU, Preset, load_preset
from ..steps import Step, Steps, finish
from ..toyworld.cases import CASE_TASKS, Case, sample_case
from ..toyworld.classify import CLASSES, WEIGHTS, Classifier, load_classifier
from ..toyworld.scenes import REPORT, Rendered, Scene, motion, render
from ..words.prompts import find_word
from .methods import METHODS, drawn, presets
from .profile import extra_peak
from .table import METRICS, tabulate

__all__ = ["Options", "Row", "benchmark_steps", "made_with", "measure_case", "spread", "strip", "warped_psnr"]

Row = dict[str, float | None]
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every method of a run shares."""

    methods: tuple[str, ...]
    steps: int = 12
    guidance: float = 4.0
    frames: int = 8


@dataclass(frozen=True)
class Judges:
    """The independent models that look at a result's frames."""

    classifier: Classifier
    clip: ClipScore

    @classmethod
    def load(cls) -> Judges:
        return cls(load_classifier(), load_clip("mini"))


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


@dataclass(frozen=True)
class _Inverted:
    """A case with its two clips and the trace of the source's."""

    case: Case
    source: Rendered
    true: Rendered
    trace: Trace
    prepared: dict[str, Prepared] = field(default_factory=dict)  # by methods, for all that want the same
    spent: dict[str, float] = field(default_factory=dict)  # seconds that it took
    drawn: Trace | None = None  # of the same clip with fresh noise at every level, where a method wants that

    def of(self, method: str) -> _Inverted:
        """The same with the trace that a method begins at."""
        return replace(self, trace=self.drawn) if drawn(method) and self.drawn else self

    def mask(self, method: str) -> np.ndarray | None:
        """What is given to a method as the mask (f, h, w) bool."""
        if method.endswith(("-block", "-blocks")):
            return self.fixed(slice(0.6, None) if method.endswith("-block") else slice(0.37, 0.57))
        if method.endswith("-oracle"):
            return self.source.masks
        return np.ones_like(self.source.masks) if method.endswith("-everywhere") else None

    def fixed(self, depth: slice) -> np.ndarray:
        """The mask (f, h, w) bool of some blocks, whatever the model and the clip: the mean of their maps over all
        timesteps. `depth` is from where to where in the network, a share of it; without an end, one block."""
        at = find_word(self.trace.prompt, self.case.word)
        sites = [site for site in self.trace.sites if site.kind == "cross"]
        first = int(depth.start * len(sites))
        chosen = sites[first : max(first + 1, round(depth.stop * len(sites))) if depth.stop else first + 1]
        soft = np.mean([self.trace.word_map(t, site, at) for t in self.trace.timesteps for site in chosen], axis=0)
        return resize(extract(soft, SELECTION_TAU["codebook"]), self.source.masks.shape[1:])

    def figures(self, frames: np.ndarray, judges: Judges) -> Row:
        """What a result's frames tell; PSNRs in dB."""
        case, source, true = self.case, self.source, self.true
        either = source.masks | true.masks
        kept = {"style": None, "place": source.masks}.get(case.task, ~either)
        wanted = CLASSES[case.field].index(getattr(case.true, case.field))
        seen = clip_metrics(judges.clip, frames, source=case.prompts[0], edit=case.prompts[1])
        return {
            "true_psnr": psnr(frames, true.frames),
            "true_ssim": ssim(frames, true.frames),
            "perceptual": judges.classifier.distance(frames, true.frames),
            "inside_psnr": psnr(frames, true.frames, keep=either),
            "outside_psnr": psnr(frames, true.frames, keep=~either),
            "background_psnr": None if kept is None else psnr(frames, source.frames, keep=kept),
            "background_perceptual": None
            if kept is None
            else judges.classifier.distance(frames * kept[..., None], source.frames * kept[..., None]),
            "present": float(judges.classifier.judge(frames)[case.field] == wanted),
            "temporal": warped_psnr(frames, case.true, true.masks),
            "clip": seen["clip"],
            "clip_temporal": seen["clip_temporal"],
        }

    def rank(self, tau: float) -> float:
        """Spearman's ρ, over every candidate, of its IoU with the clip's consensus and with the truth."""
        from scipy.stats import spearmanr

        truth, word = self.source.masks, self.case.word
        size = truth.shape[1], truth.shape[2]
        agreed = resize(extract(consensus(self.trace, word).soft, tau, pool=False), size)
        found = candidates(self.trace, word, tau=tau, size=size).values()
        return float(spearmanr([iou(mask, agreed) for mask in found], [iou(mask, truth) for mask in found]).statistic)


def _clock(editor: Editor) -> float:
    """Seconds of computing: of this process, which other work on the machine does not lengthen, or on a GPU those
    that passed."""
    if editor.backbone.device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def _edit(editor: Editor, judges: Judges, given: _Inverted, method: str, options: Options) -> tuple[Row, Any]:
    """A method's figures and its frames (f, h, w, 3); nothing of either where it finds no mask."""
    preset = presets(given.case.task).get(method)
    start, overlap, rank, guided = _clock(editor), None, None, None
    if preset is None:
        copying = partial(finish, editor.reconstruct_steps(given.trace))
        peak, latents = extra_peak(copying, editor.backbone.device)
        seconds = _clock(editor) - start
    else:
        about: dict[str, Any] = {"task": preset, "word": given.case.word, "guidance": options.guidance}
        steps = editor.edit_steps(
            given.trace, prompt=given.case.prompts[1], mask=given.mask(method), prepared=given.prepared, **about
        )
        prepared_at = start

        def hear(step: Step) -> None:
            nonlocal prepared_at
            if step.stage == "null-text":
                prepared_at = _clock(editor)

        try:
            peak, edited = extra_peak(partial(finish, steps, hear), editor.backbone.device)
        except MaskError:  # flat maps
            return {}, None
        seconds = _clock(editor) - prepared_at
        latents = edited.latents
        if edited.prepared:
            key = next(key for key, made in given.prepared.items() if made is edited.prepared)
            seconds += given.spent.setdefault(key, prepared_at - start)
            guided = editor.backbone.decode(edited.prepared["reached"])
        elif method == "plain":
            again = editor.edit_steps(given.trace, prompt=given.case.prompts[0], **about)
            guided = editor.backbone.decode(finish(again).latents)
        shares = preset.alpha_self, preset.alpha_latent, preset.director
        if preset.mask != "none" and (preset.delta == 0 or any(shares)):
            size = given.source.masks.shape[1], given.source.masks.shape[2]
            masks = edited.plan.object_at.values()
            overlap = float(np.mean([iou(resize(mask, size), given.source.masks) for mask in masks]))
        rank = given.rank(preset.tau) if preset.selection == "adaptive" else None
    frames = editor.backbone.decode(latents)
    cost = {"mask_iou": overlap, "rank": rank, "seconds": seconds, "peak_mib": peak}
    reached = None if guided is None else psnr(guided, given.source.frames)
    return given.figures(frames, judges) | cost | {"guided_psnr": reached}, frames


def measure_case(
    editor: Editor, judges: Judges, case: Case, options: Options
) -> tuple[dict[str, Row], dict[str, np.ndarray]]:
    """The figures of `options.methods` and their frames (f, h, w, 3), with the source's and the truth's frames
    beside them. Methods with the same preset are measured once."""
    size = min(editor.backbone.native_size)
    source, true = (render(scene, size, frames=options.frames) for scene in (case.scene, case.true))
    every = replace(load_preset("style"), alpha_self=1.0, alpha_cross=1.0, alpha_temporal=1.0)
    clip = Clip(source.frames, 8.0)
    about: dict[str, Any] = {"prompt": case.prompts[0], "steps": options.steps}
    trace = editor.invert(clip, **about, store=every if editor.backbone.path.storable else None)
    noisy = editor.invert(clip, **about, drawn=True) if any(map(drawn, options.methods)) else None
    inverted = _Inverted(case, source, true, trace, drawn=noisy)
    shown = {"source": source.frames, "truth": true.frames}
    rows: dict[str, Row] = {}
    known = presets(case.task)
    done: dict[tuple[Preset | None, str], str] = {}
    for method in options.methods:
        given = inverted.of(method)
        own = "" if given.mask(method) is None else method
        twin = done.setdefault((known.get(method), own), method)
        if twin == method:
            rows[method], frames = _edit(editor, judges, given, method, options)
        else:
            rows[method], frames = rows[twin], shown.get(twin)
        if frames is not None:
            shown[method] = frames
    return rows, shown


def strip(shown: dict[str, np.ndarray]) -> np.ndarray:
    """Four frames of each method in a row with its name: (h, w, 3) uint8."""
    rows = []
    for name, frames in shown.items():
        pick = frames[np.linspace(0, len(frames) - 1, 4).round().astype(int)]
        row = np.hstack([cv2.resize(frame, (128, 128), interpolation=cv2.INTER_NEAREST) for frame in pick])
        label = np.full((128, 300, 3), 20, np.uint8)
        cv2.putText(label, name, (12, 70), (226, 228, 234), cv2.FontFace("sans"), 18, 400)
        rows.append(np.hstack([label, row]))
    return np.vstack(rows)


def _name(case: Case) -> str:
    return f"{case.task}-{case.seed}"


@lru_cache(maxsize=1)
def made_with(name: str) -> str:
    """A digest of the backbone, its codebook and the judges: what stands in files besides the code."""
    digest = hashlib.sha256()
    folders = (backbone_folder(name), TOY_CLIP)
    weights = [path for folder in folders if folder for path in sorted(folder.rglob("*.safetensors"))]
    for path in (*weights, WEIGHTS, codebook_path(name)):
        digest.update(path.read_bytes() if path.exists() else b"")
    return digest.hexdigest()[:16]


def _fingerprint(method: str, task: str, name: str, options: Options) -> list[object]:
    """What a method's figures depend on, besides the case and the code, as JSON has it."""
    preset = presets(task).get(method)
    told = [made_with(name), options.steps, options.guidance, options.frames, asdict(preset) if preset else None]
    return list(json.loads(json.dumps(told)))


def _read(case: Case, name: str, options: Options, out: Path) -> dict[str, Any]:
    """What is known of a case: the rows of all methods that were made as they would be now."""
    told: dict[str, Any] = {"task": case.task, "seed": case.seed, "prompts": case.prompts, "made": {}, "rows": {}}
    path = out / "cases" / f"{_name(case)}.json"
    if path.exists():
        kept = json.loads(path.read_text())
        for method in METHODS:
            made = _fingerprint(method, case.task, name, options)
            if kept.get("made", {}).get(method) == made:
                told["made"][method], told["rows"][method] = made, kept["rows"][method]
    return told


def _measure_into(case: Case, *, name: str, options: Options, out: Path, alone: bool) -> None:
    """Measures the methods that a case lacks and writes its figures, its frames and its strip."""
    if not alone:
        torch.set_num_threads(1)
    told = _read(case, name, options, out)
    missing = tuple(method for method in options.methods if method not in told["rows"])
    rows, shown = measure_case(load_editor(name), Judges.load(), case, replace(options, methods=missing))
    path = out / "frames" / f"{_name(case)}.npz"
    if told["rows"] and path.exists():
        with np.load(path) as kept:
            shown |= {method: kept[method] for method in kept.files if method in told["rows"]}
    told["rows"] |= rows
    told["made"] |= {method: _fingerprint(method, case.task, name, options) for method in rows}
    shown = {method: shown[method] for method in ("source", "truth", *METHODS) if method in shown}
    with path.with_suffix(".part").open("wb") as part:
        np.savez_compressed(part, allow_pickle=False, **shown)
    path.with_suffix(".part").replace(path)
    save_png(out / "strips" / f"{_name(case)}.png", strip(shown))
    written = out / "cases" / f"{_name(case)}.part"
    written.write_text(json.dumps(told))
    written.replace(written.with_suffix(".json"))


def spread(work: Callable[[T], R], cases: Sequence[T], workers: int) -> Iterator[R]:
    """What `work` gives for each case, in order: by so many processes, or by this one where that is 0."""
    if not (workers and cases):
        yield from map(work, cases)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(work, cases)


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
    cases = [sample_case(task, seed + i) for i in range(limit) for task in dict.fromkeys(tasks)]
    for folder in ("cases", "frames", "strips"):
        (out / folder).mkdir(parents=True, exist_ok=True)

    def rows(case: Case) -> dict[str, Row]:
        """The case's rows of the methods asked for, in their order."""
        found = _read(case, name, options, out)["rows"]
        return {method: found[method] for method in options.methods if method in found}

    todo = [case for case in cases if len(rows(case)) < len(options.methods)]
    done = len(cases) - len(todo)
    work = partial(_measure_into, name=name, options=options, out=out, alone=workers == 0)
    if done:
        yield Step("benchmark", done, len(cases))
    for _ in spread(work, todo, workers):
        done += 1
        yield Step("benchmark", done, len(cases))
    return tabulate([{"task": case.task, "rows": rows(case)} for case in cases], METRICS)
