"""Which mask an edit uses at every step (FreeMask Eq. 7-8), decided before any denoising.

For δ = 0 (the object changes) the mask is time-aware, M_t^{l*}; for δ = 1 it is time-agnostic, M_{t*}^{l*} (the
paper's M_t^{t*} read as that). l* and t* come from the backbone's codebook, or from this clip: adaptive selection
ranks its candidates by their IoU with the clip's own consensus (`candidates.consensus`). Or the consensus itself is the
mask, at every step. A painted mask replaces all of these. Means over sites, FateZero's and the released code's masks,
are here too.

What ranks candidates without a reference was measured on 14 rendered scenes (mini at 64 pixels, pooled maps, 15 steps,
seeds from 2,000,500; Spearman's ρ with the true IoU, and the IoU of the candidate ranked first, where the best has .625
and the codebook's .621): IoU with the consensus 1.00, .624; the spread of the map alone .86, .589; entropy .66, .558;
agreement between neighbouring frames −.82, .206, and between neighbouring timesteps −.60, .216, for a coarse map is the
same everywhere. So agreement with the consensus is what is used, also where a backbone has no codebook: the site that
would be the fallback there has a mean IoU of .39 on mini, where the codebook's has .62 (3 scenes).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from ..errors import MaskError
from ..families.sites import Site
from ..presets import Preset
from ..words.prompts import find_word
from .candidates import candidate, candidates, consensus, dilate, extract, resize
from .mmc import Choice, iou
from .trace import Trace

__all__ = ["MaskPlan", "is_time_aware", "mean_mask", "plan_masks"]


@dataclass(frozen=True)
class MaskPlan:
    """The masks of one edit. `object_at[t]` (f, h, w) bool at the latents' grid, True = object (M);
    `shown` (f, H, W) bool at the frames' size; `choice` says where it came from; `cells` are the maps (t, site name)
    that `shown` was made from, none where it was painted or averaged over sites; `area` is a share in [0, 1]."""

    object_at: dict[int, np.ndarray]
    shown: np.ndarray
    choice: Choice
    warnings: list[str] = field(default_factory=list)
    cells: tuple[tuple[int, str], ...] = ()

    @property
    def area(self) -> float:
        return float(self.shown.mean())


def plan_masks(trace: Trace, choice: Choice, *, word: str, task: Preset, mask: np.ndarray | None = None) -> MaskPlan:
    """The masks of an edit from the trace's word maps, or from a painted `mask` (f, H, W) bool, True = object.

    Raises PromptError for a word that the source prompt lacks, MaskError where a map holds no mask.
    """
    find_word(trace.prompt, word)
    frames, h, w = trace.clip.frames.shape[:3]
    if task.mask == "none" and mask is None:
        mask = np.zeros((frames, h, w), bool)
    elif mask is not None:
        choice = Choice(choice.site, choice.timestep, "painted")
    cells: tuple[tuple[int, str], ...] = ()
    if mask is not None:
        native = dict.fromkeys(trace.timesteps, mask)
        shown = resize(mask, (h, w))
    else:
        made: dict[int, np.ndarray] = {}
        selection = task.selection
        if selection == "codebook" and choice.origin == "fallback":
            selection = "adaptive"
        if task.mask == "mmc" and selection != "codebook":
            agreed = consensus(trace, word)
            mean = extract(agreed.soft, task.tau, pool=False)
            choice = _nearest(trace, word, task.tau, mean, origin=selection)
            if selection == "consensus":
                made[choice.timestep], cells = mean, agreed.cells
        wanted = {t: t if is_time_aware(task) else choice.timestep for t in trace.timesteps}
        for t in {*wanted.values(), choice.timestep} - made.keys():
            made[t] = _mask(trace, choice, word, task, t)
        if task.mask == "mmc" and not cells:
            cells = tuple((t, choice.site.name) for t in sorted(set(wanted.values())))
        native = {t: made[source] for t, source in wanted.items()}
        shown = resize(dilate(resize(made[choice.timestep], trace.grid), task.dilate), (h, w))
    every = {t: dilate(resize(m, trace.grid), task.dilate) for t, m in native.items()}
    if mask is not None and task.dilate:
        shown = resize(every[choice.timestep], (h, w))
    notes = []
    if shown.mean() > 0.95:
        notes.append("The mask covers almost the whole picture; the edit will not be held to the object.")
    if task.mask != "none" and not shown.any(axis=(1, 2)).all():
        notes.append("The mask is empty on some frames; nothing of the object will change there.")
    return MaskPlan(every, shown, choice, notes, cells)


def _nearest(trace: Trace, word: str, tau: float, mean: np.ndarray, *, origin: str) -> Choice:
    """l*, t* of this clip: the candidate with the highest IoU with its consensus `mean` (f, h, w) bool."""
    found = candidates(trace, word, tau=tau, size=trace.grid)
    timestep, name = max(found, key=lambda cell: iou(found[cell], mean))
    return Choice(next(site for site in trace.sites if site.name == name), timestep, origin)


def is_time_aware(task: Preset) -> bool:
    """Whether every step uses the mask of its own timestep, rather than t*'s or the consensus."""
    if task.mask == "mmc" and task.selection == "consensus":
        return False
    return task.delta == 0 or task.mask == "level" if task.time_aware is None else task.time_aware


def _mask(trace: Trace, choice: Choice, word: str, task: Preset, t: int) -> np.ndarray:
    """M_t at its native grid: of l*, or a mean over sites. The released code's level is the one whose side is a
    quarter of the finest (the finest itself where that would have under 8 × 8 positions), or the nearest that there is:
    a transformer has one."""
    if task.mask == "mmc":
        return candidate(trace, word, t=t, site=choice.site, tau=task.tau)
    if task.mask == "mean":
        return mean_mask(trace, word, task.tau, t, None)
    h, w = Site("", "cross", 2).grid(trace.grid)
    levels = {site.level for site in trace.sites if site.kind == "cross"}
    official = min(levels, key=lambda level: abs(level - (2 if h * w >= 64 else 0)))
    return mean_mask(trace, word, task.tau, t, official if task.level is None else task.level)


def mean_mask(trace: Trace, word: str, tau: float, t: int, level: int | None) -> np.ndarray:
    """The mean over the cross sites of one grid level (FateZero) or, at the finest grid, of all, thresholded."""
    at = find_word(trace.prompt, word)
    sites = [s for s in trace.sites if s.kind == "cross" and level in (None, s.level)]
    if not sites:
        raise MaskError(f"No layer's grid was halved {level} times; leave the level out, or choose another mask.")
    maps = [trace.word_map(t, s, at) for s in sites]
    if level is None:  # a softmax over the words everywhere, so the maps of different grids compare
        h, w = max(soft.shape[1:] for soft in maps)
        maps = [np.stack([cv2.resize(frame, (w, h)) for frame in soft]) for soft in maps]
    return extract(np.mean(maps, axis=0), tau)
