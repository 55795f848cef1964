"""How long an edit takes and how much memory it needs on this server, before the button is pressed.

What edits cost here is measured on the edits themselves: seconds for each batch row of the UNet, frame and pixel, those
beside it for each frame and pixel, and the peak of the process. Attention makes a pixel of a larger frame dearer, and
a still costs more than a clip's frame, so stills are measured apart.
Before the first edit with a backbone only the memory is told, where its spec has the figures.

While an edit runs, all that it has done so far says how much slower or faster than that it is. What is expected counts
in it as if a small part of the edit had been done, so that the first steps, which are few, do not sway it.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..clips.spans import work
from ..errors import FreeMaskError
from ..families.specs import NATIVE_FRAMES, backbone_spec, known_backbone
from ..jobs.check import edit_size
from ..jobs.worker import Countdown, Snapshot
from ..presets import load_method
from ..settings import Settings, batch_rows

__all__ = ["Estimates", "rows", "sized", "volume"]

STAGES = ("invert", "null-text", "edit", "reconstruct")  # in which the UNet runs
BACKWARD = 2  # batch rows that a backward pass takes as long as
# Latent cells of a frame for which attention takes as long as all else. mini's seconds a row, frame and cell on grids
# of 32², 48² and 64² are .99, 1.13 and 1.31 times those on 16²; by this they are 1.07, 1.19 and 1.34 times.
ATTENTION = 11_000
TRUST = 0.03  # of an edit, which what is expected counts for


def rows(settings: Settings, stored: bool = False) -> dict[str, float]:
    """Batch rows of the UNet in the stages of an edit that inverts: one a step to invert and to reconstruct, two to
    edit, and one more where the source's features are replayed, as "auto" does unless they were `stored` here last;
    with gradients, as many as take as long."""
    preset = settings.preset()
    replayed = max(preset.alpha_self, preset.alpha_cross, preset.alpha_temporal)
    again: float = replayed if settings.features == "replay" or settings.features == "auto" and not stored else 0
    n, tuned = settings.steps, 0
    method = load_method(settings.method)
    drawn, flows = method.features == "drawn", _flows(settings.backbone)
    if preset.flow:
        again = batch_rows(preset, "replay", False) - 2
    if own := preset.director:
        guided = 2 + BACKWARD if own.stdg else 0
        again = (1 if own.sa_ii else replayed) + (guided if own.guided == "edit" else 0)
        if own.null_text_steps or guided and own.guided == "source":
            tuned = 2 + guided + own.null_text_steps * (1 + BACKWARD)
    return {
        "invert": n if drawn else n * (1 + (flows and settings.solver == "ddim")) + (settings.solver != "ddim"),
        "null-text": n * tuned,
        "edit": preset.strength * n * (2 + again),
        "reconstruct": 0 if drawn else n,
    }


@dataclass
class _Cost:
    """Seconds for a row, frame and pixel (see `_dearer`), by stage; of a frame and pixel beside the UNet, without those
    of loading; peak in MiB; whether the source's features were stored last."""

    each: dict[str, float]
    rest: float
    memory: float
    stored: bool


