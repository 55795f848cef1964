"""One-shot tuning of an image model on a clip (Tune-A-Video, Wu et al. 2022), from which FateZero's shape edits begin.

Trained are the query projections of self- and cross-attention and the new temporal attention (`families.temporal`),
everything else stays. Self-attention meets other frames as it does in an edit. The loss is the mean square error of
what the network predicts (noise, or v) for the clip's latents under the source prompt, at a random timestep a step.

The folder that this makes is a pipeline, the value of `--backbone` for every other command. It also holds what was
asked, `tuning.json`, and `tuning.pt`, from which the same command goes on; once the tuning is done that file may go.
Each step's noise depends on its number alone, so that a tuning that was interrupted ends as one that was not.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from ..clips.strides import MOST_FRAMES
from ..clips.video import MIN_SIDE, Clip, probe, read_clip
from ..errors import BackboneError, MemoryShortage, SettingError
from ..families.devices import is_out_of_memory
from ..families.inflated import Inflated
from ..families.loading import load_backbone
from ..families.specs import Tuned, autoencoder_folder, backbone_folder, backbone_spec, kindred, known_backbone
from ..families.temporal import add_temporal, save_temporal, temporal_blocks
from ..families.weights import PARTS, fetch, forget_origin, needed_files
from ..methods.editor import Editor
from ..steps import Step, Steps
from ..validation import STRICT
from .check import check_source

__all__ = ["Trainer", "Tuning", "tune_steps"]

EVERY = 45  # seconds between checkpoints
RECENT = 50  # losses whose mean is told
_RECORD, _CHECKPOINT = "tuning.json", "tuning.pt"
_TRAINED = ("attn1.to_q", "attn2.to_q", "norm_temp", "attn_temp")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Tuning:
    """What is asked: the clip's `frames` from `start` seconds on at `fps` (None: as edits choose it) and `size`
    (width, height) in pixels (None: the backbone's own), what it shows (`source`), the image model, `steps` in all,
    and the learning rate, Tune-A-Video's where left out."""

    source: str
    backbone: str = "mini-sd"
    steps: Annotated[int, Field(ge=0, le=100_000)] = 300
    lr: Annotated[float, Field(gt=0, le=0.1)] = 3e-5
    frames: Annotated[int, Field(ge=1, le=MOST_FRAMES)] = 8
    start: Annotated[float, Field(ge=0)] = 0.0
    fps: Annotated[float, Field(ge=0.5, le=60)] | None = None
    size: tuple[Annotated[int, Field(ge=16, le=2048)], Annotated[int, Field(ge=16, le=2048)]] | None = None
    seed: Annotated[int, Field(ge=0, le=2**31)] = 0


def _record(tuning: Tuning, clip: Clip, backbone: Inflated) -> dict[str, Any]:
    """What a tuning depends on besides its number of steps; a folder that was given is known by its weights."""
    digest = hashlib.sha256()
    for name, value in backbone.unet.state_dict().items():
        if name.endswith("to_q.weight"):
            digest.update(value.cpu().numpy().tobytes())
    asked = {name: value for name, value in asdict(tuning).items() if name != "steps"}
    asked["backbone"] = backbone.name if known_backbone(backbone.name) else Path(backbone.name).name
    pixels = hashlib.sha256(clip.frames.tobytes()).hexdigest()
    return json.loads(json.dumps(asked | {"clip": pixels[:16], "weights": digest.hexdigest()[:16]}))


def _refuse_folder(out: Path) -> dict[str, Any]:
    """What `tuning.json` in a folder says, {} in one that is empty or yet to be made; SettingError for any other."""
    if (out / _RECORD).is_file():
        try:
            return dict(json.loads((out / _RECORD).read_text()))
        except (ValueError, TypeError):
            raise SettingError(f"{out / _RECORD} is damaged: delete {out}, or choose another folder.") from None
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SettingError(f"{out} holds something else than a tuning: choose a folder that is new or empty.")
    return {}


class Trainer:
    """A backbone that learns one clip: latents (1, c, f, h, w) and text (1, k, d)."""

    def __init__(self, backbone: Inflated, clip: Clip, tuning: Tuning) -> None:
        self.backbone, self.tuning = backbone, tuning
        # made in inference mode, which tensors that gradients pass cannot be
        self.latents = backbone.encode(clip.frames).clone()
        self.text = backbone.text([tuning.source]).clone()
        unet: nn.Module = backbone.unet
        self.weights = {
            name: parameter
            for name, parameter in unet.named_parameters()
            if any(f".{part}." in name for part in _TRAINED)
        }
        for parameter in self.weights.values():
            parameter.requires_grad_(True)
        if backbone.device.type == "cuda":
            backbone.unet.enable_gradient_checkpointing()
        self.optimizer = torch.optim.AdamW(self.weights.values(), lr=tuning.lr, weight_decay=0.01)
        self.losses: list[float] = []

    def read(self, path: Path) -> None:
        """Goes on from a checkpoint."""
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.backbone.unet.load_state_dict(state["weights"], strict=False)
            self.optimizer.load_state_dict(state["optimizer"])
            self.losses = state["losses"]
        except Exception as error:  # torch raises many kinds for a bad file
            raise SettingError(f"{path} cannot be read ({type(error).__name__}): delete it to begin anew.") from error

    def write(self, path: Path) -> None:
        weights = {name: parameter.detach() for name, parameter in self.weights.items()}
        state = {"weights": weights, "optimizer": self.optimizer.state_dict(), "losses": self.losses}
        torch.save(state, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def noise(self, seed: int) -> tuple[int, Tensor]:
        """A timestep and noise like the latents, the same on every device."""
        generator = torch.Generator().manual_seed(seed)
        t = int(torch.randint(len(self.backbone.scheduler.alphas_cumprod), (1,), generator=generator))
        return t, torch.randn(self.latents.shape, generator=generator).to(self.latents)

    def loss(self, t: int, noise: Tensor) -> Tensor:
        """Inside `Inflated.over`: the mean square error of the network's output at timestep `t`."""
        backbone, z = self.backbone, self.latents
        a = float(backbone.scheduler.alphas_cumprod[t])
        x = a**0.5 * z + (1 - a) ** 0.5 * noise
        wanted = noise
        if backbone.scheduler.config["prediction_type"] == "v_prediction":
            wanted = a**0.5 * noise - (1 - a) ** 0.5 * z
        device = backbone.device.type
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            out = backbone.output(x, t, self.text)
        return F.mse_loss(out, wanted)

    def advance(self) -> None:
        """One step; the backward pass too is inside `over`, since with checkpoints it runs blocks again."""
        with self.backbone.over(self.latents.shape[2]):
            loss = self.loss(*self.noise(self.tuning.seed + len(self.losses)))
            torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.losses.append(float(loss.detach()))


def _save(backbone: Inflated, out: Path) -> None:
    """The pipeline: the stock UNet and the temporal attention in halves, the other parts as they were.

    The backbone cannot be used any more.
    """
    base = fetch(backbone.name)
    tuned = Tuned(inflation=backbone.inflation, base=_base(backbone.name))
    save_temporal(backbone.unet, out, tuned)
    backbone.unet.half().save_pretrained(out / "unet")
    lender = autoencoder_folder(base)
    found = [*((base, path) for path in base.rglob("*")), *((lender, path) for path in lender.glob("vae/*"))]
    files = {path.relative_to(root).as_posix(): path for root, path in found if path.is_file()}
    others = [name for name in needed_files(files) if name.split("/")[0] in PARTS]
    for name in (*others, *(name for name in ("model_index.json", "vocabulary.json") if name in files)):
        (out / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(files[name], out / name)
    forget_origin(out)


def _base(name: str) -> str | None:
    """The short name of the known backbone that another is, or was tuned from."""
    spec = kindred(name)
    return spec.name if spec else None


def _no_image_model(name: str) -> BackboneError:
    return BackboneError(
        f"{name} is a video model, which needs no tuning: edit with it as it is, or tune an image model, such as "
        "mini-sd or sd15."
    )


def tune_steps(path: Path, tuning: Tuning, out: Path) -> Steps[dict[str, Any]]:
    """Tunes a backbone on the clip at `path` into the pipeline folder `out`; the same again goes on where it stopped.

    Returns figures: the `folder`, the `steps` done, the mean of the `first_loss`es and of the `last_loss`es.
    Raises InputError before any model runs, where `out` holds another tuning, or for a prompt longer than the model
    reads; BackboneError for a model that cannot be loaded or is no image model; MemoryShortage.
    """
    check_source(tuning.source, tuning.backbone)
    here = known_backbone(tuning.backbone) or backbone_folder(tuning.backbone)
    if here and not backbone_spec(tuning.backbone).inflation:
        raise _no_image_model(tuning.backbone)
    found = _refuse_folder(out)
    info = probe(path)
    read = partial(read_clip, path, frames=1 if info.still else tuning.frames, start=tuning.start, fps=tuning.fps)
    read(size=(MIN_SIDE, MIN_SIDE))
    backbone = load_backbone(tuning.backbone, dtype=torch.float32)
    if not isinstance(backbone, Inflated):  # an unlisted hub id's
        raise _no_image_model(tuning.backbone)
    backbone.word_tokens(tuning.source)
    editor = Editor(backbone)
    clip = read(size=editor.fit(tuning.size) if tuning.size else editor.frame_size(info.width, info.height))
    record = _record(tuning, clip, backbone)
    if found and (other := [name for name in record if found.get(name) != record[name]]):
        raise SettingError(
            f"{out} holds a tuning with another {', '.join(other)}: choose another folder, or delete that one."
        )
    figures = {"folder": str(out), "backbone": tuning.backbone}
    if (out / "unet").is_dir() and int(found.get("steps", -1)) >= tuning.steps:  # told once all is saved
        return figures | {key: found[key] for key in ("steps", "first_loss", "last_loss")}
    out.mkdir(parents=True, exist_ok=True)
    (out / _RECORD).write_text(json.dumps(record | {k: found[k] for k in found if k not in record}, indent=2) + "\n")
    if not temporal_blocks(backbone.unet):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(tuning.seed)
            add_temporal(backbone.unet)
    try:
        trainer = yield from _train(backbone, clip, tuning, out / _CHECKPOINT)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryShortage(
            "Memory ran out while tuning: take fewer frames or a smaller size, or end what else uses this device's "
            "memory."
        ) from None
    losses = trainer.losses
    told = {"steps": len(losses), "first_loss": _mean(losses[:RECENT]), "last_loss": _mean(losses[-RECENT:])}
    _save(backbone, out)
    (out / _RECORD).write_text(json.dumps(record | told, indent=2) + "\n")
    return figures | told


def _mean(losses: list[float]) -> float | None:
    return round(sum(losses) / len(losses), 5) if losses else None


def _train(backbone: Inflated, clip: Clip, tuning: Tuning, checkpoint: Path) -> Steps[Trainer]:
    trainer = Trainer(backbone, clip, tuning)
    if checkpoint.exists():
        trainer.read(checkpoint)
    saved = time.monotonic()
    while len(trainer.losses) < tuning.steps:
        trainer.advance()
        yield Step("tune", len(trainer.losses), tuning.steps)
        if time.monotonic() - saved > EVERY:
            trainer.write(checkpoint)
            saved = time.monotonic()
    trainer.write(checkpoint)
    return trainer
