"""What one edit is asked to do, and the examples that ship: data, validated before anything runs.

`Settings` is the one list of what can be set: the command, the API and the tool for agents are made from it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from .bends import read_bend
from .changes import Change, check_changes, found_changes, read_changes, written
from .clips.strides import MOST_FRAMES
from .errors import SettingError
from .families.specs import PRESETS, ROOT, Solver, backbone_folder, backbone_name, usual_guidance
from .presets import (
    SELECTION_TAU,
    Cells,
    Preset,
    Selection,
    Share,
    Threshold,
    Timestep,
    load_method,
    load_preset,
    masked,
    refuse_shares,
)
from .validation import STRICT, read_shipped, validated
from .words.prompts import usual_task, words

__all__ = [
    "CHANGE_PICTURE",
    "EXAMPLES",
    "EXTRAS",
    "FAST",
    "DRAWN",
    "LABELS",
    "MASKS",
    "NULL_TEXT",
    "Example",
    "FeatureSource",
    "Settings",
    "batch_rows",
    "examples",
    "fast_settings",
    "infer_settings",
    "make_settings",
    "read_settings",
    "read_size",
]

INFERRED = ("task", "guidance", "changes")  # where they are left out
ONE = ("task", "word", "site", "selection", "masks", "union")  # which say that there is one change
OLD_TASKS = {"official": "shape", "official-style": "style"}  # of the method "released", as they were named before
EXAMPLES = ROOT / "static" / "examples"  # the edits that ship
REPORT = "report.json"  # of an edit, written when its folder may be shown
LARGEST = 2**22  # bytes of a file of settings; a report of 200 steps of null-text optimisation has a tenth of that
MASKS = "masks.zip"  # the name of a run's masks, beside its settings.json
LABELS = "labels.zip"  # and of those that were given for several changes
CHANGE_PICTURE = "change-{}.png"  # of several changes, each one's mask on the middle frame
NULL_TEXT = "null-text.png"  # and of the curve of its null-text optimisation, where it had one
EXTRAS = {  # files of a run that are made when somebody asks for them, and what they are
    "edited.gif": "GIF",
    "comparison.mp4": "Side by side (MP4)",
    "masks.png": "Contact sheet (PNG)",
    "masks.pdf": "Contact sheet (PDF)",
    "masks.npz": "The word's maps (NPZ)",
    "words.npz": "All words' maps (NPZ)",
}


def _readable(prompt: str) -> str:
    words(prompt)  # or it is too long
    return prompt


Prompt = Annotated[str, AfterValidator(_readable)]
Name = Annotated[str, Field(max_length=400)]
FeatureSource = Literal["store", "host", "replay"]  # the source's: from the device, from host RAM, by a run of its own
DRAWN = "none: noise was drawn"  # what a report says of the inversion where a method has none
FAST: dict[str, Any] = {"steps": 15, "solver": "dpm"}  # about as good as 50 steps of DDIM (ddim.py)


class Told(str):
    """What a setting is, as the command, the API and agents are told of it."""

    __slots__ = ()


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Settings:
    """One job: the two prompts, the task and the numbers. None means the task's or the clip's own value.

    `size` is (width, height) in pixels, `start` in seconds, `fps` in frames a second, `solver` walks in both
    directions (`ddim.py`), `eta` is the share of noise that DDIM adds (0: deterministic; the seed acts only above 0).
    `features` says where the source's come from, auto by the memory that is free (`memory`), so that it may round
    otherwise from one machine to another; `low_vram` takes the least memory, for the most time.

    A `selection` under a method that has other masks puts FreeMask's in their place, such as in FateZero + MMC. Instead
    of a `selection`, a mask of the person's own: `site` is a cross-attention layer, whose map at `timestep`
    is the mask of every step, or where that is None each step's own; `masks` is a zip of PNGs, one a frame. With
    `changes` its pixels' values are their numbers (`mask_zip.read_label_zip`): a change without a pixel, or with a site
    of its own, has the mask that it would have without the zip.
    """

    source: Annotated[Prompt, Told("What the clip shows.")]
    edit: Annotated[Prompt, Told("What it should show instead.")]
    task: Annotated[str, Told("style, attribute, shape or place. Left out: inferred from the prompts.")] = "style"
    method: Annotated[
        str,
        Told(
            "freemask, fatezero, p2p (Prompt-to-Prompt), plain, released (FreeMask's released code), videodirector, or "
            "flowedit (for transformers)."
        ),
    ] = "freemask"
    word: Annotated[
        Name | None,
        Told("The source prompt's word that is edited, dog#2 for the second dog. Left out: inferred."),
    ] = None
    backbone: Annotated[
        Name,
        Told(
            "The model. mini, mini-sd, mini-motion and mini-wan know only their toy world; zeroscope, modelscope, "
            "sd15, animatediff and wan need a GPU. Or a hub id, or a folder."
        ),
    ] = "mini"
    steps: Annotated[int, Field(ge=2, le=200), Told("Steps in each direction, 2 to 200.")] = 25
    solver: Annotated[Solver, Told("ddim, or dpm, which does in 15 steps about what ddim does in 50.")] = "ddim"
    guidance: Annotated[
        float,
        Field(ge=1, le=30),
        Told("Weight of the edit prompt (classifier-free guidance), 1 to 30. Left out: what suits the backbone."),
    ] = 7.5
    frames: Annotated[int, Field(ge=1, le=MOST_FRAMES), Told(f"How many frames are edited, 1 to {MOST_FRAMES}.")] = 8
    start: Annotated[float, Field(ge=0), Told("Where in the clip they begin, in seconds.")] = 0.0
    fps: Annotated[
        Annotated[float, Field(ge=0.5, le=60)] | None,
        Told("Frames a second. Left out: 8 or, where that is lower, the clip's own."),
    ] = None
    size: Annotated[
        tuple[Annotated[int, Field(ge=16, le=2048)], Annotated[int, Field(ge=16, le=2048)]] | None,
        Told("WIDTHxHEIGHT in pixels, such as 128x128. Left out: the backbone's own."),
    ] = None
    eta: Annotated[Share, Told("Noise that DDIM adds at each step, 0 (none) to 1.")] = 0.0
    seed: Annotated[int, Field(ge=0, le=2**32 - 1), Told("Of that noise.")] = 0
    features: Annotated[
        Literal[FeatureSource, "auto"],
        Told("Source features: auto (what fits), replay (least memory), store (on the device), host (in RAM)."),
    ] = "auto"
    deep_cache: Annotated[
        Annotated[int, Field(ge=1, le=4)] | None,
        Told("Of how many steps of the edit one computes the coarse layers, 1 to 4. Left out: the backbone's own."),
    ] = None
    low_vram: Annotated[bool, Told("Take the least memory, for the most time.")] = False
    tau: Annotated[Threshold | None, Told("Mask threshold, 0 to 1. Left out, as below: the task's own.")] = None
    alpha_self: Annotated[Share | None, Told("Share of the steps whose self-attention is fused, 0 to 1.")] = None
    alpha_cross: Annotated[Share | None, Told("Share of the steps whose cross-attention is fused, 0 to 1.")] = None
    alpha_temporal: Annotated[Share | None, Told("Share of the steps whose temporal attention is fused, 0 to 1.")] = (
        None
    )
    alpha_latent: Annotated[Share | None, Told("Share of the steps whose latents are blended, 0 to 1.")] = None
    alpha_changed: Annotated[Share | None, Told("As alpha_cross, for the words that change.")] = None
    reweight: Annotated[
        Annotated[float, Field(ge=0, le=10)] | None,
        Told("What the attention to changed words is multiplied by, 0 to 10."),
    ] = None
    dilate: Annotated[Cells | None, Told("Cells of the latent grid by which the mask grows.")] = None
    union: Annotated[bool | None, Told("Whether the mask is joined with the edit word's own.")] = None
    null_text_steps: Annotated[
        Annotated[int, Field(ge=0, le=50)] | None,
        Told("How often VideoDirector optimises the null text of each step, 0 to 50; 0 skips that stage."),
    ] = None
    strength: Annotated[
        Annotated[float, Field(gt=0, le=1)] | None,
        Told("Share of the noise levels, from the lowest, that the edit walks down: less changes less."),
    ] = None
    source_guidance: Annotated[
        Annotated[float, Field(ge=1, le=30)] | None, Told("Weight of the source prompt in FlowEdit, 1 to 30.")
    ] = None
    bend: Annotated[
        Annotated[str, Field(max_length=300)] | None,
        Told(
            "A word's attention that is changed on the way, as 'up 2.0@161: car scale 2': LAYER@TIMESTEP#HEAD: WORD "
            "scale, blur or shift, by how much; @TIMESTEP and #HEAD may be left out."
        ),
    ] = None
    changes: Annotated[
        tuple[Change, ...] | None,
        Told(
            'Several changes in one pass, each under its own mask: "auto" finds them in the prompts, or JSON such as '
            '[{"word": "car", "to": "blue car", "task": "attribute"}, {"word": "dog", "task": "keep"}]; a task is '
            "attribute, shape, place or keep. Left out, as the task is too: as the prompts ask."
        ),
    ] = None
    rescale: Annotated[Share | None, Told("Guidance rescale, 0 (none) to 1.")] = None
    selection: Annotated[Selection | None, Told("Where the mask comes from: codebook, adaptive or consensus.")] = None
    site: Annotated[Name | None, Told("A layer whose map is the mask instead, such as up 3.0.")] = None
    timestep: Annotated[
        Timestep | None,
        Told("The timestep of that layer's map. Left out: each step its own."),
    ] = None
    masks: Annotated[
        Path | None,
        Told(
            "Masks of your own instead: a zip of PNGs, one a frame or one for all. With changes, a pixel's value is "
            "its change's number, from 1."
        ),
    ] = None

    def preset(self) -> Preset:
        """The task's preset with this job's own values put in; τ follows a selection that comes without one."""
        names = {f.name for f in fields(Preset)}
        chosen = {f.name: getattr(self, f.name) for f in fields(self) if f.name in names}
        if self.site:
            chosen |= {"selection": "codebook", "time_aware": self.timestep is None}
        if chosen["selection"] and self.tau is None:
            chosen["tau"] = SELECTION_TAU[chosen["selection"]]
        own = load_preset(self.task, self.method)
        if own.director and self.null_text_steps is not None:
            own = replace(own, director=replace(own.director, null_text_steps=self.null_text_steps))
        if own.flow and self.source_guidance is not None:
            own = replace(own, flow=replace(own.flow, source_guidance=self.source_guidance))
        if chosen["selection"] or self.masks:
            own = masked(own)
        return replace(own, **{k: v for k, v in chosen.items() if v is not None})

    def change_preset(self, change: Change) -> Preset:
        """The preset of one of several changes: its own values, then this job's."""
        own = {f.name: value for f in fields(self) if (value := getattr(change, f.name, None)) is not None}
        own |= {"task": change.done_as, "changes": None, "word": None}
        return replace(self, **own).preset()

    @classmethod
    def told(cls) -> dict[str, str]:
        """Each setting in a sentence, by name, in order."""
        hints = get_type_hints(cls, include_extras=True)
        return {
            f.name: next(str(one) for one in hints[f.name].__metadata__ if isinstance(one, Told)) for f in fields(cls)
        }

    def record(self, word: str) -> dict[str, Any]:
        """These settings as JSON has them, with the word that was edited; masks stand beside it."""
        told = asdict(self) | {"word": word, "masks": (LABELS if self.changes else MASKS) if self.masks else None}
        return told | {"changes": None if self.changes is None else written(self.changes)}


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


