"""Tasks, settings, examples and backbones: data, validated before anything runs.

A `Preset` is a task read from `presets/*.yaml`, a `BackboneSpec` a model read from `presets/backbones/*.yaml`;
`Settings` is everything one job is asked to do. All are frozen, and an unknown key is an error that names its nearest
neighbour.
"""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import asdict, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from .errors import BackboneError, SettingError

__all__ = [
    "FAST",
    "MASKS",
    "NATIVE_FRAMES",
    "BackboneSpec",
    "Example",
    "FeatureSource",
    "Preset",
    "Settings",
    "Solver",
    "batch_rows",
    "backbone_folder",
    "backbone_name",
    "backbone_spec",
    "backbones",
    "examples",
    "known_backbone",
    "known_words",
    "load_preset",
    "make_settings",
    "read_settings",
    "read_size",
    "task_names",
]

ROOT = Path(__file__).resolve().parent.parent
PRESETS = ROOT / "presets"
TOY_CLIP = ROOT / "freemask" / "toyworld" / "clip"  # the CLIP of mini's world
TASKS = ("style", "attribute", "shape", "place", "official", "official-style")

NATIVE_FRAMES = 24  # what zeroscope-like models were trained on, where no spec says; configs do not
MASKS = "masks.zip"  # the name of a run's masks, beside its settings.json

Selection = Literal["codebook", "adaptive", "consensus"]
FeatureSource = Literal[
    "store", "host", "replay"
]  # where the source's features come from: the device, host RAM, a new run
Solver = Literal["ddim", "dpm"]
FAST: dict[str, Any] = {"steps": 15, "solver": "dpm"}  # about as good as 50 steps of DDIM (ddim.py)
SELECTION_TAU = {"codebook": 0.3, "adaptive": 0.3, "consensus": 0.2}  # a pooled map, or a mean of many that is not
Share = Annotated[float, Field(ge=0, le=1)]
_CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class Preset:
    """How a task masks and fuses (FreeMask Eq. 7-11; FateZero; Prompt-to-Prompt).

    `delta` 1 when the edited object stays the same, 0 when it changes. `region` says where the edit may
    happen: in the object's mask or in the background; `free_self` whether self-attention is free there too, or the
    source's everywhere, which keeps the structure of everything. The alphas are the shares of the steps, from the
    first, in which self, cross, temporal and latent features are fused; `alpha_changed` is the same for
    the cross columns of changed words (None: as `alpha_cross`). `tau` in (0, 1) thresholds the maps,
    `dilate` grows the mask by that many cells of the latent grid, `union` joins it with the edit word's own
    mask, `reweight` scales the changed words' attention, `rescale` is guidance rescale's φ (`ddim.guide`).
    `selection` says where the mask comes from: the candidate that the backbone's codebook names, the one of this
    clip nearest to its maps' consensus, or that consensus itself (`plan`).

    The other fields exist to compare with other methods and with the released code: `mask` "level" is the mean
    over the sites of one grid level (`level` halvings of the finest; None: the released code's), "mean" that over
    all sites, "none" fuses without one; `time_aware` says whether every step uses its own mask (None: where δ is
    0 or the mask is a level's); `cross_order` "blend_first" blends before remapping; `temporal` "inversion_201"
    takes the mask of the label nearest 201 at the site's own grid with source and edit swapped; `max_positions`
    limits self and cross fusion to grids of at most that many positions.
    """

    name: str
    title: str
    summary: str
    delta: Literal[0, 1]
    region: Literal["object", "background"]
    free_self: bool = True
    tau: Annotated[float, Field(gt=0, lt=1)] = 0.3
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
    cross_order: Literal["remap_first", "blend_first"] = "remap_first"
    temporal: Literal["blend", "inversion_201"] = "blend"
    max_positions: Annotated[int, Field(ge=1)] | None = None


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class Settings:
    """One job: the two prompts, the task and the numbers. None means the task's or the clip's own value.

    `size` is (width, height) in pixels, `start` in seconds, `fps` in frames a second, `solver` walks in both
    directions (`ddim.py`), `eta` is the share of noise that DDIM adds (0: deterministic; the seed acts only above 0).
    `features` says where the source's come from, auto by the memory that is free (`memory`), which rounds otherwise
    from one machine to another; `low_vram` takes the least memory, for the most time.

    Instead of a `selection`, a mask of the person's own: `site` is a cross-attention layer, whose map at `timestep`
    is the mask of every step, or where that is None each step's own; `masks` is a zip of PNGs, one a frame.
    """

    source: str
    edit: str
    task: str = "style"
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
        return replace(load_preset(self.task), **{k: v for k, v in chosen.items() if v is not None})

    def record(self, word: str) -> dict[str, Any]:
        """These settings as JSON has them, with the word that was edited; masks stand beside it in `MASKS`."""
        return asdict(self) | {"word": word, "masks": MASKS if self.masks else None}


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class Example:
    """A shipped clip with settings that fill every field; `clip` is a file under `static/clips/`, `made` the folder of
    the edit that ships with it."""

    name: str
    clip: Path
    settings: Settings
    made: Path


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class BackboneSpec:
    """What is known of a text-to-video model before it is loaded.

    `name` is the short one that every part of FreeMask takes; `title` is its line in a list. The weights are in
    `folder`, or on the hub as `hub_id` (`aliases`: other ids of the same weights). `size` is (width, height) in pixels
    and `frames` the clip length that it was trained on; one latent cell stands for `vae_factor` pixels along a side.
    `guidance` is what suits it, `parameters` counts each part's, None where they have not been counted; `working_set`
    is what a part computes in at its peak, in bytes a latent cell, frame and batch row in halves (see `memory`);
    `codebook` is the file under presets/codebooks/ that holds its measured masks, once they are.
    """

    name: str
    title: str
    licence: str
    size: tuple[Annotated[int, Field(ge=16, le=2048)], Annotated[int, Field(ge=16, le=2048)]]
    frames: Annotated[int, Field(ge=1, le=64)]
    vae_factor: Annotated[int, Field(ge=1, le=64)]
    prediction: Literal["epsilon", "v_prediction"]
    guidance: Annotated[float, Field(ge=1, le=30)] = 7.5
    hub_id: str | None = None
    aliases: tuple[str, ...] = ()
    folder: Path | None = None
    parameters: dict[Literal["unet", "vae", "text_encoder"], Annotated[int, Field(ge=1)]] | None = None
    working_set: dict[Literal["unet", "vae"], Annotated[int, Field(ge=1)]] | None = None
    codebook: str | None = None

    @property
    def weight_bytes(self) -> int | None:
        """What the weights take in memory as fp16 or bf16, two bytes a parameter."""
        return 2 * sum(self.parameters.values()) if self.parameters else None


