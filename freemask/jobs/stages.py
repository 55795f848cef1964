"""The stages of one edit: load, invert, edit, show, reconstruct, report; each takes what those before it have made."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from traceback import clear_frames
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from ..bends import Bend, read_bend
from ..changes import written
from ..clips.ffmpeg import whole
from ..clips.video import Clip, probe, read_clip, write_clip
from ..errors import SettingError, StorageError
from ..families.ddim import CLEAN
from ..families.devices import free_memory, is_out_of_memory
from ..families.graphs import Usage
from ..families.specs import known_words, usual_deep_cache
from ..masks.candidates import resize
from ..masks.features import Features
from ..masks.mmc import find_site
from ..masks.plan import MaskPlan, is_time_aware
from ..masks.trace import Trace
from ..methods.editor import Denoised, Editor
from ..methods.sessions import SESSIONS
from ..methods.several import Part, parts_of
from ..presets import KINDS, Preset, load_method
from ..settings import DRAWN, REPORT, FeatureSource, Settings
from ..steps import Step, Steps
from ..words.differences import align_phrases
from ..words.prompts import align, warnings, words
from .check import Checked, refuse_pair, refuse_shape
from .clock import Clock
from .files import made_with, read_videos, save_edit
from .kept import KeptFeatures, KeptPrepared, inversion_file, read_inversion, save_inversion
from .memory import Need, Peak, choose_features, free_bytes, need
from .metrics import clip_metrics, load_clip, psnr
from .shortage import Way, fit, told_of_faults
from .verdict import judged

__all__ = ["Job", "load_editor"]

T = TypeVar("T")
STAGES = ("invert", "null-text", "edit", "reconstruct")  # in which the UNet runs
RESTORED = "reconstruction"  # among what is prepared of an inversion: its reconstruction's latents


_loaded: dict[tuple[str, bool], Editor] = {}
_features = KeptFeatures()


def load_editor(backbone: str, low_vram: bool = False) -> Editor:
    """The editor of a backbone; the last one stays loaded, so that one job after another does not load it again."""
    wanted = backbone, low_vram
    if wanted not in _loaded:
        _loaded.clear()  # two large ones may not fit at once
        _features.clear()
        free_memory()
        with told_of_faults(Path(backbone)):
            _loaded[wanted] = Editor.load(backbone, low_vram=low_vram)
    return _loaded[wanted]


@dataclass
class Job:
    """One edit of the clip at `path`, and what its stages have made so far."""

    path: Path
    asked: Checked
    clock: Clock = field(default_factory=Clock)
    usage: dict[str, Usage] = field(default_factory=lambda: {s: Usage() for s in STAGES})
    notes: list[str] = field(default_factory=list)
    start: float = field(default_factory=time.perf_counter)
    again: bool = False  # the inversion is kept from an earlier edit
    way: Way = ("replay", False)
    editor: Editor = field(init=False)
    memory: Peak = field(init=False)
    size: tuple[int, int] = field(init=False)
    clip: Clip = field(init=False)
    needed: Need = field(init=False)
    trace: Trace = field(init=False)
    edited: Denoised = field(init=False)
    prepared: KeptPrepared = field(init=False)
    kept: Path | None = None  # the file of the inversion
    result: Clip = field(init=False)
    guided: Clip | None = None  # the source's reconstruction under guidance, where the method made one

    @property
    def settings(self) -> Settings:
        return self.asked.settings

    @property
    def word(self) -> str:
        """The one that is edited."""
        return self.asked.word

    @cached_property
    def preset(self) -> Preset:
        """The task as the method does it, with this job's own numbers; of several changes the longest windows."""
        own = self.settings.preset()
        active = [part.task for part in self.parts if not part.kept]
        if not active:
            return own
        windows = [f"alpha_{kind}" for kind in (*KINDS, "latent")]
        longest = {name: max(getattr(task, name) for task in active) for name in windows}
        return replace(active[0], **longest)

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The changes, where there are several, each with the mask that a person gave it."""
        settings = self.settings
        parts = parts_of(settings.changes or (), settings.source, settings.edit, settings.change_preset)
        labels = self.asked.masks
        if labels is None:
            return parts
        drawn = [(labels == n) & (part.site is None) for n, part in enumerate(parts, 1)]
        own = [self._sized(mask) if mask.any() else None for mask in drawn]
        return tuple(replace(part, mask=mask) for part, mask in zip(parts, own, strict=True))

    @cached_property
    def mask(self) -> np.ndarray | None:
        """A person's own mask of the one change (f, H, W) bool."""
        return None if self.asked.masks is None or self.parts else self._sized(self.asked.masks)

    def _sized(self, mask: np.ndarray) -> np.ndarray:
        return resize(mask, (self.size[1], self.size[0]))

    @property
    def bend(self) -> Bend | None:
        """The change of a word's attention that is asked for."""
        return read_bend(self.settings.bend) if self.settings.bend else None

    @property
    def deep_cache(self) -> int:
        """Of how many steps of the edit one computes the coarse layers."""
        settings = self.settings
        wanted = settings.deep_cache or usual_deep_cache(settings.backbone)
        return wanted if SESSIONS[settings.method].cacheable else 1

    @property
    def storable(self) -> bool:
        """Whether the features that the method fuses are the inversion's, which may be stored: on a flow it corrects
        each latent once it was evaluated, so there they are replayed."""
        return load_method(self.settings.method).features == "inversion" and self.editor.backbone.path.storable

    @property
    def drawn(self) -> bool:
        """Whether the method wants the clip with fresh noise in the place of an inversion."""
        return load_method(self.settings.method).features == "drawn"

    def load(self, editor: Editor | None) -> Steps[None]:
        """The model, the frames' size, and masks of one's own at that size."""
        settings = self.settings
        yield Step("load", 0, 1)
        with self.clock.measure("load"):
            self.editor = editor = editor or load_editor(settings.backbone, settings.low_vram)
        yield Step("load", 1, 1)
        refuse_pair(settings, editor.backbone.path.name)
        self.memory = Peak(editor.backbone.device)
        if self.asked.clip:
            height, width = self.asked.clip.frames.shape[1:3]
            self.size = width, height
        else:
            info = probe(self.path)
            self.size = editor.fit(settings.size) if settings.size else editor.frame_size(info.width, info.height)
        if self.asked.masks is not None:
            refuse_shape(self.asked.masks, self.size)
        for prompt in (settings.source, settings.edit):
            editor.backbone.word_tokens(prompt)  # raises where one is longer than the model reads
        sites = editor.backbone.sites
        if settings.site:
            find_site(settings.site, sites)
        for part in self.parts:
            if part.site:
                find_site(part.site, sites)
        if self.bend:
            bent = find_site(self.bend.site, sites)
            heads = editor.backbone.unet.get_submodule(bent.name).heads
            if (self.bend.head or 1) > heads:
                raise SettingError(f"bend: {bent.short} has {heads} heads.")
        joint = any(site.joint for site in sites)
        if self.preset.alpha_temporal and not joint and not any(site.kind == "temporal" for site in sites):
            self.notes.append(f"{settings.backbone} has no temporal attention: nothing is fused there.")

    def invert(self, kept: Path | None) -> Steps[None]:
        """The trace of the clip: made, or read from the folder `kept`."""
        settings, device = self.settings, self.editor.backbone.device
        storing = settings.features in ("store", "host") and self.storable
        file = inversion_file(kept, self.path, settings, self.size) if kept and not storing else None
        self.kept, self.prepared = file, KeptPrepared(file, device)
        found = read_inversion(file, device) if file else None
        stored = _features.take(file) if found and settings.features == "auto" and self.storable else None
        if found:
            self.again, self.trace = True, replace(found, features=stored) if stored else found
            self.clip, latents = self.trace.clip, self.trace.latents[CLEAN]
        else:
            _features.clear()
            part: dict[str, Any] = {"frames": settings.frames, "start": settings.start, "fps": settings.fps}
            self.clip = self.asked.clip or read_clip(self.path, **part, size=self.size)
            with self.clock.measure("encode"):
                latents = self.editor.backbone.encode(self.clip.frames)
        self.needed = need(self.editor.backbone, self.preset, steps=settings.steps, shape=tuple(latents.shape))
        source: FeatureSource = "replay"
        if settings.features != "auto":
            source = settings.features if storing else "replay"
        elif stored:
            source = "store"
        elif self.storable and not self.again and not settings.low_vram:
            source = choose_features(self.needed, device, free_bytes(device))
        self.way = source, settings.low_vram
        if self.again:
            return
        with self.clock.measure("invert"):
            ways: list[Way] = [self.way, ("replay", self.way[1])]
            if len(self.editor.spans(len(self.clip.frames))) > 1:
                ways.append(("replay", True))
            self.trace = yield from fit(ways, lambda way: self._invert(way, latents), self.notes)
        if file is not None:
            try:
                save_inversion(file, self.trace)
            except StorageError:  # the edit itself may still find room
                self.kept, self.prepared = None, KeptPrepared(None, device)
                self.notes.append("The inversion is not kept for later edits: the disk is full, or cannot be written.")

    def _invert(self, way: Way, latents: Tensor) -> Steps[Trace]:
        self.way = way
        return self.editor.invert_steps(
            self.clip,
            prompt=self.settings.source,
            steps=self.settings.steps,
            solver=self.settings.solver,
            store=self.preset if way[0] != "replay" else None,
            host=way[0] == "host",
            latents=latents,
            usage=self.usage["invert"],
            one_row=way[1],
            drawn=self.drawn,
            seed=self.settings.seed,
        )

    def edit(self, glances: int) -> Steps[None]:
        """The latents of the edited clip, and the masks that made it."""
        ways: list[Way] = [self.way, ("replay", self.way[1]), ("replay", True)]
        steps = fit(ways, lambda way: self._edit(way, glances), self.notes)
        self.edited = yield from self.clock.follow(steps, "edit")
        if self.way[0] == "store" and self.kept:
            _features.keep(self.kept, self.trace.features, self.needed.features)
        self.trace = replace(self.trace, features=Features())

    def _edit(self, way: Way, glances: int) -> Steps[Denoised]:
        self.way, settings = way, self.settings
        if way[0] == "replay":
            self.trace = replace(self.trace, features=Features())
        return self.editor.edit_steps(
            self.trace,
            prompt=settings.edit,
            task=self.preset,
            word=self.word,
            guidance=settings.guidance,
            eta=settings.eta,
            seed=settings.seed,
            mask=self.mask,
            site=settings.site,
            timestep=settings.timestep,
            usage=self.usage["edit"],
            glances=0 if settings.low_vram else glances,
            watch=True,
            one_row=way[1],
            deep_cache=self.deep_cache,
            prepared=self.prepared,
            preparing=self.usage["null-text"],
            bend=self.bend,
            parts=self.parts,
        )

    def show(self, out: Path, maps: bool = True) -> Steps[None]:
        """The edit's frames, and all that the folder holds of it but the reconstruction, every word's `maps` too where
        they are wanted; its last step carries the report so far."""
        yield Step("decode", 0, 1)
        with self.clock.measure("decode"):
            self.result = self.editor.decode(self.edited.latents, self.clip)
            if "reached" in self.edited.prepared:
                self.guided = self.editor.decode(self.edited.prepared["reached"], self.clip)
        with self.clock.measure("write"):
            (out / REPORT).unlink(missing_ok=True)  # that of an edit whose files are now written over
            save_edit(
                out,
                self.trace,
                self.edited,
                self.result,
                prompt=self.settings.edit,
                drawn=self.asked.masks if self.parts else self.mask,
                guided=self.guided,
                audio=self.path,
                start=self.settings.start,
                note=made_with(self.settings.backbone),
                maps=maps,
            )
        self.clock.add("shown", self.start)
        yield Step("decode", 1, 1, result=self.report(out, {}))

    def reconstruct(self, out: Path) -> Steps[None]:
        """The clip as the inversion can give it back at best: made, or kept from an earlier edit. The edit stands
        without it where memory runs out. Noise that was drawn gives nothing back."""
        if self.drawn:
            (out / "reconstruction.mp4").unlink(missing_ok=True)
            return
        try:
            if RESTORED not in self.prepared:
                steps = self.editor.reconstruct_steps(self.trace, self.usage["reconstruct"], one_row=self.way[1])
                restored = yield from self.clock.follow(steps, "reconstruct")
                self.prepared[RESTORED] = {"latents": restored}
            with self.clock.measure("decode"):
                clip = self.editor.decode(self.prepared[RESTORED]["latents"], self.clip)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            clear_frames(error.__traceback__)
            self.notes.append("Memory ran out for the reconstruction, so what the inversion lost is not told.")
            return
        with self.clock.measure("write"):
            note, start = made_with(self.settings.backbone), self.settings.start
            write_clip(out / "reconstruction.mp4", clip, audio_from=self.path, start=start, note=note)

    @property
    def held(self) -> str:
        """What the edit is to keep: "background", "object" or "nothing". A style changes every pixel, unless latent
        blending holds the object, as it does where the place is edited."""
        if self.preset.mask == "none" and self.mask is None or any(part.everywhere for part in self.parts):
            return "nothing"
        return "background" if self.preset.region == "object" else "object" if self.preset.alpha_latent else "nothing"

    def metrics(self, out: Path, likeness: Callable[[np.ndarray], float] | None) -> dict[str, float | None]:
        """The figures of the frames in the folder's videos: PSNR in dB, cosines, shares."""
        settings = self.settings
        names = [name for name in ("source", "edited", "reconstruction", "guided") if (out / f"{name}.mp4").exists()]
        read = read_videos(out, *names, frames=len(self.clip.frames), fps=self.clip.fps)
        found = dict(zip(names, read, strict=True))
        source, frames, shown = found["source"], found["edited"], self.edited.plan.shown
        keep = {"background": ~shown, "object": shown, "nothing": None}[self.held]
        metrics: dict[str, float | None] = {"reconstruction_psnr": None}
        metrics |= {f"{name}_psnr": _finite(psnr(found[name], source)) for name in names[2:]}
        metrics["background_psnr"] = _finite(psnr(frames, source, keep=keep))
        if known_words(settings.backbone) is None:  # no judge ships with it: `score` has others
            return metrics
        figures = clip_metrics(load_clip(settings.backbone), frames, source=settings.source, edit=settings.edit)
        if likeness:
            figures["toy_likeness"] = likeness(self.clip.frames)
        return metrics | {name: round(value, 4) for name, value in figures.items()}

    def _null_text(self) -> dict[str, Any] | None:
        """The mean squared distances to the pivots that null-text optimisation left, by noise level from the highest
        and by iteration; None where there was no such stage."""
        if "losses" not in self.edited.prepared:
            return None
        rows = self.edited.prepared["losses"].tolist()
        distances = [[float(f"{one:.5g}") for one in row if math.isfinite(one)] for row in rows]
        kept = bool(self.prepared.found - {RESTORED})
        return {"made": "kept from an earlier edit" if kept else "made", "distances": distances}

    def report(self, out: Path, metrics: dict[str, float | None]) -> dict[str, Any]:
        """What was asked, done and measured, written as settings.json and report.json into the edit's folder; before
        anything is measured it holds no verdict."""
        settings, preset, plan = self.settings, self.preset, self.edited.plan
        told, aligned = words(settings.edit), align_phrases if self.parts else align
        self.clock.seconds["total"] = round(time.perf_counter() - self.start, 4)
        report: dict[str, Any] = {
            "settings": settings.record(self.word),
            "words": {
                "source_words": words(settings.source),
                "edit_words": told,
                "word": self.word,
                "delta": preset.delta,
                "changed": [told[j] for j in aligned(settings.source, settings.edit).changed],
                "warnings": [
                    *warnings(settings.source, settings.edit, self.word, preset.delta),
                    *plan.warnings,
                    *self.notes,
                ],
            },
            "mask": _told(plan, preset) | {"kind": preset.mask, "tau": preset.tau, "kept": self.held},
            "inversion": DRAWN if self.drawn else "kept from an earlier edit" if self.again else "made",
            "deep_cache": self.deep_cache,
            "unet": {stage: used.told() for stage, used in self.usage.items() if used.rows or stage != "null-text"},
            "seconds": self.clock.seconds,
            "memory": {
                "features": self.way[0],
                "one_row": self.way[1],
                # what gradients take is not told beforehand
                "expected_mib": None if self.preset.director else self.memory.expected(self.needed, *self.way),
                "peak_mib": self.memory.mib(),
            },
            "metrics": metrics,
            "null_text": self._null_text(),
            "verdict": asdict(judged(metrics, settings.source)) if metrics else None,
            "clip": {
                "width": self.size[0],
                "height": self.size[1],
                "frames": len(self.clip.frames),
                "fps": self.clip.fps,
            },
        }
        if self.parts:
            every = zip(written(settings.changes or ()), self.parts, self.edited.plans, strict=True)
            report["changes"] = [one | ({"mask": _told(own, part.task)} if own else {}) for one, part, own in every]
        for name, record in (("settings.json", report["settings"]), (REPORT, report)):
            with whole(out / name) as part:  # who reads it meanwhile, reads the one or the other
                part.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        return report


def _told(plan: MaskPlan, task: Preset) -> dict[str, Any]:
    """What a report says of a mask."""
    choice = plan.choice
    each = is_time_aware(task) and choice.origin != "painted"
    where = {"site": choice.site.name, "timestep": "every" if each else choice.timestep, "origin": choice.origin}
    return where | {"area": round(plan.area, 4)}


def _finite(value: float) -> float | None:
    """A figure for JSON, which has neither infinity nor NaN: None."""
    return round(value, 3) if math.isfinite(value) else None
