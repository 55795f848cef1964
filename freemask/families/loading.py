"""A backbone from a short name, a hub id or a folder: the family that its network's class names, with its weights.

Weights that come as a `.bin`, zeroscope's for one, are pickles. diffusers passes `weights_only=True` to `torch.load`
wherever it reads one, shards too, and transformers does by default, which is stated here all the same: a file that
holds anything but tensors is refused before any of it runs.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Collection
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from accelerate import cpu_offload_with_hook
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from transformers import AutoTokenizer, CLIPTextModel, CLIPTokenizer, T5EncoderModel, UMT5EncoderModel

from ..errors import BackboneError
from .backbone import Backbone
from .devices import LOADING, default_device, default_dtype, lay_out_for_cpu
from .inflated import Inflated
from .motion import Motion, add_motion
from .reach import missing_weights, refusal
from .specs import (
    ADAPTER,
    TEMPORAL,
    Inflation,
    autoencoder_folder,
    backbone_folder,
    backbone_name,
    backbone_spec,
)
from .temporal import load_temporal
from .unet3d import UNet3D
from .wan import Wan, refuse_other_layouts
from .weights import NETWORKS, PARTS, choose_weights, cut_short, fetch, fetch_adapter, network_part

__all__ = ["FAMILIES", "load_backbone", "pipeline_folder"]

PREDICTIONS = ("epsilon", "v_prediction")
FAMILIES: dict[str, type[Backbone]] = {family.network.__name__: family for family in (UNet3D, Inflated, Motion, Wan)}
TEXT_ENCODERS = {kind.__name__: kind for kind in (CLIPTextModel, UMT5EncoderModel, T5EncoderModel)}
FLOWS = {kind.__name__: kind for kind in (FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler)}
AUTOENCODERS = ("AutoencoderKL", "AutoencoderTiny")
_FETCH = "fetch it anew with `python -m freemask download {}`"
_LAYOUT = (
    f"A backbone folder holds {' or '.join(p + '/' for p in NETWORKS)}, {', '.join(p + '/' for p in PARTS)} as "
    "diffusers saves a pipeline"
)


def pipeline_folder(name: str) -> Path:
    """The pipeline's folder, downloaded where the name is a hub id. Raises SettingError for an unknown name,
    BackboneError, which says what to do, where it is not to be had or lacks a part."""
    if met := missing_weights(name):
        raise refusal(name, met)
    folder = fetch(name)
    network = network_part(path.name for path in folder.iterdir())
    whole = {part: autoencoder_folder(folder) if part == "vae" else folder for part in (network, *PARTS)}
    missing = [part for part, base in whole.items() if not (base / part).is_dir()]
    if missing:
        raise BackboneError(f"{folder} lacks {', '.join(p + '/' for p in missing)}. {_LAYOUT}.")
    return folder


def _weights(folder: Path) -> dict[str, Any]:
    """The arguments by which `from_pretrained` reads the chosen weights in a part's folder, and no others."""
    weights = choose_weights(folder.name, (path.name for path in folder.iterdir()))
    if weights is None:
        raise BackboneError(f"{folder} holds no complete weights, neither .safetensors nor .bin. {_LAYOUT}.")
    return {"use_safetensors": weights.safe, "variant": weights.variant}


def _class_name(folder: Path, part: str, supported: Collection[str]) -> str:
    """The class that a model's config names; BackboneError where it is none of those supported."""
    config = json.loads((folder / part / "config.json").read_text())
    kind: str = config["_class_name"] if "_class_name" in config else config["architectures"][0]
    if kind not in supported:
        raise BackboneError(f"{folder}/{part} is a {kind}; {' and '.join(supported)} are supported.")
    return kind


