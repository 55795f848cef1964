"""One job from a clip and settings to a folder of files: what the command and the page both run.

`run_steps` is a generator of `Step`; closing it cancels the job within one step.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
import zipfile
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from traceback import clear_frames
from typing import TypeVar

import numpy as np

from . import gallery
from .attention import find_sites
from .backbone import free_memory, is_out_of_memory
from .edit import Denoised, Editor, Steps, Usage
from .errors import MemoryShortage, SettingError
from .explorer import save_word_files
from .features import Features
from .jobs import Step
from .masks import resize
from .memory import Peak, choose_features, free_bytes, need
from .metrics import clip_metrics, load_clip, psnr
from .mmc import find_site
from .plan import is_time_aware
from .presets import MASKS, FeatureSource, Settings, known_words
from .prompts import align, check, find_word, warnings, words
from .trace import CLEAN, SoftMap, Trace, load_trace, save_trace
from .video import Clip, probe, read_clip, side_by_side, write_clip, write_gif

__all__ = ["load_editor", "run_steps", "save_masks"]


T = TypeVar("T")
KEPT = 4  # inversions that a folder holds, the newest


class _Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.perf_counter() - start, 4)


_loaded: dict[tuple[str, bool], Editor] = {}


def load_editor(backbone: str, low_vram: bool = False) -> Editor:
    """The editor of a backbone; the last one stays loaded, so that one job after another does not load it again."""
    wanted = backbone, low_vram
    if wanted not in _loaded:
        _loaded.clear()  # two large ones may not fit at once
        free_memory()
        with _told_of_shortage():
            _loaded[wanted] = Editor.load(backbone, low_vram=low_vram)
    return _loaded[wanted]


SHORTAGE = (
    "Memory ran out even in the most frugal way. Take a smaller size, or end what else uses this device's memory; "
    "fewer frames help up to the number that the backbone sees at once. The inversion, where it was done, is kept."
)


@contextmanager
def _told_of_shortage() -> Iterator[None]:
    """Raises MemoryShortage where memory runs out, without what the failure still holds."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        clear_frames(error.__traceback__)
        raise MemoryShortage(SHORTAGE) from None


Way = tuple[FeatureSource, bool]  # where the source's features come from, and whether batch rows run one at a time


def _fit(ways: Sequence[Way], attempt: Callable[[Way], Steps[T]], notes: list[str]) -> Steps[T]:
    """The first attempt for which memory suffices; `notes` are told of those for which it did not.

    Raises MemoryShortage where it suffices for none.
    """
    ways = list(dict.fromkeys(ways))
    for i, way in enumerate(ways):
        try:
            return (yield from attempt(way))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        free_memory()
        if i + 1 < len(ways):
            how = "one batch row at a time, which is slower" if ways[i + 1][1] > way[1] else "replaying the source"
            notes.append(f"Memory ran out, so the edit went on {how}.")
    raise MemoryShortage(SHORTAGE)


def _inversion_name(path: Path, settings: Settings, size: tuple[int, int]) -> str:
    """The file name of an inversion: what it depends on, in a digest."""
    names = ("source", "backbone", "steps", "solver", "frames", "start", "fps")
    asked = [*(getattr(settings, name) for name in names), size]
    digest = hashlib.sha256(json.dumps(asked).encode())
    with path.open("rb") as clip:
        while block := clip.read(1 << 20):
            digest.update(block)
    return f"inversion-{digest.hexdigest()[:32]}.npz"


def _read_masks(path: Path, frames: int, size: tuple[int, int]) -> np.ndarray:
    """Masks (f, h, w) bool of a zip at the frames' (width, height); raises SettingError where the shapes differ."""
    masks = gallery.read_mask_zip(path, frames=frames)
    (h, w), (width, height) = masks.shape[1:], size
    if abs(w * height / (h * width) - 1) > 0.1:
        raise SettingError(f"The masks are {w}x{h}, the frames {width}x{height}: draw them on this clip's own frames.")
    return resize(masks, (height, width))


