"""Several changes at once: edits of rendered scenes of two objects, where the true result is known, by every method.

A case (`toyworld.pairs`) is inverted once; every method edits from that trace, but `sequential`, which makes one change
after the other, each on an inversion of the edit before. `freemask` makes all in one pass, `freemask-oracle` the same
under the true masks, and `freemask-told` without shutting words out of the other object. `copy` is the reconstruction.

Each object is judged alone: what its true mask shows, on the true background, as large as the classifier's own objects.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from ..changes import every_change
from ..clips.video import Clip
from ..errors import MaskError
from ..jobs.metrics import psnr
from ..jobs.run import load_editor
from ..masks.candidates import resize
from ..masks.mmc import iou
from ..masks.trace import Trace
from ..methods.editor import Editor
from ..methods.several import parts_of
from ..pictures.sheets import save_png
from ..presets import load_preset
from ..steps import Step, Steps, finish
from ..toyworld.classify import CLASSES, Classifier, load_classifier
from ..toyworld.pairs import PAIR_CASES, Pair, PairCase, RenderedPair, pair_caption, render_pair, sample_pair_case
from ..toyworld.scenes import REPORT, empty
from ..words.differences import differences
from .benchmark import Options, Row, made_with, spread, strip
from .table import tabulate

__all__ = ["PAIR_METHODS", "PAIR_METRICS", "isolated", "measure_pair", "pair_markdown", "pairs_steps", "shows"]

PAIR_METHODS = ("copy", "plain", "p2p", "sequential", "freemask", "freemask-told", "freemask-oracle")
PAIR_METRICS = ("true_psnr", "inside_psnr", "outside_psnr", "both", "leakage", "bystander_psnr", "mask_iou")
FILLED = 0.68  # of a frame's side, that an object alone fills: the middle of the classifier's own


def isolated(frames: np.ndarray, mask: np.ndarray, pair: Pair) -> np.ndarray:
    """One object of clips (f, h, w, 3): what its `mask` (f, h, w) bool shows, on the pair's empty place, cut out so
    that the object fills the frame as a scene's only one does."""
    size = frames.shape[1]
    found = []
    for frame, own, ground in zip(frames, mask, empty(pair.scenes[0], size, frames=len(frames)), strict=True):
        alone = np.where(own[..., None], frame, ground * 255).astype(np.float32)
        ys, xs = np.nonzero(own) if own.any() else (np.array([0, size - 1]),) * 2
        side = max(np.ptp(ys), np.ptp(xs), 8) / FILLED
        k = size / side
        x, y = (xs.min() + xs.max()) / 2, (ys.min() + ys.max()) / 2
        way = np.array([[k, 0, size / 2 - k * x], [0, k, size / 2 - k * y]], np.float32)
        cut = cv2.warpAffine(alone, way, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        found.append(cut.clip(0, 255).astype(np.uint8))
    return np.stack(found)


def shows(judge: Classifier, frames: np.ndarray, mask: np.ndarray, pair: Pair) -> tuple[str | None, str | None]:
    """The object and the colour that a judge sees under a mask."""
    seen = judge.judge(isolated(frames, mask, pair))
    return CLASSES["object"][seen["object"]], CLASSES["colour"][seen["colour"]]


def _figures(judge: Classifier, case: PairCase, source: RenderedPair, true: RenderedPair, frames: np.ndarray) -> Row:
    """What a result's frames tell; PSNRs in dB. `both`: every object that changes is as wanted. `leakage`: one shows
    what the other should, and should not itself."""
    either = (source.masks | true.masks).any(0)
    wanted = [(scene.object, scene.colour) for scene in case.true.told]
    before = [(scene.object, scene.colour) for scene in case.pair.told]
    seen = [shows(judge, frames, mask, case.true) for mask in true.masks]
    changed = [i for i in range(2) if wanted[i] != before[i]]
    leaks = []
    for i in range(2):
        for part in range(2):
            other = wanted[1 - i][part]
            if other not in (wanted[i][part], before[i][part]) and other != before[1 - i][part]:
                leaks.append(seen[i][part] == other)
    bystander = next((i for i in range(2) if i not in changed), None)
    held = None if bystander is None else source.masks[bystander]
    return {
        "true_psnr": psnr(frames, true.frames),
        "inside_psnr": psnr(frames, true.frames, keep=either),
        "outside_psnr": psnr(frames, true.frames, keep=~either),
        "both": float(all(seen[i] == wanted[i] for i in changed)),
        "leakage": float(any(leaks)) if leaks else None,
        "bystander_psnr": None if held is None else psnr(frames, source.frames, keep=held),
    }


def _one_by_one(editor: Editor, case: PairCase, frames: np.ndarray, options: Options) -> np.ndarray:
    """The changes one after the other, each an edit of its own of the frames that the one before left."""
    before = case.pair
    for after in case.stages:
        prompts = pair_caption(before), pair_caption(after)
        change = next(one for one in differences(*prompts) if one.task != "keep")
        word = case.true.told[0].object if change.task == "place" else change.word
        trace = editor.invert(Clip(frames, 8.0), prompt=prompts[0], steps=options.steps)
        done = editor.edit(trace, prompt=prompts[1], task=change.task, word=word, guidance=options.guidance)
        frames, before = done.clip.frames, after
    return frames


def _frames(
    editor: Editor, method: str, case: PairCase, source: RenderedPair, trace: Trace, options: Options
) -> tuple[np.ndarray, float | None]:
    """A method's frames, and of FreeMask's the mean IoU of its objects' masks with the true ones."""
    before, after = case.prompts
    if method == "copy":
        return editor.reconstruct(trace).frames, None
    if method == "sequential":
        return _one_by_one(editor, case, source.frames, options), None
    if not method.startswith("freemask"):
        task = "shape" if case.kind in ("objects", "swap", "all") else "attribute"
        told = editor.edit(
            trace, prompt=after, task=task, method=method, word=case.pair.told[0].object, guidance=options.guidance
        )
        return told.clip.frames, None
    parts = parts_of(every_change(before, after), before, after, lambda change: load_preset(change.done_as))
    truth = {scene.object: mask for scene, mask in zip(case.pair.told, source.masks, strict=True)}
    if method == "freemask-told":
        parts = tuple(replace(part, edit=()) for part in parts)
    if method == "freemask-oracle":
        parts = tuple(replace(part, mask=truth.get(part.word)) for part in parts)
    steps = editor.edit_steps(
        trace, prompt=after, task=parts[0].task, word=parts[0].word, guidance=options.guidance, parts=parts
    )
    done = finish(steps)
    size = source.masks.shape[2:]
    found = [
        iou(resize(plan.shown, (size[0], size[1])), truth[part.word])
        for part, plan in zip(parts, done.plans, strict=True)
        if plan
    ]
    return editor.decode(done.latents, trace.clip).frames, float(np.mean(found))


def measure_pair(editor: Editor, judge: Classifier, case: PairCase, options: Options) -> tuple[dict[str, Row], Any]:
    """The figures of `options.methods`, nothing where one finds no mask, and the frames (f, h, w, 3) of each, with the
    source's and the truth's before them."""
    size = min(editor.backbone.native_size)
    source, true = (render_pair(pair, size, frames=options.frames) for pair in (case.pair, case.true))
    trace = editor.invert(Clip(source.frames, 8.0), prompt=case.prompts[0], steps=options.steps)
    rows: dict[str, Row] = {}
    shown = {"source": source.frames, "truth": true.frames}
    for method in options.methods:
        try:
            shown[method], overlap = _frames(editor, method, case, source, trace, options)
        except MaskError:
            rows[method] = {}
            continue
        rows[method] = _figures(judge, case, source, true, shown[method]) | {"mask_iou": overlap}
    return rows, shown


def _measure_into(case: PairCase, *, name: str, options: Options, out: Path, alone: bool) -> dict[str, Any]:
    """A case's figures, from its file where they were made as they would be now; else measured, and its strip drawn."""
    if not alone:
        torch.set_num_threads(1)
    made = json.loads(json.dumps([made_with(name), options.steps, options.guidance, options.frames, options.methods]))
    path = out / "cases" / f"{case.kind}-{case.seed}.json"
    if path.exists() and (kept := json.loads(path.read_text()))["made"] == made:
        return dict(kept)
    rows, shown = measure_pair(load_editor(name), load_classifier(), case, options)
    save_png(out / "strips" / f"{case.kind}-{case.seed}.png", strip(shown))
    told = {"task": case.kind, "seed": case.seed, "prompts": case.prompts, "made": made, "rows": rows}
    path.with_suffix(".part").write_text(json.dumps(told))
    path.with_suffix(".part").replace(path)
    return told


def pairs_steps(
    name: str,
    out: Path,
    options: Options,
    *,
    limit: int = 6,
    seed: int = REPORT,
    kinds: Sequence[str] = PAIR_CASES,
    workers: int = 0,
) -> Steps[dict[str, Any]]:
    """Measures `limit` cases of each kind from `seed` on with the backbone `name` and returns the table
    (`table.tabulate`); `workers` processes measure, or this one where it is 0."""
    cases = [sample_pair_case(kind, seed + i) for i in range(limit) for kind in dict.fromkeys(kinds)]
    for folder in ("cases", "strips"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    work = partial(_measure_into, name=name, options=options, out=out, alone=workers == 0)
    found = []
    for told in spread(work, cases, workers):
        found.append(told)
        yield Step("benchmark", len(found), len(cases))
    return tabulate(found, PAIR_METRICS)


def pair_markdown(table: dict[str, Any]) -> str:
    """The table for people, a section a kind of case, with how far freemask is from the others in PSNR to the truth."""
    parts = []
    against = {(line["task"], line["against"]): line for line in table["paired"] if line["metric"] == "true_psnr"}
    for kind in dict.fromkeys(line["task"] for line in table["rows"]):
        parts += [f"## {kind}\n", "| method | " + " | ".join(PAIR_METRICS) + " | freemask minus it |"]
        parts.append("|" + "---|" * (len(PAIR_METRICS) + 2))
        for line in table["rows"]:
            if line["task"] == kind:
                cells = [_cell(line[metric], 1 if metric.endswith("psnr") else 2) for metric in PAIR_METRICS]
                paired = against.get((kind, line["method"]))
                cells.append("{mean:+.1f} ({low:+.1f} to {high:+.1f})".format(**paired) if paired else "")
                parts.append(f"| {line['method']} | " + " | ".join(cells) + " |")
        parts.append("")
    return "\n".join(parts)


def _cell(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
