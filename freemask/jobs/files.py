"""What an edit leaves in its folder: videos, the words' maps, and the masks.

Maps are written as they are: seen by their own maximum in 8 bits, deflating takes a tenth off those of mini, and
seconds for those of 8 frames at 512² (81 MB of eight words).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..clips.stills import write_png
from ..clips.video import Clip, read_clip, side_by_side, write_clip, write_gif
from ..families.sites import Site
from ..masks.candidates import resize
from ..masks.trace import SoftMap, Trace
from ..methods.editor import Denoised
from ..pictures.mask_zip import read_mask_zip, save_mask_zip
from ..pictures.sheets import distances_figure, mask_sheet, save_pdf, save_png
from ..pictures.word_maps import save_word_files
from ..settings import MASKS, NULL_TEXT
from ..words.prompts import find_word, words

__all__ = ["read_kept", "read_videos", "save_files", "save_masks"]


def save_files(
    out: Path,
    trace: Trace,
    edited: Denoised,
    result: Clip,
    reconstruction: Clip,
    *,
    word: str,
    prompt: str,
    mask: np.ndarray | None = None,
    guided: Clip | None = None,
    audio: Path,
    start: float = 0.0,
    note: str,
) -> None:
    """Writes all but the report of an edit of `word` under a prompt: videos with the sound of `audio` from `start`
    seconds on, what was made told by a `note`, the mask (f, h, w) bool in use, or the one `mask` that it was made from,
    and of null-text optimisation the reconstruction `guided` by it and its distances."""
    source = trace.clip

    def video(name: str, shown: Clip, told: str) -> None:
        write_clip(out / f"{name}.mp4", shown, audio_from=audio, start=start, note=told)

    def sheet() -> None:
        picture = mask_sheet(every, word, frame=0)
        save_png(out / "masks.png", picture)
        save_pdf(out / "masks.pdf", picture)

    def distances() -> None:
        losses = edited.prepared["losses"].cpu().numpy()
        save_png(out / NULL_TEXT, distances_figure(losses, trace.timesteps[::-1]))

    out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:  # encoders and compression leave the interpreter to each other
        writing = [
            pool.submit(video, "source", source, ""),
            pool.submit(video, "edited", result, note),
            pool.submit(video, "reconstruction", reconstruction, note),
            pool.submit(video, "comparison", side_by_side(source, reconstruction, result), note),
            pool.submit(write_gif, out / "edited.gif", result, note=note),
        ]
        if len(result.frames) == 1:
            writing.append(pool.submit(write_png, out / "edited.png", result.frames[0], note=note))
        if guided:
            writing.append(pool.submit(video, "guided", guided, note))
            writing.append(pool.submit(distances))
        every = save_masks(out, trace, edited, word, prompt)
        writing += [pool.submit(sheet), pool.submit(save_word_files, out, every)]
    for done in writing:
        done.result()
    save_mask_zip(out / MASKS, edited.plan.shown if mask is None else mask)


def read_videos(out: Path, *names: str, frames: int, fps: float) -> list[np.ndarray]:
    """The frames (f, h, w, 3) of some videos, such as "edited", as `save_files` wrote them: what a visitor sees, and
    what every figure about an edit is taken from."""
    return [read_clip(out / f"{name}.mp4", frames=frames, fps=fps).frames for name in names]


def read_kept(out: Path, kept: str, shape: tuple[int, int, int]) -> np.ndarray | None:
    """The pixels (f, h, w) bool that an edit of so many frames of that size was to keep, by what its report says was
    `kept`; None where that is nothing, or its masks are gone."""
    if kept == "nothing" or not (out / MASKS).exists():
        return None
    mask = resize(read_mask_zip(out / MASKS, frames=shape[0]), shape[1:])
    return mask if kept == "object" else ~mask


def save_masks(out: Path, trace: Trace, edited: Denoised, word: str, prompt: str) -> dict[str, np.ndarray]:
    """Writes `masks.npz` (the edited word's maps) and `words.npz` (every word's), both per grid; returns the latter.

    `maps_{h}x{w}` uint8 (t, site, f, h, w) in masks.npz and (t, site, token, f, h, w) in words.npz, with
    `scales_{h}x{w}` float32 over (t, site, [token,] f): probability = maps / 255 · scale. Timesteps rise.
    The words of words.npz are the source prompt's, whose maps are the inversion's, then those of the edit prompt that
    the source lacks, as the edit saw them; `edit_words` are their positions there. `chosen` bool (t, site) marks the
    maps that the mask was made from, and `mask` bool (f, h, w) is that mask at the latents' grid.
    """
    at = find_word(trace.prompt, word)
    found = words(trace.prompt)
    cross = [site for site in trace.sites if site.kind == "cross"]
    shared = {"timesteps": np.array(trace.timesteps), "sites": np.array([s.name for s in cross])}
    masks, every = dict(shared), dict(shared)
    for grid in dict.fromkeys(site.grid(trace.grid) for site in cross):
        sites = [site for site in cross if site.grid(trace.grid) == grid]
        size = f"{grid[0]}x{grid[1]}"
        count = len(trace.timesteps), len(sites), len(found) + len(edited.watched), len(trace.clip.frames)
        values, scales = np.empty((*count, *grid), np.uint8), np.empty(count, np.float32)
        for row, site in enumerate(sites):
            for k, soft in enumerate(_by_word(trace, edited, site)):
                values[:, row, k], scales[:, row, k] = soft
        every[f"maps_{size}"], every[f"scales_{size}"] = values, scales
        if len(at) == 1:
            masks[f"maps_{size}"], masks[f"scales_{size}"] = values[:, :, at[0]], scales[:, :, at[0]]
        else:
            together = [_together(trace, site, at) for site in sites]
            masks[f"maps_{size}"] = np.stack([soft.values for soft in together], 1)
            masks[f"scales_{size}"] = np.stack([soft.scales for soft in together], 1)
        masks[f"sites_{size}"] = every[f"sites_{size}"] = np.array([s.name for s in sites])
    masks["tokens"] = np.array([found[i] for i in at])
    masks["mask"] = edited.plan.shown
    every["tokens"] = np.array([*found, *(words(prompt)[j] for j in edited.watched)])
    every["edit_words"] = np.array(edited.watched, np.int64)
    cells = set(edited.plan.cells)
    every["chosen"] = np.array([[(t, site.name) in cells for site in cross] for t in trace.timesteps])
    every["mask"] = edited.plan.object_at[edited.plan.choice.timestep]
    np.savez(out / "masks.npz", allow_pickle=False, **masks)
    np.savez(out / "words.npz", allow_pickle=False, **every)
    return every


def _by_word(trace: Trace, edited: Denoised, site: Site) -> Iterator[SoftMap]:
    """A site's maps of every word over all timesteps, values (t, f, h, w) and scales (t, f)."""
    rows = [list(tokens) for tokens in trace.tokens]
    for maps, columns in ((trace.maps, rows), (edited.maps, [[n] for n in range(len(edited.watched))])):
        if not columns:
            continue
        softs = [maps[t, site.name] for t in trace.timesteps]
        for tokens in columns:
            if len(tokens) == 1:
                at = tokens[0]
                yield SoftMap(np.stack([s.values[at] for s in softs]), np.stack([s.scales[at] for s in softs]))
            else:
                yield SoftMap.pack(np.stack([soft.of(tokens) for soft in softs]))


def _together(trace: Trace, site: Site, at: list[int]) -> SoftMap:
    """A site's maps of several words as one, over all timesteps."""
    return SoftMap.pack(np.stack([trace.word_map(t, site, at) for t in trace.timesteps]))
