"""The worker's two bodies: the real one, and one that paints circles so that the page is tried in seconds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, Protocol, cast

import cv2
import numpy as np

from ..clips.video import Clip, read_clip, write_clip
from ..errors import DeviceLost, SettingError
from ..jobs.check import check
from ..jobs.questions import Question
from ..pictures.mask_zip import save_mask_zip
from ..pictures.sheets import distances_figure, save_png
from ..pictures.word_maps import concept_file, save_word, save_word_files
from ..settings import LABELS, MASKS, NULL_TEXT, Settings
from ..steps import Step
from ..words.prompts import align, warnings, words

__all__ = ["Body", "diffusion", "outliving", "painted_circles"]


class Body(Protocol):
    """Edits a clip by settings into a folder that exists, with a second one where inversions are kept for the visitor,
    and returns the report; or answers a question about an edit that was made so, whose folder `out` then is."""

    def __call__(
        self, clip: Path, settings: Settings, out: Path, kept: Path, question: Question | None = None
    ) -> Generator[Step, None, dict[str, Any]]: ...


GLANCES = 8  # pictures of an edit on its way


def diffusion(
    clip: Path, settings: Settings, out: Path, kept: Path, question: Question | None = None
) -> Generator[Step, None, dict[str, Any]]:
    """The method itself. torch is imported here, in the worker's thread, so that the page paints before it."""
    yield Step("load", 0, 1)
    from ..jobs.answers import answer_steps
    from ..jobs.run import run_steps
    from ..toyworld.likeness import likeness

    if question:
        return (yield from answer_steps(clip, settings, out, question, kept=kept))

    return (yield from run_steps(clip, settings, out, kept=kept, glances=GLANCES, likeness=likeness))


def outliving(body: Body, start_anew: Callable[[], None]) -> Body:
    """The same body, after which the server starts anew where the GPU is lost to its process."""

    def run(*given: Any) -> Generator[Step, None, dict[str, Any]]:
        try:
            return (yield from body(*given))
        except DeviceLost:
            start_anew()
            raise

    return cast(Body, run)


def painted_circles(
    clip: Path,
    settings: Settings,
    out: Path,
    kept: Path,
    question: Question | None = None,
    *,
    pause: Callable[[], object] = lambda: time.sleep(0.15),
) -> Generator[Step, None, dict[str, Any]]:
    """The same files and steps as the real body with a coloured circle for an edit; `pause` runs before each step."""
    if question:
        return (yield from _answer(settings, out, question, pause))
    asked = check(clip, settings)
    word, settings = asked.word, asked.settings
    source = read_clip(clip, frames=settings.frames, start=settings.start, size=settings.size)
    n, tuned = settings.steps, settings.preset().null_text_steps

    def stages(**totals: int) -> Generator[Step, None, None]:
        for stage, total in totals.items():
            for index in range(bool(total) + total):
                if index:
                    pause()
                yield Step(stage, index, total)

    yield from stages(load=1, invert=n, **({"null-text": n} if tuned else {}), edit=n)
    yield Step("decode", 0, 1)
    pause()
    blurred = Clip(np.stack([cv2.GaussianBlur(frame, (3, 3), 0) for frame in source.frames]), source.fps)
    painted = Clip(np.stack([_circle(frame, i) for i, frame in enumerate(source.frames)]), source.fps)
    write_clip(out / "source.mp4", source)
    write_clip(out / "edited.mp4", painted)
    delta = settings.preset().delta
    timesteps = np.linspace(1, 961, settings.steps).astype(int)
    chosen = int(timesteps[np.abs(timesteps - 200).argmin()])
    fresh, told = align(settings.source, settings.edit).changed, words(settings.edit)
    tokens = [*words(settings.source), *(told[j] for j in fresh)]
    every = _maps(tokens, fresh, timesteps, settings.frames, chosen if delta else -1)
    save_word_files(out, every)
    save_mask_zip(out / MASKS, every["mask"])
    if asked.masks is not None and settings.changes:
        save_mask_zip(out / LABELS, asked.masks)
    if tuned:
        distances = np.outer(np.linspace(0.02, 0.03, n), np.linspace(1, 0.5, tuned + 1)).astype(np.float32)
        save_png(out / NULL_TEXT, distances_figure(distances, timesteps[::-1].tolist()))
    null_text = {"made": "made", "distances": distances.tolist()} if tuned else None
    report: dict[str, Any] = {
        "settings": settings.record(word),
        "words": {"word": word, "delta": delta, "warnings": warnings(settings.source, settings.edit, word, delta)},
        "mask": {
            "site": SITES[3],
            "timestep": chosen if delta else "every",
            "origin": "painted" if settings.masks else "picked" if settings.site else "adaptive",
            "kind": "mmc",
            "tau": settings.preset().tau,
            "kept": "background",
            "area": 0.196,
        },
        "clip": {"width": source.frames.shape[2], "height": source.frames.shape[1]}
        | {"frames": len(source.frames), "fps": source.fps},
        "null_text": null_text,
        "seconds": {"total": 1.0},
        "metrics": {},
    }
    (out / "report.json").write_text(json.dumps(report, indent=2))
    yield Step("decode", 1, 1, result=report)
    yield from stages(reconstruct=n)
    write_clip(out / "reconstruction.mp4", blurred)
    report = report | {"metrics": {"reconstruction_psnr": 34.5, "background_psnr": 31.2}}
    (out / "report.json").write_text(json.dumps(report, indent=2))
    return report


