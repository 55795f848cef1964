"""Backbones as data: `BackboneSpec`, read from `presets/backbones/*.yaml`, or for another folder from its configs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from ..clips.strides import MOST_FRAMES, latent_frames
from ..errors import BackboneError, SettingError
from ..validation import STRICT, read_shipped, unknown, validated

__all__ = [
    "ADAPTER",
    "NATIVE_FRAMES",
    "PRESETS",
    "ROOT",
    "TEMPORAL",
    "TIME_STRIDE",
    "TOY_CLIP",
    "WAN_SIZE",
    "Attended",
    "BackboneSpec",
    "Inflation",
    "Solver",
    "Tuned",
    "autoencoder_folder",
    "backbone_folder",
    "backbone_name",
    "backbone_spec",
    "backbones",
    "fit",
    "frame_size",
    "known_backbone",
    "known_words",
    "kindred",
    "native_size",
    "usual_deep_cache",
    "usual_guidance",
    "vae_factor",
]

Solver = Literal["ddim", "dpm"]
Attended = Literal["self", "previous", "first", "middle", "last"]

ROOT = Path(__file__).resolve().parents[2]
PRESETS = ROOT / "presets"
TOY_CLIP = ROOT / "freemask" / "toyworld" / "clip"  # the CLIP of mini's world

TEMPORAL = "temporal"  # the part of a tuned pipeline that holds its temporal attention (`temporal.py`)
ADAPTER = "motion_adapter"  # the part that holds an image model's motion modules, as diffusers saves AnimateDiff
NATIVE_FRAMES = 24  # what zeroscope-like models were trained on, where no spec says; configs do not
MOTION_FRAMES = 16  # what AnimateDiff was trained on
WAN_FRAMES, WAN_SIZE = MOST_FRAMES, (832, 480)  # what Wan 2.1's small model was trained on
TIME_STRIDE = 4  # frames that a latent frame of Wan's own autoencoder stands for, after the first
IMAGE_FRAMES = MOST_FRAMES  # an image model takes any number


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Inflation:
    """How an image model's self-attention meets other frames (FateZero, Eq. 8): the frames whose keys and values each
    frame attends to, and the channels of a site under which it attends to its own alone."""

    attends: Annotated[tuple[Attended, ...], Field(min_length=1)] = ("self", "middle")
    least_channels: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Tuned:
    """What a tuned pipeline remembers of the image model that it was made from: its inflation, and where it is a known
    one its name, whose guidance and codebook serve on."""

    inflation: Inflation
    base: str | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BackboneSpec:
    """What is known of a model before it is loaded.

    `name` is the short one that every part of FreeMask takes; `title` is its line in a list. The weights are in
    `folder`, or on the hub as `hub_id` (`aliases`: other ids of the same weights). `size` is (width, height) in pixels
    and `frames` the clip length that it was trained on, or sees at once; one latent cell stands for `vae_factor` pixels
    along a side, and the network's coarsest cell for `downsampling` of these; one latent frame for `time_stride` frames
    after the first. `path` is how noise comes (`families.paths`). `guidance` is what suits it, and so is
    `deep_cache` (`families.deep`); `parameters` counts each part's, None where they have not been counted;
    `working_set` is what a part computes in at its peak, in bytes a latent cell, frame and batch row in halves (see
    `memory`); `codebook` is the file under presets/codebooks/ that holds its measured masks, once they are. `inflation`
    is how an image model runs over frames, None for a model of clips. `motion_adapter` holds the motion modules that
    make an image model one of clips, where they do not lie beside its other parts: a folder of this project, or a hub
    id. `beta_schedule` is what these were trained on, where it is not the image model's own. `autoencoder`
    is the folder of another backbone that lends its own.
    """

    name: str
    title: str
    licence: str
    size: tuple[Annotated[int, Field(ge=16, le=2048)], Annotated[int, Field(ge=16, le=2048)]]
    frames: Annotated[int, Field(ge=1, le=MOST_FRAMES)]
    vae_factor: Annotated[int, Field(ge=1, le=64)]
    downsampling: Annotated[int, Field(ge=1, le=64)] = 8
    time_stride: Annotated[int, Field(ge=1, le=8)] = 1
    path: Literal["diffusion", "flow"] = "diffusion"
    guidance: Annotated[float, Field(ge=1, le=30)] = 7.5
    deep_cache: Annotated[int, Field(ge=1, le=4)] = 1
    hub_id: str | None = None
    aliases: tuple[str, ...] = ()
    folder: Path | None = None
    parameters: dict[Literal["unet", "vae", "text_encoder"], Annotated[int, Field(ge=1)]] | None = None
    working_set: dict[Literal["unet", "vae"], Annotated[int, Field(ge=1)]] | None = None
    codebook: str | None = None
    inflation: Inflation | None = None
    motion_adapter: str | None = None
    beta_schedule: Literal["linear", "scaled_linear"] | None = None
    autoencoder: Path | None = None

    @property
    def latent_frames(self) -> int:
        """How many latent frames the network sees at once."""
        return latent_frames(self.frames, self.time_stride)

    @property
    def weight_bytes(self) -> int | None:
        """What the weights take in memory as fp16 or bf16, two bytes a parameter."""
        return 2 * sum(self.parameters.values()) if self.parameters else None

    def frame_size(self, width: int, height: int) -> tuple[int, int]:
        """The (width, height) at which a clip of that shape is edited where nothing else is asked."""
        return frame_size(self.size, self.vae_factor * self.downsampling, width, height)


def fit(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    """(width, height) rounded down to the multiple that a network needs, at least one multiple."""
    width, height = (max(multiple, side // multiple * multiple) for side in size)
    return width, height


def frame_size(native: tuple[int, int], multiple: int, width: int, height: int) -> tuple[int, int]:
    """The (width, height) of frames at a model's native short side, in the shape of a clip."""
    scale = min(native) / min(width, height)
    return fit((round(width * scale), round(height * scale)), multiple)


