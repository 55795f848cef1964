"""Measures a backbone's codebook: which sites and timesteps hold good masks (FreeMask Sec. 4.1, Eq. 2-6).

Clips with known masks are inverted with their prompts, and every candidate mask of the named word is held
against the truth. A finished clip is kept in a file beside the result, so an interrupted run goes on where
it stopped; a clip that cannot be used is named, skipped and counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import yaml

from ..clips.video import Clip
from ..errors import ClipError, FreeMaskError, PromptError
from ..masks.candidates import candidates
from ..masks.mmc import Codebook, iou, summarise
from ..masks.trace import Trace
from ..methods.editor import Editor
from ..steps import Step, Steps
from ..toyworld.scenes import CALIBRATE, render, sample_scene
from ..words.prompts import find_word

__all__ = ["Known", "Sample", "calibrate_steps", "davis_samples", "example_maps", "toyworld_samples"]

THRESHOLD = 127  # of a mask image, 0 to 255: brighter is object


class Known(NamedTuple):
    """A clip with the true mask of a word: `masks` (f, h, w) bool, True = object."""

    clip: Clip
    masks: np.ndarray
    prompt: str
    word: str


@dataclass(frozen=True)
class Sample:
    """A named clip that is loaded when its turn comes, at a size (width, height) and length in frames."""

    name: str
    load: Callable[[Editor, int], Known]


def toyworld_samples(count: int, first: int = CALIBRATE) -> list[Sample]:
    """Rendered scenes with the seeds `first` … `first + count`, at the backbone's own size."""
    return [Sample(f"scene {seed}", partial(_rendered, seed)) for seed in range(first, first + count)]


def _rendered(seed: int, editor: Editor, frames: int) -> Known:
    scene = sample_scene(seed)
    clip = render(scene, min(editor.backbone.native_size), frames=frames)
    return Known(Clip(clip.frames, 8.0), clip.masks, clip.caption, scene.object)


def davis_samples(folder: Path) -> list[Sample]:
    """The clips of a folder in DAVIS's form, `<clip>/frames/*`, `<clip>/masks/*`, `<clip>/prompt.yaml` with
    `prompt` and `word`; or the one clip that the folder is. Raises ClipError where there is none."""
    if not folder.is_dir():
        raise ClipError(f'There is no folder "{folder}": check the path.')
    found = [folder] if (folder / "frames").is_dir() else sorted(p for p in folder.iterdir() if p.is_dir())
    if not found:
        raise ClipError(f'"{folder}" holds no clips: each is a folder with frames/, masks/ and prompt.yaml.')
    return [Sample(path.name, partial(_davis, path)) for path in found]


def _images(folder: Path, mode: int) -> list[np.ndarray]:
    if not folder.is_dir():
        raise ClipError(f"{folder.name}/ is missing.")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    found = []
    for path in files:
        image = cv2.imdecode(np.fromfile(path, np.uint8), mode) if path.stat().st_size else None
        if image is None:
            raise ClipError(f"{folder.name}/{path.name} is no readable picture.")
        found.append(image)
    return found


def _davis(folder: Path, editor: Editor, frames: int) -> Known:
    try:
        told = yaml.safe_load((folder / "prompt.yaml").read_text())
        prompt, word = str(told["prompt"]), str(told["word"])
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        raise PromptError("prompt.yaml is missing or lacks prompt and word.") from None
    pictures = _images(folder / "frames", cv2.IMREAD_COLOR_RGB)[:frames]
    masks = _images(folder / "masks", cv2.IMREAD_GRAYSCALE)[:frames]
    if len(pictures) < frames or len(masks) < frames:
        raise ClipError(f"There are {len(pictures)} frames and {len(masks)} masks, and {frames} are asked of each.")
    if len({picture.shape[:2] for picture in pictures + masks}) != 1:
        raise ClipError("The frames and masks are of unequal sizes.")
    h, w = masks[0].shape
    size = editor.frame_size(w, h)
    known = np.stack([_covered(mask, size) for mask in masks]) > THRESHOLD
    if not known.any():
        raise ClipError("The masks are empty.")
    return Known(Clip(np.stack([_covered(picture, size) for picture in pictures]), 8.0), known, prompt, word)


def _covered(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The picture resized until it covers (width, height), then cropped about the centre."""
    (h, w), (width, height) = image.shape[:2], size
    scale = max(width / w, height / h)
    grown = (max(width, round(w * scale)), max(height, round(h * scale)))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    large = cv2.resize(image, grown, interpolation=way)
    x, y = (grown[0] - width) // 2, (grown[1] - height) // 2
    return np.asarray(large[y : y + height, x : x + width])


def _overlaps(trace: Trace, known: Known, tau: float) -> np.ndarray:
    """IoU (t, l) in [0, 1] of every candidate with the truth, at the frames' size."""
    h, w = known.masks.shape[1:]
    masks = candidates(trace, known.word, tau=tau, size=(h, w))
    sites = [site.name for site in trace.sites if site.kind == "cross"]
    return np.array([[iou(masks[t, site], known.masks) for site in sites] for t in trace.timesteps])


def _finished(part: Path, key: list[object]) -> Iterator[tuple[str, np.ndarray]]:
    """The clips that an earlier run with the same settings measured; a line cut off in writing is left out."""
    for line in part.read_text().splitlines() if part.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if row["key"] == key:
            yield row["name"], np.array(row["iou"])


def calibrate_steps(
    editor: Editor,
    samples: list[Sample],
    *,
    dataset: str,
    part: Path,
    steps: int = 25,
    frames: int = 8,
    tau: float = 0.4,
) -> Steps[Codebook]:
    """Inverts every clip and returns the codebook; finished clips are kept in `part`, a line of JSON each.

    Raises ClipError where no clip could be used.
    """
    key: list[object] = [editor.backbone.name, dataset, steps, frames, tau]
    found = dict(_finished(part, key))
    skipped: list[str] = []
    for i, sample in enumerate(samples):
        if sample.name not in found:
            try:
                known = sample.load(editor, frames)
                trace = editor.invert(known.clip, prompt=known.prompt, steps=steps)
                found[sample.name] = _overlaps(trace, known, tau)
            except FreeMaskError as error:
                skipped.append(f"{sample.name}: {error}")
            else:
                row = {"key": key, "name": sample.name, "iou": np.round(found[sample.name], 5).tolist()}
                with part.open("a") as file:
                    file.write(json.dumps(row) + "\n")
        yield Step("calibrate", i + 1, len(samples))
    measured = {sample.name: found[sample.name] for sample in samples if sample.name in found}
    if not measured:
        raise ClipError(f"No clip of {dataset} could be used: {'; '.join(skipped)}")
    backbone = editor.backbone
    return summarise(
        measured,
        backbone=backbone.name,
        dataset=dataset,
        date=date.today().isoformat(),
        tau=tau,
        steps=steps,
        frames=frames,
        sites=[site.name for site in backbone.sites if site.kind == "cross"],
        timesteps=backbone.path.timesteps(steps),
        skipped=skipped,
    )


def example_maps(
    editor: Editor, sample: Sample, *, steps: int, frames: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """One clip for the figure: its middle frame (h, w, 3) uint8, and by site that frame's maps (t, h', w') float32."""
    known = sample.load(editor, frames)
    trace = editor.invert(known.clip, prompt=known.prompt, steps=steps)
    at, middle = find_word(known.prompt, known.word), frames // 2
    sites = [site for site in trace.sites if site.kind == "cross"]
    maps = {s.name: np.stack([trace.word_map(t, s, at)[middle] for t in trace.timesteps]) for s in sites}
    return known.clip.frames[middle], maps
