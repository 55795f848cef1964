"""One job from a clip and settings to a folder of files: what the command and the page both run.

`run_steps` is a generator of `Step`; closing it cancels the job within one step.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from traceback import clear_frames
from typing import TypeVar

import numpy as np

from ..clips.video import probe, read_clip
from ..errors import MemoryShortage, SettingError
from ..families.ddim import CLEAN
from ..families.devices import free_memory, is_out_of_memory
from ..families.specs import known_words
from ..masks.candidates import resize
from ..masks.features import Features
from ..masks.mmc import find_site
from ..masks.plan import is_time_aware
from ..masks.trace import Trace, load_trace, save_trace
from ..methods.editor import Denoised, Editor, Usage
from ..pictures.mask_zip import read_mask_zip
from ..presets import FeatureSource, Settings
from ..steps import Step, Steps
from ..words.prompts import align, warnings, words
from .check import check, fitting
from .files import save_files
from .memory import Peak, choose_features, free_bytes, need
from .metrics import clip_metrics, load_clip, psnr
from .verdict import judged

__all__ = ["load_editor", "run_steps"]


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
    masks = read_mask_zip(path, frames=frames)
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
    likeness: Callable[[np.ndarray], float] | None = None,
) -> Generator[Step, None, dict[str, object]]:
    """Edits the clip at `path` into the folder `out` and returns the report.

    In the folder `kept`, finished inversions stay for later edits of the same clip and source prompt, which then begin
    at denoising; they are what a cancelled or failed edit leaves behind. Edits that are asked to store features invert
    anew. Where memory runs out, the edit goes on in a more frugal way and says so. About `glances` of the edit's
    steps carry a picture of it. `likeness` (`toyworld.likeness`) is asked where the backbone knows its own world alone,
    for the verdict on the edit.

    Raises InputError before any model runs, BackboneError where the model cannot be loaded, MaskError where
    the chosen attention map holds no mask, MemoryShortage where nothing fits.
    """
    word = check(path, settings)
    settings = fitting(path, settings)
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
        find_site(settings.site, backbone.sites)
    usage = {stage: Usage() for stage in ("invert", "reconstruct", "edit")}
    notes: list[str] = []
    storing = settings.features in ("store", "host") and preset.attention == "inversion"
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
        source = settings.features if storing else "replay"
    elif preset.attention == "inversion" and not again and not settings.low_vram:
        source = choose_features(needed, backbone.device, free_bytes(backbone.device))
    way: Way = source, settings.low_vram
    if preset.alpha_temporal and not any(site.kind == "temporal" for site in backbone.sites):
        notes.append(f"{settings.backbone} has no temporal attention: nothing is fused there.")

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
    # a style changes every pixel, unless latent blending holds the object, as it does where the place is edited
    held = "background" if preset.region == "object" else "object" if preset.alpha_latent else "nothing"
    if preset.mask == "none" and mask is None:
        held = "nothing"
    keep = {"background": ~edited.plan.shown, "object": edited.plan.shown, "nothing": None}[held]
    metrics = {
        "reconstruction_psnr": _finite(psnr(reconstruction.frames, clip.frames)),
        "background_psnr": _finite(psnr(result.frames, clip.frames, keep=keep)),
    }
    if known_words(settings.backbone) is not None:  # its judge ships with it; others are judged by `score`
        judge = load_clip(settings.backbone)
        figures = clip_metrics(judge, result.frames, source=settings.source, edit=settings.edit)
        if likeness:
            figures["toy_likeness"] = likeness(clip.frames)
        metrics |= {name: round(value, 4) for name, value in figures.items()}
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
        "verdict": asdict(judged(metrics)),
        "clip": {"width": size[0], "height": size[1], "frames": len(clip.frames), "fps": clip.fps},
    }
    with clock.measure("write"):
        save_files(
            out,
            trace,
            edited,
            result,
            reconstruction,
            word=word,
            prompt=settings.edit,
            mask=mask,
            audio=path,
            start=settings.start,
            note=f"Made with AI: FreeMask, a text-driven edit with the model {settings.backbone}.",
        )
    clock.seconds["total"] = round(time.perf_counter() - start, 4)
    (out / "settings.json").write_text(json.dumps(report["settings"], indent=2) + "\n")
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    yield Step("decode", 1, 1)
    return report


def _finite(value: float) -> float | None:
    """A figure for JSON, which has neither infinity nor NaN: None."""
    return round(value, 3) if math.isfinite(value) else None