@lru_cache(maxsize=1)
def backbones() -> tuple[BackboneSpec, ...]:
    """The backbones of `presets/backbones/*.yaml`, those that ship with the code first."""
    found = []
    for path in sorted((PRESETS / "backbones").glob("*.yaml")):
        values = read_shipped(path) | {"name": path.stem}
        spec: BackboneSpec = validated(BackboneSpec, values, f"presets/backbones/{path.name}: ")
        if (spec.folder is None) == (spec.hub_id is None):
            raise SettingError(f"presets/backbones/{path.name}: give a folder or a hub_id, one of them.")
        own = {part: ROOT / path for part in ("folder", "autoencoder") if (path := getattr(spec, part))}
        found.append(replace(spec, **own))
    return tuple(sorted(found, key=lambda spec: (spec.folder is None, spec.name)))


def known_backbone(name: str) -> BackboneSpec | None:
    """The spec of a short name or a hub id, None where there is none. A hub id is that of a model as it is: with a
    motion adapter it has a short name alone."""
    named = next((spec for spec in backbones() if name == spec.name), None)
    plain = (spec for spec in backbones() if not spec.motion_adapter and name in (spec.hub_id, *spec.aliases))
    return named or next(plain, None)


def _tuned(folder: Path) -> Tuned | None:
    """What a pipeline's folder remembers of its tuning, None where it was not tuned; raises SettingError for a file
    that says something else."""
    path = folder / TEMPORAL / "config.json"
    if not os.path.isfile(path):
        return None
    try:
        values = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise SettingError(f"{path} does not describe temporal attention ({error!r}): tune the clip again.") from None
    tuned: Tuned = validated(Tuned, values, f"{path}: ")
    return tuned


def kindred(name: str) -> BackboneSpec | None:
    """The spec of a backbone, or of the one that a tuned folder was made from; None where neither is known."""
    spec = known_backbone(name)
    if spec is None and (tuned := _tuned(Path(os.path.expanduser(name)))) and tuned.base:
        spec = known_backbone(tuned.base)
    return spec


def usual_guidance(name: str) -> float:
    """The classifier-free guidance that suits a backbone, or what it was tuned from, where it is known, else 7.5."""
    spec = kindred(name)
    return spec.guidance if spec else 7.5