def _answer(
    settings: Settings, out: Path, question: Question, pause: Callable[[], object]
) -> Generator[Step, None, dict[str, Any]]:
    """Made up, as the edit is; of the layer itself only that nothing is known."""
    if question.kind != "concept":
        raise SettingError("The painted edit has no layers to look into.")
    timesteps = np.linspace(1, 961, settings.steps).astype(int)
    for index in range(settings.steps):
        pause()
        yield Step("concepts", index + 1, settings.steps)
    made = _maps([question.text], (), timesteps, settings.frames, -1)
    save_word(concept_file(out, question.text), made, 0)
    return {}


SITES = [
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2",
    "mid_block.attentions.0.transformer_blocks.0.attn2",
    "up_blocks.1.attentions.1.transformer_blocks.0.attn2",
    "up_blocks.2.attentions.0.transformer_blocks.0.attn2",
    "up_blocks.2.attentions.1.transformer_blocks.0.attn2",
]


def _circle(frame: np.ndarray, at: int) -> np.ndarray:
    h, w = frame.shape[:2]
    centre = (int(w * (0.35 + 0.03 * at)), h // 2)
    return np.asarray(cv2.circle(frame.copy(), centre, min(h, w) // 4, (64, 160, 255), -1, cv2.LINE_AA))


def _maps(
    tokens: list[str], fresh: tuple[int, ...], timesteps: np.ndarray, frames: int, chosen: int
) -> dict[str, np.ndarray]:
    """Blobs that sharpen toward low noise, in two grids; the last tokens are the edit prompt's words at `fresh`."""
    stored: dict[str, Any] = {"timesteps": timesteps, "tokens": np.array(tokens), "sites": np.array(SITES)}
    stored["edit_words"] = np.array(fresh, np.int64)
    stored["chosen"] = np.array([[site == SITES[3] and chosen in (-1, t) for site in SITES] for t in timesteps])
    for side, sites in ((16, [SITES[0], *SITES[4:]]), (8, SITES[1:4])):
        t, s, k, f, y, x = np.ogrid[
            : len(timesteps), : len(sites), : len(tokens), :frames, 0 : 1 : side * 1j, 0 : 1 : side * 1j
        ]
        width = 0.05 + 0.3 * t / len(timesteps) + 0.02 * s
        away = (x - 0.3 - 0.03 * f - 0.1 * k) ** 2 + (y - 0.5) ** 2
        stored[f"maps_{side}x{side}"] = np.rint(255 * np.exp(-away / width**2)).astype(np.uint8)
        stored[f"scales_{side}x{side}"] = np.full((len(timesteps), len(sites), len(tokens), frames), 0.1, np.float32)
        stored[f"sites_{side}x{side}"] = np.array(sites)
    stored["mask"] = stored["maps_16x16"][0, -1, 0] > 76
    return stored
