"""Tasks, settings and examples: data, validated before anything runs.

A `Preset` is how a method does a task, read from `presets/METHOD/TASK.yaml`; `Settings` is everything one job is asked
to do. Both are frozen, and an unknown key is an error that names its nearest neighbour.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field
from pydantic.dataclasses import dataclass

from .errors import SettingError
from .families.sites import Kind
from .families.specs import PRESETS, ROOT, Solver, backbone_folder, backbone_name
from .validation import STRICT, refuse_unknown, validated

__all__ = [
    "FAST",
    "MASKS",
    "Example",
    "FeatureSource",
    "Method",
    "KINDS",
    "Preset",
    "Settings",
    "batch_rows",
    "examples",
    "load_method",
    "load_preset",
    "make_settings",
    "methods",
    "read_settings",
    "read_size",
    "task_names",
]

TASKS = ("style", "attribute", "shape", "place")
METHODS = tuple(
    sorted((path.parent.name for path in PRESETS.glob("*/method.yaml")), key=lambda n: (n != "freemask", n))
)
OLD_TASKS = {"official": "shape", "official-style": "style"}  # of the method "released", as they were named before
KINDS: tuple[Kind, ...] = ("self", "cross", "temporal")
MASKS = "masks.zip"  # the name of a run's masks, beside its settings.json

Selection = Literal["codebook", "adaptive", "consensus"]
FeatureSource = Literal["store", "host", "replay"]  # the source's: from the device, from host RAM, by a run of its own
FAST: dict[str, Any] = {"steps": 15, "solver": "dpm"}  # about as good as 50 steps of DDIM (ddim.py)
SELECTION_TAU = {"codebook": 0.4, "adaptive": 0.4, "consensus": 0.5}  # of one map, or of a mean of many (`candidates`)
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Method:
    """A way to edit: its short `name`, its `title`, the `paper` that it comes from, what it does in a sentence, whether
    a chosen or painted mask can act in it, the kinds of attention that it `fuses`, and whose `features`: those of the
    inversion, or those of the source's own denoising, the reconstruction."""

    name: str
    title: str
    paper: str
    summary: str
    masked: bool = True
    fuses: tuple[Kind, ...] = ()
    features: Literal["inversion", "reconstruction"] = "inversion"


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
    most that many positions.
    """

    name: str
    title: str
    summary: str
    delta: Literal[0, 1]
    region: Literal["object", "background"]
    method: str = "freemask"
    free_self: bool = True
    tau: Annotated[float, Field(gt=0, lt=1)] = 0.4
    alpha_self: Share = 0.99
    alpha_cross: Share = 0.99
    alpha_temporal: Share = 0.99
    alpha_latent: Share = 0.0
    alpha_changed: Share | None = None
    dilate: Annotated[int, Field(ge=0, le=16)] = 0
    union: bool = False
    reweight: Annotated[float, Field(ge=0, le=10)] = 1.0
    rescale: Share = 0.0
    selection: Selection = "codebook"
    mask: Literal["mmc", "level", "mean", "none"] = "mmc"
    level: Annotated[int, Field(ge=0, le=8)] | None = None
    time_aware: bool | None = None
    max_positions: Annotated[int, Field(ge=1)] | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Settings:
    """One job: the two prompts, the task and the numbers. None means the task's or the clip's own value.

    `size` is (width, height) in pixels, `start` in seconds, `fps` in frames a second, `solver` walks in both
    directions (`ddim.py`), `eta` is the share of noise that DDIM adds (0: deterministic; the seed acts only above 0).
    `features` says where the source's come from, auto by the memory that is free (`memory`), which rounds otherwise
    from one machine to another; `low_vram` takes the least memory, for the most time.

    A `selection` under a method that has other masks puts FreeMask's in their place, such as in FateZero + MMC. Instead
    of a `selection`, a mask of the person's own: `site` is a cross-attention layer, whose map at `timestep`
    is the mask of every step, or where that is None each step's own; `masks` is a zip of PNGs, one a frame.
    """

    source: str
    edit: str
    task: str = "style"
    method: str = "freemask"
    word: str | None = None
    backbone: str = "mini"
    steps: Annotated[int, Field(ge=2, le=200)] = 25
    solver: Solver = "ddim"
    guidance: Annotated[float, Field(ge=1, le=30)] = 7.5
    frames: Annotated[int, Field(ge=1, le=64)] = 8
    start: Annotated[float, Field(ge=0)] = 0.0
    fps: Annotated[float, Field(ge=0.5, le=60)] | None = None
    size: tuple[Annotated[int, Field(ge=16, le=2048)], Annotated[int, Field(ge=16, le=2048)]] | None = None
    eta: Share = 0.0
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    features: Literal[FeatureSource, "auto"] = "replay"
    low_vram: bool = False
    tau: Annotated[float, Field(gt=0, lt=1)] | None = None
    alpha_self: Share | None = None
    alpha_cross: Share | None = None
    alpha_temporal: Share | None = None
    alpha_latent: Share | None = None
    alpha_changed: Share | None = None
    reweight: Annotated[float, Field(ge=0, le=10)] | None = None
    dilate: Annotated[int, Field(ge=0, le=16)] | None = None
    union: bool | None = None
    rescale: Share | None = None
    selection: Selection | None = None
    site: str | None = None
    timestep: Annotated[int, Field(ge=0, lt=1000)] | None = None
    masks: Path | None = None

    def preset(self) -> Preset:
        """The task's preset with this job's own values put in; τ follows a selection that comes without one."""
        names = {f.name for f in fields(Preset)}
        chosen = {f.name: getattr(self, f.name) for f in fields(self) if f.name in names}
        if self.site:
            chosen |= {"selection": "codebook", "time_aware": self.timestep is None}
        if chosen["selection"] and self.tau is None:
            chosen["tau"] = SELECTION_TAU[chosen["selection"]]
        own = load_preset(self.task, self.method)
        if own.mask != "mmc" and (chosen["selection"] or self.masks):
            chosen |= {"mask": "mmc", "free_self": True}
        return replace(own, **{k: v for k, v in chosen.items() if v is not None})

    def record(self, word: str) -> dict[str, Any]:
        """These settings as JSON has them, with the word that was edited; masks stand beside it in `MASKS`."""
        return asdict(self) | {"word": word, "masks": MASKS if self.masks else None}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Example:
    """A shipped clip with settings that fill every field; `clip` is a file under `static/clips/`, `made` the folder of
    the edit that ships with it."""

    name: str
    clip: Path
    settings: Settings
    made: Path

    @property
    def picture(self) -> Path:
        """A frame before and after the edit, side by side."""
        return self.made.with_suffix(".jpg")


def make_settings(*, labels: Mapping[str, str] | None = None, **values: Any) -> Settings:
    """Validated settings; raises SettingError naming the field, what was given and the range.

    `labels` are what people know the fields of masks by, where that is not their names.
    """
    if (old := OLD_TASKS.get(str(values.get("task")))) is not None:
        values |= {"task": old, "method": "released"}
    settings: Settings = validated(Settings, values, "")
    load_preset(settings.task, settings.method)  # refuses unknown names
    named = {name: (labels or {}).get(name, name) for name in ("selection", "site", "timestep", "masks")}
    own = [told for name, told in named.items() if name != "timestep" and getattr(settings, name)]
    if own and not load_method(settings.method).masked:
        raise SettingError(f"The method {settings.method!r} takes no mask: leave {own[0]} out, or change the method.")
    fuses = load_method(settings.method).fuses
    for kind in (*KINDS, "latent"):
        if getattr(settings, f"alpha_{kind}") and (not fuses or kind in KINDS and kind not in fuses):
            raise SettingError(
                f"The method {settings.method!r} fuses nothing {kind}: leave alpha_{kind} out, or change the method."
            )
    if len(own) > 1:
        raise SettingError(f"{' and '.join(own)} each name a mask: give one of them.")
    if settings.timestep is not None and settings.site is None:
        raise SettingError(
            f"{named['timestep']} is given without {named['site']}: name the layer too, or leave it out."
        )
    if settings.eta > 0 and settings.solver != "ddim":
        raise SettingError(
            f"The solver {settings.solver!r} adds no noise: leave eta at 0, or change the solver to ddim."
        )
    backbone_folder(settings.backbone)
    return replace(settings, backbone=backbone_name(settings.backbone))


def read_size(text: str) -> tuple[int, int] | None:
    """A (width, height) as people write it, such as "576x320"; None for an empty text, else SettingError."""
    if not text.strip():
        return None
    found = re.fullmatch(r"\s*(\d{1,5})\s*[x×]\s*(\d{1,5})\s*", text, re.IGNORECASE)
    if found is None:
        raise SettingError(f"size is {text!r}: write WIDTHxHEIGHT in pixels, such as 128x128, or leave it empty.")
    return int(found[1]), int(found[2])


def batch_rows(features: FeatureSource, one_row: bool) -> int:
    """How many batch rows an edit's forwards have: two of guidance, and the source's own where it is replayed."""
    return 1 if one_row else 3 if features == "replay" else 2


def read_settings(path: Path) -> dict[str, Any]:
    """The values of a settings.json, or of the settings in a report.json; raises SettingError for anything else.

    They are validated where they are used, by `make_settings`. Masks are looked for beside the file.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values = {**values.get("settings", values)}
        return values | {"masks": path.parent / values["masks"]} if values.get("masks") else values
    except (OSError, ValueError, AttributeError, TypeError):
        raise SettingError(
            f'"{path.name}" holds no settings: give a settings.json or report.json of an edit.'
        ) from None


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
    values = yaml.safe_load((PRESETS / name / "method.yaml").read_text()) | {"name": name}
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
    values = yaml.safe_load(path.read_text())
    if "like" in values:
        values = yaml.safe_load((path.parent / f"{values['like']}.yaml").read_text())
    if method != "freemask":
        base = load_preset(task)
        values = {name: getattr(base, name) for name in ("title", "summary", "delta", "region")} | values
    closed = {f"alpha_{kind}": 0.0 for kind in KINDS if kind not in load_method(method).fuses}
    values = closed | values | {"name": task, "method": method}
    preset: Preset = validated(Preset, values, f"presets/{method}/{task}.yaml: ")
    return preset


def examples() -> list[Example]:
    """The shipped examples, in the order of their file names."""
    found = []
    for path in sorted((PRESETS / "examples").glob("*.yaml")):
        values = yaml.safe_load(path.read_text())
        clip = ROOT / "static" / "clips" / values.pop("clip")
        name = values.pop("name")
        made = ROOT / "static" / "examples" / path.stem
        found.append(Example(name=name, clip=clip, settings=make_settings(**values), made=made))
    return found