def usual_deep_cache(name: str) -> int:
    """Of how many steps of an edit one computes the coarse layers (`deep`), by what suits a backbone."""
    spec = kindred(name)
    return spec.deep_cache if spec else 1


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
        wan = (folder / "transformer").is_dir() and not (folder / "unet").is_dir()
        for part in ("transformer" if wan else "unet", "vae"):
            path = (autoencoder_folder(folder) if part == "vae" else folder) / part / "config.json"
            configs.append(json.loads(path.read_text(encoding="utf-8")))
        unet, vae = configs
        told = json.loads(index.read_text()) if wan and (index := folder / "model_index.json").exists() else {}
        size, factor = told.get("_frame_size", WAN_SIZE) if wan else native_size(unet, vae), vae_factor(vae)
        downsampling = 2 ** ((len(unet.get("block_out_channels", ())) or 4) - 1)  # diffusers' default: four
        if wan:
            downsampling = int(unet["patch_size"][-1])
        stride = TIME_STRIDE if vae.get("_class_name") == "AutoencoderKLWan" else 1
        image = unet.get("_class_name") == "UNet2DConditionModel"
        moves = unet.get("_class_name") == "UNetMotionModel" or image and (folder / ADAPTER).is_dir()
        frames = MOTION_FRAMES if moves else IMAGE_FRAMES if image else NATIVE_FRAMES
    except FileNotFoundError:
        raise BackboneError(
            f"{path.parents[1]} lacks {path.parent.name}/config.json: give a pipeline's folder."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackboneError(f"{path} does not describe a part of a pipeline ({error!r}).") from None
    values = {
        "name": name,
        "title": name,
        "licence": "unknown: see where you got it",
        "size": size,
        "frames": told.get("_frames", WAN_FRAMES) if wan else frames,
        "vae_factor": factor,
        "downsampling": downsampling,
        "time_stride": stride,
        "path": "flow" if wan else "diffusion",
        "folder": folder,
        "inflation": Inflation() if image and not moves else None,
    }
    try:
        if tuned := _tuned(folder):
            values["inflation"] = tuned.inflation
            if base := known_backbone(tuned.base or ""):
                values["guidance"] = base.guidance
        derived: BackboneSpec = validated(BackboneSpec, values, f"{folder}: ")
    except SettingError as error:
        raise BackboneError(str(error)) from None
    return derived


def vae_factor(vae: Mapping[str, Any]) -> int:
    """How many pixels a latent cell stands for along a side, by the autoencoder's config."""
    if "temperal_downsample" in vae:  # Wan's: a halving for each
        return int(2 ** len(vae["temperal_downsample"]))
    return int(2 ** (len(vae.get("encoder_block_out_channels") or vae["block_out_channels"]) - 1))


def native_size(unet: Mapping[str, Any], vae: Mapping[str, Any]) -> tuple[int, int]:
    """(width, height) in pixels that a model's configs name; where they name none, what all of this class had."""
    side = unet.get("sample_size") or 32
    h, w = (side, side) if isinstance(side, int) else side
    factor = vae_factor(vae)
    return int(w) * factor, int(h) * factor


def backbone_folder(name: str) -> Path | None:
    """The local folder of a backbone, or None where the name stands for a hub id such as "owner/model".

    Raises SettingError where the name is neither.
    """
    spec = known_backbone(name)
    if spec:
        return spec.folder
    folder = os.path.expanduser(name)
    if os.path.isdir(folder):  # says no to what can be no path, where pathlib raises
        return Path(folder)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return None
    short = [spec.name for spec in backbones()]
    raise SettingError(
        f"{unknown('backbone', name, short)} Or give a hub id such as 'cerspense/zeroscope_v2_576w', or a folder that "
        "holds a diffusers pipeline."
    )


def autoencoder_folder(folder: Path) -> Path:
    """The folder whose `vae/` serves a backbone's: its own, or that of the one whose autoencoder it shares."""
    if (folder / "vae").is_dir():
        return folder
    lent = (spec.autoencoder for spec in backbones() if spec.autoencoder and spec.folder == folder.resolve())
    return next(lent, folder)


def known_words(backbone: str) -> tuple[str, ...] | None:
    """The only words that a backbone has seen (its `vocabulary.json`), or None where it knows the language."""
    folder = backbone_folder(backbone)
    path = folder / "vocabulary.json" if folder else None
    return tuple(json.loads(path.read_text())) if path and path.exists() else None
