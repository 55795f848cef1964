"""What an edit leaves in its folder: videos, every word's maps, and the mask.

That is what the page shows. What more a person may ask for is made from these files: `extras`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ..clips.stills import write_png
from ..clips.strides import of_frames
from ..clips.video import Clip, read_clip, write_clip
from ..families.sites import Site
from ..masks.candidates import resize
from ..masks.trace import SoftMap, Trace
from ..methods.editor import Denoised
from ..pictures.compare import outlined
from ..pictures.mask_zip import read_mask_zip, save_mask_zip
from ..pictures.sheets import Arrays, distances_figure, save_png
from ..pictures.word_maps import save_word_files
from ..settings import CHANGE_PICTURE, LABELS, MASKS, NULL_TEXT, REPORT
from ..words.prompts import words

__all__ = ["made_with", "read_kept", "read_report", "read_videos", "save_edit", "tidy", "word_arrays"]


def made_with(backbone: str) -> str:
    """The comment in every file that a model made."""
    return f"Made with AI: FreeMask, a text-driven edit with the model {backbone}."


def save_edit(
    out: Path,
    trace: Trace,
    edited: Denoised,
    result: Clip,
    *,
    prompt: str,
    drawn: np.ndarray | None = None,
    guided: Clip | None = None,
    audio: Path,
    start: float = 0.0,
    note: str,
    maps: bool = True,
) -> None:
    """Writes all but the reconstruction and the report of an edit under a prompt: source and edit with the sound of
    `audio` from `start` seconds on, what was made told by a `note`, the mask (f, h, w) bool in use, or the one `drawn`
    that it was made from, and drawn labels of several changes beside it, of null-text optimisation the reconstruction
    `guided` by it and its distances, and every word's `maps` where they are wanted."""

    def video(name: str, shown: Clip, told: str) -> None:
        write_clip(out / f"{name}.mp4", shown, audio_from=audio, start=start, note=told)

    def distances() -> None:
        losses = edited.prepared["losses"].cpu().numpy()
        save_png(out / NULL_TEXT, distances_figure(losses, trace.timesteps[::-1]))

    out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:  # encoders leave the interpreter to each other
        writing = [pool.submit(video, "source", trace.clip, ""), pool.submit(video, "edited", result, note)]
        if len(result.frames) == 1:
            writing.append(pool.submit(write_png, out / "edited.png", result.frames[0], note=note))
        if guided:
            writing += [pool.submit(video, "guided", guided, note), pool.submit(distances)]
        if maps:
            save_word_files(out, word_arrays(trace, edited, prompt))
        for n, plan in enumerate(edited.plans, 1):
            if plan:
                middle = len(trace.clip.frames) // 2
                save_png(out / CHANGE_PICTURE.format(n), outlined(trace.clip.frames[middle], plan.shown[middle]))
        save_mask_zip(out / MASKS, edited.plan.shown if drawn is None or edited.plans else drawn)
        if drawn is not None and edited.plans:
            save_mask_zip(out / LABELS, drawn)
    for done in writing:
        done.result()


def tidy(out: Path) -> None:
    """Takes away what an edit that was killed has left half written in its folder. Raises OSError where the folder, or
    one of that name, cannot be written: before the edit rather than after it."""
    there = out.exists()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=out):
        pass
    for part in out.glob(".*.part"):
        part.unlink()
    if not there:
        out.rmdir()


def read_report(out: Path) -> dict[str, Any]:
    """The report in an edit's folder. Raises OSError or ValueError where there is none."""
    report: dict[str, Any] = json.loads((out / REPORT).read_text(encoding="utf-8"))
    return report


def read_videos(out: Path, *names: str, frames: int, fps: float) -> list[np.ndarray]:
    """The frames (f, h, w, 3) of some videos, such as "edited", as they were written: what a visitor sees, and what
    every figure about an edit is taken from."""
    return [read_clip(out / f"{name}.mp4", frames=frames, fps=fps).frames for name in names]


def read_kept(out: Path, kept: str, shape: tuple[int, int, int]) -> np.ndarray | None:
    """The pixels (f, h, w) bool that an edit of so many frames of that size was to keep, by what its report says was
    `kept`; None where that is nothing, or its masks are gone."""
    if kept == "nothing" or not (out / MASKS).exists():
        return None
    mask = resize(read_mask_zip(out / MASKS, frames=shape[0]), shape[1:])
    return mask if kept == "object" else ~mask


def word_arrays(trace: Trace, edited: Denoised, prompt: str) -> Arrays:
    """Every word's maps by grid: `maps_{h}x{w}` uint8 (t, site, token, f, h, w), with `scales_{h}x{w}` float32
    (t, site, token, f) and `sites_{h}x{w}`: probability = maps / 255 · scale. Timesteps rise, and frames are latent
    frames; `of_frames` (frames,) says which of these each frame has.

    The words are the source prompt's, whose maps are the inversion's, then those of the edit prompt that the source
    lacks, as the edit saw them; `edit_words` are their positions there. `chosen` bool (t, site) marks the maps that
    the mask was made from, and `mask` bool (f, h, w) is that mask at the latents' grid.
    """
    found = words(trace.prompt)
    cross = [site for site in trace.sites if site.kind == "cross"]
    every = {"timesteps": np.array(trace.timesteps), "sites": np.array([s.name for s in cross])}
    for grid in dict.fromkeys(site.grid(trace.grid) for site in cross):
        sites = [site for site in cross if site.grid(trace.grid) == grid]
        size = f"{grid[0]}x{grid[1]}"
        count = len(trace.timesteps), len(sites), len(found) + len(edited.watched), trace.latent_frames
        values, scales = np.empty((*count, *grid), np.uint8), np.empty(count, np.float32)
        for row, site in enumerate(sites):
            for k, soft in enumerate(_by_word(trace, edited, site)):
                values[:, row, k], scales[:, row, k] = soft
        every[f"maps_{size}"], every[f"scales_{size}"] = values, scales
        every[f"sites_{size}"] = np.array([s.name for s in sites])
    every["tokens"] = np.array([*found, *(words(prompt)[j] for j in edited.watched)])
    every["edit_words"] = np.array(edited.watched, np.int64)
    cells = set(edited.plan.cells)
    every["chosen"] = np.array([[(t, site.name) in cells for site in cross] for t in trace.timesteps])
    every["of_frames"] = of_frames(len(trace.clip.frames), trace.stride)
    every["mask"] = edited.plan.object_at[edited.plan.choice.timestep]
    return every


def _by_word(trace: Trace, edited: Denoised, site: Site) -> Iterator[SoftMap]:
    """A site's maps of every word over all timesteps, values (t, f, h, w) and scales (t, f); zero where the edit began
    below a timestep."""
    rows = [list(tokens) for tokens in trace.tokens]
    for maps, columns in ((trace.maps, rows), (edited.maps, [[n] for n in range(len(edited.watched))])):
        if not columns:
            continue
        like = next(maps[t, site.name] for t in trace.timesteps if (t, site.name) in maps)
        blank = SoftMap(np.zeros_like(like.values), np.zeros_like(like.scales))
        softs = [maps.get((t, site.name), blank) for t in trace.timesteps]
        for tokens in columns:
            if len(tokens) == 1:
                at = tokens[0]
                yield SoftMap(np.stack([s.values[at] for s in softs]), np.stack([s.scales[at] for s in softs]))
            else:
                yield SoftMap.pack(np.stack([soft.of(tokens) for soft in softs]))