def _unknown(kind: str, given: str, known: list[str] | tuple[str, ...]) -> str:
    near = difflib.get_close_matches(given, known, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"There is no {kind} {given!r}{hint} Known: {', '.join(known)}."


def _validated(cls: type, values: dict[str, Any], where: str) -> Any:
    """An instance of a dataclass, or SettingError naming the field, its range and what was given."""
    try:
        return TypeAdapter(cls).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "?"
        if first["type"] == "unexpected_keyword_argument":
            message = _unknown("setting", name, [f.name for f in fields(cls)])
        else:
            message = f"{name.replace('_', ' ')} is {first.get('input')!r}: {first['msg'].lower()}."
            limits = _limits(cls, name)
            message += f" Allowed: {limits}." if limits else ""
        raise SettingError(f"{where}{message}") from None


def _limits(cls: type, name: str) -> str:
    """The range or the choices of a field in words, "" where it has none."""
    schema = TypeAdapter(cls).json_schema()["properties"].get(name, {})
    options = [schema, *schema.get("anyOf", [])]
    for option in options:
        option = option.get("prefixItems", [option])[0]
        if "enum" in option:
            return " or ".join(map(str, option["enum"]))
        low = option.get("minimum", option.get("exclusiveMinimum"))
        high = option.get("maximum", option.get("exclusiveMaximum"))
        if low is not None and high is not None:
            return f"{low} to {high}" + (", ends excluded" if "exclusiveMinimum" in option else "")
        if low is not None:
            return f"{low} or more"
    return ""


def make_settings(**values: Any) -> Settings:
    """Validated settings; raises SettingError naming the field, what was given and the range."""
    settings: Settings = _validated(Settings, values, "")
    task = load_preset(settings.task)
    own = [name for name in ("selection", "site", "masks") if getattr(settings, name)]
    if own and task.mask != "mmc":
        raise SettingError(f"The task {settings.task!r} has a mask of its own: leave {own[0]} out, or change the task.")
    if len(own) > 1:
        raise SettingError(f"{' and '.join(own)} each name a mask: give one of them.")
    if settings.timestep is not None and settings.site is None:
        raise SettingError("timestep is given without a site: name the layer too, or leave it out.")
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
        raise SettingError(f'"{path}" holds no settings: give a settings.json or report.json of an edit.') from None


def task_names() -> tuple[str, ...]:
    """The tasks, the paper's three first."""
    return TASKS


@lru_cache(maxsize=32)
def load_preset(name: str) -> Preset:
    """The task of a name; raises SettingError for an unknown one."""
    if name not in TASKS:
        raise SettingError(_unknown("task", name, TASKS))
    values = yaml.safe_load((PRESETS / f"{name}.yaml").read_text()) | {"name": name}
    preset: Preset = _validated(Preset, values, f"presets/{name}.yaml: ")
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


@lru_cache(maxsize=1)
def backbones() -> tuple[BackboneSpec, ...]:
    """The backbones of `presets/backbones/*.yaml`, those that ship with the code first."""
    found = []
    for path in sorted((PRESETS / "backbones").glob("*.yaml")):
        values = yaml.safe_load(path.read_text()) | {"name": path.stem}
        spec: BackboneSpec = _validated(BackboneSpec, values, f"presets/backbones/{path.name}: ")
        if (spec.folder is None) == (spec.hub_id is None):
            raise SettingError(f"presets/backbones/{path.name}: give a folder or a hub_id, one of them.")
        found.append(replace(spec, folder=ROOT / spec.folder) if spec.folder else spec)
    return tuple(sorted(found, key=lambda spec: spec.folder is None))


def known_backbone(name: str) -> BackboneSpec | None:
    """The spec of a short name or a hub id, None where there is none."""
    return next((spec for spec in backbones() if name in (spec.name, spec.hub_id, *spec.aliases)), None)


def backbone_name(name: str) -> str:
    """The short name of a backbone where it has one, so that settings, codebooks and lists agree; else `name`."""
    spec = known_backbone(name)
    return spec.name if spec else name


def backbone_spec(name: str, folder: Path | None = None) -> BackboneSpec:
    """The spec of a short name, a hub id or a folder; one without a file is read from the configs in its folder.

    `folder` is where an unlisted hub id lies. Raises SettingError for an unknown name, BackboneError where the configs
    are missing or say too little.
    """
    spec = known_backbone(name)
    if spec:
        return spec
    folder = folder or backbone_folder(name)
    if folder is None:
        raise BackboneError(f"Nothing is known of {name!r} before it is here: `python -m freemask download {name}`.")
    path = folder
    try:
        configs = []
        for part, file in (("unet", "config"), ("vae", "config"), ("scheduler", "scheduler_config")):
            path = folder / part / f"{file}.json"
            configs.append(json.loads(path.read_text(encoding="utf-8")))
        unet, vae, scheduler = configs
        factor = 2 ** (len(vae.get("encoder_block_out_channels") or vae["block_out_channels"]) - 1)
        side = unet.get("sample_size") or 32  # what all text-to-video models of this class were trained at
        h, w = (side, side) if isinstance(side, int) else side
        prediction = scheduler.get("prediction_type", "epsilon")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackboneError(f"{path} does not describe a part of a text-to-video pipeline ({error!r}).") from None
    values = {
        "name": name,
        "title": name,
        "licence": "unknown: see where you got it",
        "size": (w * factor, h * factor),
        "frames": NATIVE_FRAMES,
        "vae_factor": factor,
        "prediction": prediction,
        "folder": folder,
    }
    try:
        derived: BackboneSpec = _validated(BackboneSpec, values, f"{folder}: ")
    except SettingError as error:
        raise BackboneError(str(error)) from None
    return derived


def backbone_folder(name: str) -> Path | None:
    """The local folder of a backbone, or None where the name stands for a hub id such as "owner/model".

    Raises SettingError where the name is neither.
    """
    spec = known_backbone(name)
    if spec:
        return spec.folder
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return None
    short = [spec.name for spec in backbones()]
    raise SettingError(
        f"{_unknown('backbone', name, short)} Or give a hub id such as 'cerspense/zeroscope_v2_576w', or a folder that "
        "holds a diffusers text-to-video pipeline."
    )


def known_words(backbone: str) -> tuple[str, ...] | None:
    """The only words that a backbone has seen (its `vocabulary.json`), or None where it knows the language."""
    folder = backbone_folder(backbone)
    path = folder / "vocabulary.json" if folder else None
    return tuple(json.loads(path.read_text())) if path and path.exists() else None