def _unpickling(error: BaseException | None) -> pickle.UnpicklingError | None:
    """The refusal of torch's weights-only loader behind an error; diffusers wraps it twice."""
    while error:
        if isinstance(error, pickle.UnpicklingError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _reason(error: pickle.UnpicklingError) -> str:
    """What torch's loader did not take, without its advice to load the file unsafely."""
    lines = str(error).splitlines()
    return next((line.strip(" .") for line in lines if "unsupported" in line.lower()), type(error).__name__)


def _take_turns(device: torch.device, vae: Any, text_encoder: Any, unet: Any) -> None:
    """Each model comes to the device when it is called, and the one that computed before it leaves. A text encoder that
    outweighs the network, as Wan's does four times, reads its few prompts where it is."""
    if not isinstance(vae, AutoencoderTiny):
        vae.enable_tiling()
    if device.type == "cpu":
        return
    moving = (vae, unet) if _outweighs(text_encoder, unet) else (vae, text_encoder, unet)
    hooks = [cpu_offload_with_hook(model, device)[1] for model in moving]
    for hook, before in zip(hooks, hooks[-1:] + hooks[:-1], strict=True):
        hook.hook.prev_module_hook = before


def _outweighs(one: Any, other: Any) -> bool:
    a, b = (sum(p.numel() for p in model.parameters()) for model in (one, other))
    return a > b


def _flow(folder: Path) -> Any:
    """The scheduler of a flow; BackboneError where it is another, or shifts by the size of the picture."""
    path = folder / "scheduler"
    config = json.loads((path / "scheduler_config.json").read_text())
    kind = FLOWS.get(config["_class_name"])
    flows = config.get("prediction_type", "flow_prediction") == "flow_prediction"
    if kind is None or not flows or config.get("use_dynamic_shifting"):
        raise BackboneError(f"{path} is no flow with one shift: {' or '.join(FLOWS)} with a fixed shift is supported.")
    return kind.from_pretrained(path, local_files_only=True)


def load_backbone(
    name: str, device: str | None = None, dtype: torch.dtype | None = None, *, low_vram: bool = False
) -> Backbone:
    """From a short name, a hub id or a folder, in `dtype` (left out: the family's halves on CUDA, float32 elsewhere).

    What is not here yet is downloaded. Raises SettingError for an unknown name, BackboneError saying what is
    missing or refused and what to do.
    """
    device = device or default_device()
    folder = pipeline_folder(name)
    part = "?"

    def load(part_class: Any, part_name: str, **kwargs: Any) -> Any:
        nonlocal part
        part = part_name
        root = pixels if part == "vae" else folder
        with LOADING:
            return part_class.from_pretrained(root / part_name, local_files_only=True, **kwargs)

    try:
        network = part = network_part(path.name for path in folder.iterdir())
        family = FAMILIES[_class_name(folder, part, FAMILIES)]
        dtype = dtype or default_dtype(device, family.halves)
        pixels, part = autoencoder_folder(folder), "vae"
        kind = _class_name(pixels, part, (*AUTOENCODERS, "AutoencoderKLWan") if family is Wan else AUTOENCODERS)
        spec = backbone_spec(name, folder)
        part = "text_encoder"
        encoders = TEXT_ENCODERS if family is Wan else {CLIPTextModel.__name__: CLIPTextModel}
        encoder = encoders[_class_name(folder, part, encoders)]
        if family is Wan:
            configs = (folder / network / "config.json", folder / "model_index.json")
            refuse_other_layouts(*(json.loads(path.read_text()) if path.exists() else {} for path in configs))
        quiet = diffusers.logging.get_verbosity()
        diffusers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        try:
            unet = load(family.network, network, torch_dtype=dtype, **_weights(folder / network))
            vae = load(getattr(diffusers, kind), "vae", torch_dtype=dtype, **_weights(pixels / "vae"))
            adapter = fetch_adapter(name) or folder / ADAPTER
            if family is Inflated and adapter.is_dir():
                family, part = Motion, ADAPTER
                unet = add_motion(unet, adapter, torch_dtype=dtype, **_weights(adapter))
        finally:
            diffusers.logging.set_verbosity(quiet)
        if (folder / TEMPORAL).is_dir():
            if family is not Inflated:
                raise BackboneError(f"{folder}/{TEMPORAL} is for an image model, and its UNet is none: take it away.")
            part = TEMPORAL
            load_temporal(unet, folder)
        text = {"dtype": dtype, "weights_only": True} | _weights(folder / "text_encoder")
        text_encoder = load(encoder, "text_encoder", **text)
        tokenizer = load(CLIPTokenizer if encoder is CLIPTextModel else AutoTokenizer, "tokenizer")
        if family is Wan:
            part = "scheduler"
            scheduler = _flow(folder)
        else:
            changed = {"beta_schedule": spec.beta_schedule} if spec.beta_schedule else {}
            scheduler = load(DDIMScheduler, "scheduler", **changed)
            if (predicted := scheduler.config["prediction_type"]) not in PREDICTIONS:
                raise BackboneError(f"{folder} predicts {predicted!r}; {' and '.join(PREDICTIONS)} are supported.")
    except BackboneError:
        raise
    except Exception as error:  # the libraries raise many kinds for a bad file
        refused = _unpickling(error)
        if refused:
            raise BackboneError(
                f"The .bin in {folder}/{part} was refused, and nothing in it was run: it is damaged or holds more "
                f"than tensors ({_reason(refused)}). Get the weights as .safetensors, from a source you trust."
            ) from error
        where = adapter if part == ADAPTER else (pixels if part == "vae" else folder) / part
        anew = "take it anew from where it came" if backbone_folder(name) else _FETCH.format(name)
        if cut := cut_short(where):
            raise BackboneError(f"{cut} is cut short or damaged: {anew}.") from error
        raise BackboneError(
            f"{where} could not be loaded: {str(error).splitlines()[0]} {_LAYOUT}; {anew}, or save it again."
        ) from error
    at = torch.device(device, torch.cuda.current_device()) if device == "cuda" else torch.device(device)
    for model in (unet, vae, text_encoder):
        model.eval().requires_grad_(False)
        if not low_vram or at.type == "cpu":
            model.to(at)
    for model in (unet, vae) if at.type == "cpu" else ():
        lay_out_for_cpu(model)
    if low_vram:
        _take_turns(at, vae, text_encoder, unet)
    models = unet, vae, text_encoder, tokenizer, scheduler
    return family(backbone_name(name), *models, at, spec.latent_frames, low_vram, spec.inflation or Inflation())
