"""How long an edit takes and how much memory it needs on this server, before the button is pressed.

What edits cost here is measured on the edits themselves: seconds for each batch row of the UNet, frame and pixel, and
the peak of the process. Before the first edit with a backbone only the memory is told, where its spec has the figures.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from ..errors import FreeMaskError
from ..jobs import Snapshot
from ..presets import Settings, batch_rows
from ..spans import work
from ..specs import NATIVE_FRAMES, backbone_spec, known_backbone

__all__ = ["Estimates", "rows", "volume"]

STAGES = ("invert", "reconstruct", "edit")  # in which the UNet runs


def rows(settings: Settings) -> dict[str, float]:
    """Batch rows of the UNet in the stages of an edit that inverts: one a step to invert and to reconstruct, two to
    edit, and one more where the source's features are replayed."""
    preset = settings.preset()
    replayed = max(preset.alpha_self, preset.alpha_cross, preset.alpha_temporal)
    again = replayed if settings.features in ("replay", "auto") else 0
    n = settings.steps
    return {"invert": n + (settings.solver != "ddim"), "reconstruct": n, "edit": n * (2 + again)}


@dataclass
class _Cost:
    """Seconds for a row, frame and pixel, by stage; the other seconds but those of loading; peak in MiB."""

    each: dict[str, float]
    rest: float
    memory: float


class Estimates:
    """What edits cost on this server, by backbone. Any thread may learn and ask."""

    def __init__(self) -> None:
        self._costs: dict[str, _Cost] = {}
        self._lock = threading.Lock()

    def learn(self, settings: Settings, report: dict[str, Any]) -> None:
        """Take in a finished edit's report; the newest counts as much as all before."""
        seconds, clip = report["seconds"], report.get("clip")
        if not clip or "unet" not in report:
            return
        shown = min(clip["frames"], _native(settings.backbone)[1])  # frames of a row; a long clip has more rows
        used = {stage: report["unet"][stage]["rows"] * shown * clip["width"] * clip["height"] for stage in STAGES}
        each = {stage: seconds[stage] / used[stage] for stage in STAGES if stage in seconds and used[stage]}
        rest = seconds["total"] - sum(seconds[stage] for stage in each) - seconds.get("load", 0.0)
        with self._lock:
            old = self._costs.get(settings.backbone)
            if old is None:
                if len(each) == len(STAGES):
                    self._costs[settings.backbone] = _Cost(each, rest, report["memory"]["peak_mib"])
                return
            old.each |= {stage: (old.each[stage] + each[stage]) / 2 for stage in each}
            old.rest, old.memory = (old.rest + rest) / 2, max(old.memory, report["memory"]["peak_mib"])

    def seconds(self, settings: Settings) -> float | None:
        """Of an edit that inverts; None before the first edit with this backbone."""
        with self._lock:
            cost = self._costs.get(settings.backbone)
            return cost.rest + sum(_stages(settings, cost).values()) if cost else None

    def later(self, settings: Settings, now: Snapshot) -> float | None:
        """Of what follows a stage of the UNet, if the other stages are as much slower or faster than they were as this
        one is; None where nothing is known."""
        with self._lock:
            cost = self._costs.get(settings.backbone)
            if cost is None or now.step is None or now.step.stage not in STAGES or now.pace is None:
                return None
            expected, at = _stages(settings, cost), STAGES.index(now.step.stage)
            slower = now.pace * now.step.total / expected[now.step.stage]
            return cost.rest + slower * sum(expected[stage] for stage in STAGES[at + 1 :])

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


def _stages(settings: Settings, cost: _Cost) -> dict[str, float]:
    """Seconds of each stage."""
    seen = volume(settings)
    return {stage: cost.each[stage] * n * seen for stage, n in rows(settings).items()}


def volume(settings: Settings) -> int:
    """Frames seen in a row, those of overlapping spans each time, × pixels of one."""
    size, frames = _native(settings.backbone)
    width, height = settings.size or size
    return work(settings.frames, frames) * width * height


def _native(backbone: str) -> tuple[tuple[int, int], int]:
    """The (width, height) that a backbone edits at where none is given, and the frames that it sees at once; the
    paper's size and the usual number where its folder is not to be read here."""
    try:
        spec = backbone_spec(backbone)
    except FreeMaskError:
        return (512, 512), NATIVE_FRAMES
    return spec.size, spec.frames