class Estimates:
    """What edits cost on this server, by backbone and whether of stills. Any thread may learn and ask."""

    def __init__(self) -> None:
        self._costs: dict[tuple[str, bool], _Cost] = {}
        self._lock = threading.Lock()

    def _cost(self, settings: Settings) -> _Cost | None:
        """Of such edits, else of stills where it is a clip's, and the other way round."""
        name, still = settings.backbone, settings.frames == 1
        return self._costs.get((name, still)) or self._costs.get((name, not still))

    def learn(self, settings: Settings, report: dict[str, Any]) -> None:
        """Take in a finished edit's report; the newest counts as much as all before."""
        seconds, clip = report["seconds"], report.get("clip")
        if not clip or "unet" not in report:
            return
        _, native, factor = _native(settings.backbone)
        pixels = clip["width"] * clip["height"]
        shown = min(clip["frames"], native) * _dearer(pixels, factor)  # frames of a row; a long clip has more rows
        used = {
            stage: (done["rows"] + BACKWARD * done.get("backwards", 0)) * shown * pixels
            for stage, done in report["unet"].items()
        }
        each = {stage: seconds[stage] / used[stage] for stage in STAGES if stage in seconds and used.get(stage)}
        rest = seconds["total"] - sum(seconds[stage] for stage in each) - seconds.get("load", 0.0)
        rest /= clip["frames"] * pixels
        stored = report["memory"].get("features") in ("store", "host")
        with self._lock:
            old = self._costs.get(kind := (settings.backbone, clip["frames"] == 1))
            if old is None:
                if {"invert", "reconstruct", "edit"} <= each.keys():
                    self._costs[kind] = _Cost(each, rest, report["memory"]["peak_mib"], stored)
                return
            old.stored = stored
            old.each |= {stage: (old.each.get(stage, cost) + cost) / 2 for stage, cost in each.items()}
            old.rest, old.memory = (old.rest + rest) / 2, max(old.memory, report["memory"]["peak_mib"])

    def seconds(self, settings: Settings) -> float | None:
        """Of an edit that inverts; None before the first edit with this backbone."""
        with self._lock:
            cost = self._cost(settings)
            return _rest(settings, cost) + sum(_stages(settings, cost).values()) if cost else None

    def left(self, settings: Settings, now: Snapshot) -> float | None:
        """Of an edit that goes on, if it stays as much slower or faster than edits were as it is so far; None where
        nothing is known, and but for the stages of the UNet."""
        with self._lock:
            cost = self._cost(settings)
            if cost is None or now.step is None or now.step.stage not in STAGES:
                return None
            expected, rest = _stages(settings, cost), _rest(settings, cost)
        step = now.step
        if step.stage == "edit" and "invert" not in now.timed:  # kept from an earlier edit, with its reconstruction
            expected["reconstruct"] = 0.0
        each = {stage: seconds / step.total for stage, seconds in expected.items()}
        timed = {stage: now.timed[stage] for stage in STAGES if stage in now.timed}
        trust = TRUST * sum(expected.values())
        planned = sum(each[stage] * done for stage, (done, _) in timed.items())
        slower = (trust + sum(took for _, took in timed.values())) / (trust + planned)
        later = sum(expected[stage] for stage in STAGES[STAGES.index(step.stage) + 1 :])
        here = each[step.stage] * (step.total - step.index)
        passed = min(now.since, slower * each[step.stage]) if here + later else 0.0
        return slower * (here + later) - passed + rest

    def countdown(self, settings: Settings) -> Callable[[Snapshot], tuple[float | None, bool]]:
        """Tells for one snapshot of an edit after the other the seconds left and whether of the whole edit or, where
        those are not known, of its stage."""
        told = defaultdict[str, Countdown](Countdown)

        def tell(now: Snapshot) -> tuple[float | None, bool]:
            whole = self.left(settings, now)
            stage = now.step.stage if now.step and whole is None else ""
            left = now.eta if whole is None else whole
            return None if left is None else told[stage].tell(left), whole is not None

        return tell

    def memory(self, settings: Settings) -> float | None:
        """In MiB: the highest peak so far, before the first edit of a model from the hub what its spec tells of halves
        on a GPU, else None."""
        with self._lock:
            cost = self._cost(settings)
        if cost:
            return cost.memory
        spec = known_backbone(settings.backbone)
        source = "replay" if settings.features == "auto" else settings.features  # the least that it needs
        if source == "store":  # as much as the device has
            return None
        if not (spec and spec.hub_id and spec.working_set and spec.weight_bytes):
            return None
        width, height = settings.size or spec.size
        cells = min(settings.frames, spec.frames) * width * height / spec.vae_factor**2
        unet = batch_rows(settings.preset(), source, settings.low_vram) * cells * spec.working_set["unet"]
        # one model at a time where memory is short, and none but the network takes much
        weights = 2 * spec.parameters["unet"] if settings.low_vram and spec.parameters else spec.weight_bytes
        return (weights + unet) / 2**20


def _stages(settings: Settings, cost: _Cost) -> dict[str, float]:
    """Seconds of each stage."""
    size, _, factor = _native(settings.backbone)
    width, height = settings.size or size
    seen = volume(settings) * _dearer(width * height, factor)
    each = {"null-text": cost.each["edit"]} | cost.each
    return {stage: each[stage] * n * seen for stage, n in rows(settings, cost.stored).items()}


def sized(settings: Settings, clip: Path | None) -> Settings:
    """The settings with the size at which a clip is edited where they give none."""
    if settings.size or clip is None:
        return settings
    try:
        size = edit_size(clip, settings)
    except FreeMaskError:  # which Edit tells of
        return settings
    return replace(settings, size=(min(2048, size[0]), min(2048, size[1]))) if size else settings


def volume(settings: Settings) -> int:
    """Frames seen in a row, those of overlapping spans each time, × pixels of one."""
    size, frames, _ = _native(settings.backbone)
    width, height = settings.size or size
    return work(settings.frames, frames) * width * height


def _rest(settings: Settings, cost: _Cost) -> float:
    """Seconds beside the UNet."""
    width, height = settings.size or _native(settings.backbone)[0]
    return cost.rest * settings.frames * width * height


def _dearer(pixels: int, factor: int) -> float:
    """How much dearer attention makes a pixel of a frame with so many, where a latent cell stands for factor²."""
    return 1 + pixels / factor**2 / ATTENTION


def _flows(backbone: str) -> bool:
    """Whether a backbone follows a flow, whose first-order inversion asks twice."""
    try:
        return backbone_spec(backbone).path == "flow"
    except FreeMaskError:
        return False


def _native(backbone: str) -> tuple[tuple[int, int], int, int]:
    """The (width, height) that a backbone edits at where none is given, the frames that it sees at once, and the pixels
    of a latent cell along a side; the paper's size and the usual numbers where its folder is not to be read here."""
    try:
        spec = backbone_spec(backbone)
    except FreeMaskError:
        return (512, 512), NATIVE_FRAMES, 8
    return spec.size, spec.frames, spec.vae_factor