def run_steps(
    path: Path,
    settings: Settings,
    out: Path,
    *,
    editor: Editor | None = None,
    kept: Path | None = None,
    glances: int = 0,
) -> Generator[Step, None, dict[str, object]]:
    """Edits the clip at `path` into the folder `out` and returns the report.

    In the folder `kept`, finished inversions stay for later edits of the same clip and source prompt, which then begin
    at denoising; they are what a cancelled or failed edit leaves behind. Edits that are asked to store features invert
    anew. Where memory runs out, the edit goes on in a more frugal way and says so. About `glances` of the edit's
    steps carry a picture of it.

    Raises InputError before any model runs, BackboneError where the model cannot be loaded, MaskError where
    the chosen attention map holds no mask, MemoryShortage where nothing fits.
    """
    word = check(path, settings)
    clock = _Clock()
    start = time.perf_counter()
    yield Step("load", 0, 1)
    with clock.measure("load"):
        editor = editor or load_editor(settings.backbone, settings.low_vram)
    yield Step("load", 1, 1)
    backbone = editor.backbone
    memory = Peak(backbone.device)
    preset = settings.preset()
    info = probe(path)
    size = editor.fit(settings.size) if settings.size else editor.frame_size(info.width, info.height)
    mask = _read_masks(settings.masks, settings.frames, size) if settings.masks else None
    if settings.site:
        find_site(settings.site, find_sites(backbone.unet))
    usage = {stage: Usage() for stage in ("invert", "reconstruct", "edit")}
    notes: list[str] = []
    storing = settings.features in ("store", "host")
    file = kept / _inversion_name(path, settings, size) if kept and not storing else None
    again = file is not None and file.exists()
    if file is not None and again:
        trace = load_trace(file, backbone.device)
        clip, latents = trace.clip, trace.latents[CLEAN]
    else:
        clip = read_clip(path, frames=settings.frames, start=settings.start, fps=settings.fps, size=size)
        with clock.measure("encode"), _told_of_shortage():
            latents = backbone.encode(clip.frames)
    needed = need(backbone, preset, steps=settings.steps, shape=tuple(latents.shape))
    source: FeatureSource = "replay"
    if settings.features != "auto":
        source = settings.features
    elif not again and not settings.low_vram:
        source = choose_features(needed, backbone.device, free_bytes(backbone.device))
    way: Way = source, settings.low_vram

    def invert(tried: Way) -> Steps[Trace]:
        nonlocal way
        way = tried
        return editor.invert_steps(
            clip,
            prompt=settings.source,
            steps=settings.steps,
            solver=settings.solver,
            store=preset if tried[0] != "replay" else None,
            host=tried[0] == "host",
            latents=latents,
            usage=usage["invert"],
        )

    def edit(tried: Way) -> Steps[Denoised]:
        nonlocal way, trace
        way = tried
        if tried[0] == "replay":
            trace = replace(trace, features=Features())
        return editor.edit_steps(
            trace,
            prompt=settings.edit,
            task=preset,
            word=word,
            guidance=settings.guidance,
            eta=settings.eta,
            seed=settings.seed,
            mask=mask,
            site=settings.site,
            timestep=settings.timestep,
            usage=usage["edit"],
            glances=0 if settings.low_vram else glances,
            watch=True,
            one_row=tried[1],
        )

    if not again:
        with clock.measure("invert"):
            trace = yield from _fit([way, ("replay", way[1])], invert, notes)
        with clock.measure("reconstruct"), _told_of_shortage():
            trace = replace(trace, restored=(yield from editor.reconstruct_steps(trace, usage=usage["reconstruct"])))
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            for old in sorted(file.parent.glob("inversion-*.npz"), key=lambda one: one.stat().st_mtime)[: 1 - KEPT]:
                old.unlink()
            save_trace(file, trace)
    with clock.measure("edit"):
        edited = yield from _fit([way, ("replay", way[1]), ("replay", True)], edit, notes)
    yield Step("decode", 0, 1)
    trace = replace(trace, features=Features())
    with clock.measure("decode"), _told_of_shortage():
        assert trace.restored is not None
        reconstruction = editor.decode(trace.restored, clip)
        result = editor.decode(edited.latents, clip)
    clock.seconds["total"] = round(time.perf_counter() - start, 4)
    # a style changes every pixel, unless latent blending holds the object, as it does where the place is edited
    held = "background" if preset.region == "object" else "object" if preset.alpha_latent else "nothing"
    keep = {"background": ~edited.plan.shown, "object": edited.plan.shown, "nothing": None}[held]
    metrics = {
        "reconstruction_psnr": _finite(psnr(reconstruction.frames, clip.frames)),
        "background_psnr": _finite(psnr(result.frames, clip.frames, keep=keep)),
    }
    if known_words(settings.backbone) is not None:  # its judge ships with it; others are judged by `score`
        judge = load_clip(settings.backbone)
        judged = clip_metrics(judge, result.frames, source=settings.source, edit=settings.edit)
        metrics |= {name: round(value, 4) for name, value in judged.items()}
    choice = edited.plan.choice
    time_aware = is_time_aware(preset) and choice.origin != "painted"
    alignment = align(settings.source, settings.edit)
    report: dict[str, object] = {
        "settings": settings.record(word),
        "words": {
            "source_words": words(settings.source),
            "edit_words": words(settings.edit),
            "word": word,
            "delta": preset.delta,
            "changed": [words(settings.edit)[j] for j in alignment.changed],
            "warnings": warnings(settings.source, settings.edit, word, preset.delta) + edited.plan.warnings + notes,
        },
        "mask": {
            "site": choice.site.name,
            "timestep": "every" if time_aware else choice.timestep,
            "origin": choice.origin,
            "kind": preset.mask,
            "tau": preset.tau,
            "kept": held,
            "area": round(edited.plan.area, 4),
        },
        "inversion": "kept from an earlier edit" if again else "made",
        "unet": {stage: asdict(used) for stage, used in usage.items()},
        "seconds": clock.seconds,
        "memory": {
            "features": way[0],
            "one_row": way[1],
            "expected_mib": memory.expected(needed, *way),
            "peak_mib": memory.mib(),
        },
        "metrics": metrics,
        "clip": {"width": size[0], "height": size[1], "frames": len(clip.frames), "fps": clip.fps},
    }
    out.mkdir(parents=True, exist_ok=True)
    made = f"Made with AI: FreeMask, a text-driven edit with the model {settings.backbone}."

    def video(name: str, shown: Clip, note: str) -> None:
        write_clip(out / f"{name}.mp4", shown, audio_from=path, start=settings.start, note=note)

    def maps() -> None:
        save_masks(out, trace, edited, word, settings.edit)
        save_word_files(out)
        sheet = gallery.mask_sheet(out / "words.npz", word, frame=0)
        gallery.save_png(out / "masks.png", sheet)
        gallery.save_pdf(out / "masks.pdf", sheet)

    with ThreadPoolExecutor() as pool:  # encoders and compression leave the interpreter to each other
        writing = [
            pool.submit(maps),
            pool.submit(video, "source", clip, ""),
            pool.submit(video, "edited", result, made),
            pool.submit(video, "reconstruction", reconstruction, made),
            pool.submit(video, "comparison", side_by_side(clip, reconstruction, result), made),
            pool.submit(write_gif, out / "edited.gif", result, note=made),
        ]
    for done in writing:
        done.result()
    gallery.save_mask_zip(out / MASKS, edited.plan.shown if mask is None else mask)
    (out / "settings.json").write_text(json.dumps(report["settings"], indent=2) + "\n")
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    yield Step("decode", 1, 1)
    return report