def make_settings(labels: Mapping[str, str] | None = None, /, **values: Any) -> Settings:
    """Validated settings; raises SettingError naming the field, what was given and the range, and PromptError for a
    prompt that is too long.

    `labels` are what people know the fields of masks by, where that is not their names.
    """
    if (old := OLD_TASKS.get(str(values.get("task")))) is not None:
        values |= {"task": old, "method": "released"}
    if values.get("changes") is not None:
        values |= {"changes": read_changes(values["changes"], values.get("source", ""), values.get("edit", ""))}
    settings: Settings = validated(Settings, values, "")
    load_preset(settings.task, settings.method)  # refuses unknown names
    named = {name: (labels or {}).get(name, name) for name in ("selection", "site", "timestep", "masks")}
    own = [told for name, told in named.items() if name != "timestep" and getattr(settings, name)]
    if own and not load_method(settings.method).masked:
        raise SettingError(f"The method {settings.method!r} takes no mask: leave {own[0]} out, or change the method.")
    refuse_shares(settings)
    own_preset = load_preset(settings.task, settings.method)
    if settings.source_guidance is not None and own_preset.flow is None:
        raise SettingError(
            f"The method {settings.method!r} does not guide the source: leave source_guidance out, or take flowedit."
        )
    if settings.strength is not None and own_preset.director is not None:
        raise SettingError(f"The method {settings.method!r} walks down every level: leave strength out.")
    if settings.null_text_steps is not None and own_preset.director is None:
        raise SettingError(
            f"The method {settings.method!r} optimises no null text: leave null_text_steps out, or change the method."
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
    if settings.bend:
        read_bend(settings.bend)
    _refuse_changes(settings, [] if settings.masks else own)
    backbone_folder(settings.backbone)
    task = next((one.task for one in settings.changes or () if one.task != "keep"), settings.task)
    return replace(settings, backbone=backbone_name(settings.backbone), task=task)


def _refuse_changes(settings: Settings, masks: Sequence[str]) -> None:
    """Raises where settings name changes that cannot be made, or a mask that only one change has, one of the settings
    `masks`."""
    if not settings.changes:
        return
    if settings.method != "freemask":
        raise SettingError(
            f"Several changes in one pass are FreeMask's, not {settings.method}'s: leave changes out, or the method."
        )
    named = [*masks, *(["union"] if settings.union else [])]
    if named:
        raise SettingError(f"{named[0]} is of one change: give each of the changes its own site, or leave it out.")
    check_changes(settings.changes, settings.source, settings.edit)


def infer_settings(values: Mapping[str, Any], labels: Mapping[str, str] | None = None) -> Settings:
    """Settings whose task, changes and guidance, where they are left out, are what the prompts ask for and what suits
    the backbone: several changes where neither a task nor the word or a mask of one is named. Raises as `make_settings`
    does."""
    given = {name: value for name, value in values.items() if name not in INFERRED or value not in (None, "")}
    asked = make_settings(labels, **{"source": "", "edit": ""} | given)
    inferred = {"task": usual_task(asked.source, asked.edit), "guidance": usual_guidance(asked.backbone)}
    if asked.changes is None and asked.method == "freemask" and not any(given.get(name) for name in ONE):
        inferred["changes"] = found_changes(asked.source, asked.edit) or None
    return make_settings(labels, **{"source": "", "edit": ""} | inferred | given)


def fast_settings(method: str) -> dict[str, Any]:
    """The settings of a quick edit: `FAST`, without null-text optimisation where the method has that."""
    own = load_preset("shape", method).director
    return FAST | ({"null_text_steps": 0} if own else {})


def read_size(text: str) -> tuple[int, int] | None:
    """A (width, height) as people write it, such as "576x320"; None for an empty text, else SettingError."""
    if not text.strip():
        return None
    found = re.fullmatch(r"\s*(\d{1,5})\s*[x×]\s*(\d{1,5})\s*", text, re.IGNORECASE)
    if found is None:
        raise SettingError(f"size is {text!r}: write WIDTHxHEIGHT in pixels, such as 128x128, or leave it empty.")
    return int(found[1]), int(found[2])


def batch_rows(preset: Preset, features: FeatureSource, one_row: bool) -> int:
    """How many batch rows an edit's forwards have: two of guidance, and the source's own where it is replayed; of
    FlowEdit two of each prompt's guidance, for each draw of noise."""
    if one_row:
        return 1
    if flow := preset.flow:
        return flow.n_avg * (3 + (flow.source_guidance != 1))
    return 3 if features == "replay" else 2


def read_settings(path: Path) -> dict[str, Any]:
    """The values of a settings.json, or of the settings in a report.json; raises SettingError for anything else.

    They are validated where they are used, by `make_settings`. Masks are looked for beside the file.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError("too large")
        values = json.loads(path.read_text(encoding="utf-8"))
        values = {**values.get("settings", values)}
        return values | {"masks": path.parent / values["masks"]} if values.get("masks") else values
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        raise SettingError(
            f'"{path.name}" holds no settings: give a settings.json or report.json of an edit.'
        ) from None


def examples() -> list[Example]:
    """The shipped examples, in the order of their file names."""
    found = []
    for path in sorted((PRESETS / "examples").glob("*.yaml")):
        values = read_shipped(path)
        clip = ROOT / "static" / "clips" / values.pop("clip")
        name = values.pop("name")
        made = EXAMPLES / path.stem
        found.append(Example(name=name, clip=clip, settings=make_settings(**values), made=made))
    return found
