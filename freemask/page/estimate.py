"""How long an edit takes and how much memory it needs on this server, before the button is pressed.

What edits cost here is measured on the edits themselves: seconds for each batch row of the UNet, frame and pixel, and
the peak of the process. Before the first edit with a backbone only the memory is told, where its spec has the figures.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from ..errors import FreeMaskError
from ..presets import Settings, batch_rows
from ..spans import work
from ..specs import NATIVE_FRAMES, backbone_spec, known_backbone

__all__ = ["STAGES", "Estimates", "native_frames", "rows"]

STAGES = ("invert", "reconstruct", "edit")  # in which the UNet runs


def rows(settings: Settings, after: str = "") -> float:
    """Batch rows of the UNet in an edit that inverts: one a step to invert and to reconstruct, two to edit, and one
    more where the source's features are replayed. With `after`, those of the stages that follow it."""
    preset = settings.preset()
    replayed = max(preset.alpha_self, preset.alpha_cross, preset.alpha_temporal)
    again = replayed if settings.features in ("replay", "auto") else 0
    inverted = settings.steps + (settings.solver != "ddim")
    each = [inverted, settings.steps, settings.steps * (2 + again)]
    return sum(each[STAGES.index(after) + 1 :] if after in STAGES else each)


@dataclass
class _Cost:
    """Seconds for a row, frame and pixel; the other seconds but those of loading; pixels of a frame; peak in MiB."""

    each: float
    rest: float
    pixels: int
    memory: float


class Estimates:
    """What edits cost on this server, by backbone. Any thread may learn and ask."""

    def __init__(self) -> None:
        self._costs: dict[str, _Cost] = {}
        self._lock = threading.Lock()

    def learn(self, settings: Settings, report: dict[str, Any]) -> None:
        """Take in a finished edit's report; the newest counts as much as all before."""
        seconds, clip = report["seconds"], report.get("clip")
        used = [(report["unet"][stage]["rows"], seconds[stage]) for stage in STAGES if stage in seconds and clip]
        if not clip or not sum(n for n, _ in used):
            return
        pixels, spent = clip["width"] * clip["height"], sum(s for _, s in used)
        shown = min(clip["frames"], native_frames(settings.backbone))  # frames of a row; a long clip has more rows
        each = spent / (sum(n for n, _ in used) * shown * pixels)
        with self._lock:
            rest = seconds["total"] - spent - seconds.get("load", 0.0)
            old = self._costs.get(settings.backbone, _Cost(each, rest, pixels, 0.0))
            memory, rest = max(old.memory, report["memory"]["peak_mib"]), (old.rest + rest) / 2
            self._costs[settings.backbone] = _Cost((old.each + each) / 2, rest, pixels, memory)

    def seconds(self, settings: Settings, after: str = "") -> float | None:
        """Of an edit that inverts, or of what follows a stage; None before the first edit with this backbone."""
        with self._lock:
            cost = self._costs.get(settings.backbone)
        if cost is None:
            return None
        pixels = settings.size[0] * settings.size[1] if settings.size else cost.pixels
        seen = work(settings.frames, native_frames(settings.backbone))
        return cost.rest + cost.each * rows(settings, after) * seen * pixels

    def memory(self, settings: Settings) -> float | None:
        """In MiB: the highest peak so far, before the first edit of a model from the hub what its spec tells of halves
        on a GPU, else None."""
        with self._lock:
            cost = self._costs.get(settings.backbone)
        if cost:
            return cost.memory
        spec = known_backbone(settings.backbone)
        source = settings.features
        if source == "auto" or source == "store":  # as much as the device has
            return None
        if not (spec and spec.hub_id and spec.working_set and spec.weight_bytes):
            return None
        width, height = settings.size or spec.size
        cells = min(settings.frames, spec.frames) * width * height / spec.vae_factor**2
        unet = batch_rows(source, settings.low_vram) * cells * spec.working_set["unet"]
        return (spec.weight_bytes + unet) / 2**20


def native_frames(backbone: str) -> int:
    """The frames that a backbone sees at once; the usual number where its folder is not to be read here."""
    try:
        return backbone_spec(backbone).frames
    except FreeMaskError:
        return NATIVE_FRAMES