def _finite(value: float) -> float | None:
    """A figure for JSON, which has neither infinity nor NaN: None."""
    return round(value, 3) if math.isfinite(value) else None


def save_masks(out: Path, trace: Trace, edited: Denoised, word: str, prompt: str) -> None:
    """Writes `masks.npz` (the edited word's maps) and `words.npz` (every word's), both per grid.

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
        one, each = [], []
        for t in trace.timesteps:
            for site in sites:
                one.append(SoftMap.pack(trace.word_map(t, site, at)[None]))
                rows = [trace.word_map(t, site, [i]) for i in range(len(found))]
                rows += [edited.maps[t, site.name].of([n]) for n in range(len(edited.watched))]
                each.append(SoftMap.pack(np.stack(rows)))
        lead = (len(trace.timesteps), len(sites))
        for target, packed, words_axis in ((masks, one, False), (every, each, True)):
            values = np.stack([p.values for p in packed]).reshape(*lead, -1, *packed[0].values.shape[1:])
            scales = np.stack([p.scales for p in packed]).reshape(*lead, -1, packed[0].scales.shape[-1])
            target[f"maps_{size}"] = values if words_axis else values[:, :, 0]
            target[f"scales_{size}"] = scales if words_axis else scales[:, :, 0]
            target[f"sites_{size}"] = np.array([s.name for s in sites])
    masks["tokens"] = np.array([found[i] for i in at])
    masks["mask"] = edited.plan.shown
    every["tokens"] = np.array([*found, *(words(prompt)[j] for j in edited.watched)])
    every["edit_words"] = np.array(edited.watched, np.int64)
    cells = set(edited.plan.cells)
    every["chosen"] = np.array([[(t, site.name) in cells for site in cross] for t in trace.timesteps])
    every["mask"] = edited.plan.object_at[edited.plan.choice.timestep]
    _save_arrays(out / "masks.npz", masks)
    _save_arrays(out / "words.npz", every)


def _save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """`numpy.savez_compressed` at the fastest level: on maps it takes a third of the time for a tenth more bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
        for name, array in arrays.items():
            with packed.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
