"""Methods and tasks: data, validated as it is read.

A `Preset` is how a method does a task, read from `presets/METHOD/TASK.yaml`. It is frozen, and an unknown key is an
error that names its nearest neighbour.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from .errors import SettingError
from .families.sites import Kind
from .families.specs import PRESETS
from .validation import STRICT, read_shipped, refuse_unknown, validated

__all__ = [
    "KINDS",
    "METHODS",
    "SELECTION_TAU",
    "Cells",
    "Director",
    "Flowing",
    "Method",
    "Preset",
    "Selection",
    "Share",
    "Threshold",
    "Timestep",
    "load_method",
    "load_preset",
    "masked",
    "methods",
    "refuse_path",
    "refuse_shares",
    "task_names",
]

TASKS = ("style", "attribute", "shape", "place")
METHODS = tuple(
    sorted((path.parent.name for path in PRESETS.glob("*/method.yaml")), key=lambda n: (n != "freemask", n))
)
KINDS: tuple[Kind, ...] = ("self", "cross", "temporal")

Selection = Literal["codebook", "adaptive", "consensus"]
SELECTION_TAU = {"codebook": 0.4, "adaptive": 0.4, "consensus": 0.5}  # of one map, or of a mean of many (`candidates`)
Share = Annotated[float, Field(ge=0, le=1)]
Threshold = Annotated[float, Field(gt=0, lt=1)]  # τ
Cells = Annotated[int, Field(ge=0, le=16)]  # of the latent grid
Timestep = Annotated[int, Field(ge=0, le=1000)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Method:
    """A way to edit: its short `name`, its `title`, the `paper` that it comes from, what it does in a sentence, whether
    a chosen or painted mask can act in it, the kinds of attention that it `fuses`, and whose `features`: those that the
    inversion saw, those of its latents under their own labels (the pivots), those of the source's own denoising, the
    reconstruction, or without any inversion those of the clip with fresh noise, drawn for every level. `path` is that
    of the models it is for, None where it is for all."""

    name: str
    title: str
    paper: str
    summary: str
    masked: bool = True
    fuses: tuple[Kind, ...] = ()
    features: Literal["inversion", "pivots", "reconstruction", "drawn"] = "inversion"
    path: Literal["diffusion", "flow"] | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Director:
    """What VideoDirector has beside its two windows, which are `alpha_self` (τ_s) and `alpha_cross` (τ_c).

    `null_text` says whether every frame has an unconditional embedding of its own or all share one, and
    `null_text_steps` how many steps of Adam optimise it at each noise level (0: it stays the encoder's "", and there is
    no stage 1). `stdg` is the strength of the spatial-temporal decoupled guidance (0: none), whose η weigh temporal
    attention and whose ζ weigh self-attention keys, each in the object (`_f`) and in the background (`_b`). They are
    compared in `blocks` of the UNet, temporal attention at its `top_k` frames. `guided` says whose latents the
    guidance of the edit is taken at: the edit's own, or those of the source's reconstruction in stage 1. `sa_ii` is
    self-attention on both clips after τ_s.
    """

    null_text: Literal["multi-frame", "shared"] = "multi-frame"
    null_text_steps: Annotated[int, Field(ge=0, le=50)] = 5
    stdg: Annotated[float, Field(ge=0, le=100)] = 5.0
    eta_f: Annotated[float, Field(ge=0, le=10)] = 0.5
    eta_b: Annotated[float, Field(ge=0, le=10)] = 0.5
    zeta_f: Annotated[float, Field(ge=0, le=10)] = 0.0
    zeta_b: Annotated[float, Field(ge=0, le=10)] = 0.5
    blocks: tuple[str, ...] = ("up_blocks.1",)
    top_k: Annotated[int, Field(ge=1, le=64)] = 1
    guided: Literal["edit", "source"] = "edit"
    sa_ii: bool = True


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Flowing:
    """What FlowEdit has beside its window of self-attention and its `strength`: the guidance of the source's own
    velocity, over how many draws of noise ΔV is averaged, how the mask acts on ΔV, and three terms of others, each 0
    where it is left out (`methods.flowedit`)."""

    source_guidance: Annotated[float, Field(ge=1, le=30)] = 1.5
    n_avg: Annotated[int, Field(ge=1, le=8)] = 1
    mask: Literal["none", "hard", "soft"] = "hard"
    consistency: Annotated[float, Field(ge=0, le=10)] = 0.0
    contrast: Annotated[float, Field(ge=0, le=10)] = 0.0
    lift: Annotated[float, Field(ge=0, le=10)] = 0.0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Preset:
    """How a method does a task: how it masks and fuses (FreeMask Eq. 7-11; FateZero Eq. 5-7; Prompt-to-Prompt).

    `delta` 1 when the edited object stays the same, 0 when it changes. `region` says where the edit may
    happen: in the object's mask or in the background; `free_self` whether self-attention is free there too, or the
    source's everywhere, which keeps the structure of everything. The alphas are the shares of the steps, from the
    first, in which self, cross, temporal and latent features are fused; `alpha_changed` is the same for
    the cross columns of changed words (None: as `alpha_cross`). `tau` in (0, 1) thresholds the maps,
    `dilate` grows the mask by that many cells of the latent grid, `union` joins it with the edit word's own
    mask, `reweight` scales the changed words' attention, `rescale` is guidance rescale's φ (`ddim.guide`).
    `selection` says where the mask comes from: the candidate that the backbone's codebook names, the one of this
    clip nearest to its maps' consensus, or that consensus itself (`plan`).

    `mask` "level" is the mean over the sites of one grid level (`level` halvings of the finest; None: the released
    code's), "mean" that over all sites, "none" fuses without one; `time_aware` says whether every step uses its own
    mask (None: where δ is 0 or the mask is a level's); `max_positions` limits self and cross fusion to grids of at
    most that many positions. `strength` is the share of the noise levels, from the lowest, that the edit walks down
    (SDEdit's strength, FlowEdit's n_max); windows count from the first of these. `director` is what VideoDirector
    alone has, `flow` what FlowEdit has.
    """

    name: str
    title: str
    summary: str
    delta: Literal[0, 1]
    region: Literal["object", "background"]
    method: str = "freemask"
    free_self: bool = True
    tau: Threshold = 0.4
    alpha_self: Share = 0.99
    alpha_cross: Share = 0.99
    alpha_temporal: Share = 0.99
    alpha_latent: Share = 0.0
    alpha_changed: Share | None = None
    dilate: Cells = 0
    union: bool = False
    reweight: Annotated[float, Field(ge=0, le=10)] = 1.0
    rescale: Share = 0.0
    selection: Selection = "codebook"
    mask: Literal["mmc", "level", "mean", "none"] = "mmc"
    level: Annotated[int, Field(ge=0, le=8)] | None = None
    time_aware: bool | None = None
    max_positions: Annotated[int, Field(ge=1)] | None = None
    strength: Annotated[float, Field(gt=0, le=1)] = 1.0
    director: Director | None = None
    flow: Flowing | None = None

    @property
    def source_guidance(self) -> float | None:
        """The guidance of the source's own prompt; None where the method has none."""
        return self.flow.source_guidance if self.flow else None

    @property
    def null_text_steps(self) -> int | None:
        """Those of `director`, None for a method without."""
        return self.director.null_text_steps if self.director else None


def masked(preset: Preset) -> Preset:
    """The preset as it is under a mask of FreeMask's or a person's own: one with another mask, or none, gives
    self-attention free in it."""
    return preset if preset.mask == "mmc" else replace(preset, mask="mmc", free_self=True)


def refuse_path(method: str, backbone: str, path: str) -> None:
    """Raises SettingError where a method is for models with another path to noise than `path`."""
    asked = load_method(method)
    kinds = {"diffusion": "diffusion models, such as mini", "flow": "transformers that follow a flow, such as Wan's"}
    if asked.path not in (None, path):
        raise SettingError(
            f"{asked.title} is for {kinds[str(asked.path)]}, and {backbone} is none: choose another method, or another "
            "backbone."
        )


def refuse_shares(asked: Any) -> None:
    """Raises SettingError where a preset, or settings, want a share of what their method does not fuse."""
    fuses = load_method(asked.method).fuses
    for kind in (*KINDS, "latent"):
        if getattr(asked, f"alpha_{kind}") and (not fuses or kind in KINDS and kind not in fuses):
            raise SettingError(
                f"The method {asked.method!r} fuses nothing {kind}: leave alpha_{kind} out, or change the method."
            )


def task_names() -> tuple[str, ...]:
    """The tasks, the paper's three first."""
    return TASKS


def methods() -> tuple[Method, ...]:
    """The methods, FreeMask first."""
    return tuple(map(load_method, METHODS))


@lru_cache(maxsize=16)
def load_method(name: str) -> Method:
    """The method of a name; raises SettingError for an unknown one."""
    refuse_unknown("method", name, METHODS)
    values = read_shipped(PRESETS / name / "method.yaml") | {"name": name}
    method: Method = validated(Method, values, f"presets/{name}/method.yaml: ")
    return method


@lru_cache(maxsize=64)
def load_preset(task: str, method: str = "freemask") -> Preset:
    """How a method does a task; raises SettingError for an unknown one.

    What a task is (its title, δ, region) is FreeMask's to say; a preset that is `like` another task's takes its values.
    """
    refuse_unknown("task", task, TASKS)
    refuse_unknown("method", method, METHODS)
    path = PRESETS / method / f"{task}.yaml"
    values = read_shipped(path)
    if "like" in values:
        values = read_shipped(path.parent / f"{values['like']}.yaml")
    if method != "freemask":
        base = load_preset(task)
        values = {name: getattr(base, name) for name in ("title", "summary", "delta", "region")} | values
    closed = {f"alpha_{kind}": 0.0 for kind in KINDS if kind not in load_method(method).fuses}
    values = closed | values | {"name": task, "method": method}
    preset: Preset = validated(Preset, values, f"presets/{method}/{task}.yaml: ")
    return preset
