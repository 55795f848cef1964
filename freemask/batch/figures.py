"""FiVE-Bench's figures that need no language model: two clips (f, h, w, 3) uint8 and masks (f, h, w) bool in.

They are defined as the benchmark's own code computes them, so that they stand beside its table: masked pictures are
multiplied by the mask, PSNR, SSIM and MSE are torchmetrics' of values from 0 to 1, LPIPS is SqueezeNet's, CLIP's
cosine is times 100 and not below 0. A figure whose model is not to be had is None, with its reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import MetricError
from ..families.backbone import signed_pixels
from ..families.devices import LOADING
from ..jobs.metrics import absent, load_clip

__all__ = ["five_figures", "motion_fidelity", "self_similarity", "warp_error"]

DINO = "facebook/dino-vitb8"
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels
Flow = Callable[
    [Tensor, Tensor], Tensor
]  # of pictures (n, 3, h, w) in [-1, 1] and the next ones, (n, 2, h, w) in pixels
Tracker = Callable[[Tensor], Tensor]  # of a video (1, f, 3, h, w) from 0 to 255, points (n, f, 2)


T = TypeVar("T")


def _asked_once(load: Callable[[], T]) -> Callable[[], T]:
    """What a loader gives, or its refusal, the same for every clip: a network that is not there is not waited for
    again."""
    found: list[T | MetricError] = []

    @wraps(load)
    def ask() -> T:
        if not found:
            try:
                found.append(load())
            except MetricError as error:
                found.append(error)
        if isinstance(found[0], MetricError):
            raise found[0]
        return found[0]

    return ask


def five_figures(
    before: np.ndarray, after: np.ndarray, masks: np.ndarray, *, source: str, edit: str, backbone: str
) -> dict[str, Any]:
    """Figures of an edit, means over its frames; `absent` holds why one is None.

    `structure_distance` (Tumanyan et al. 2022, DINO's keys); of the part that is not edited `psnr` in dB, `ssim`, `mse`
    and `lpips`; `clip_source`, `clip_target` and `clip_edited_part`; `motion_fidelity` (Yatim et al. 2024);
    `warp_error` (Lai et al. 2018). CLIP is the backbone's own judge (`metrics.load_clip`): ViT-L/14 for real clips.
    """
    figures: dict[str, Any] = {}
    reasons: dict[str, str] = {}

    def take(names: tuple[str, ...], make: Callable[[], tuple[float | None, ...]]) -> None:
        try:
            found = make()
        except MetricError as error:
            found = (None,) * len(names)
            reasons.update(dict.fromkeys(names, str(error)))
        figures.update(zip(names, found, strict=True))

    kept = ~masks[..., None]
    take(("structure_distance",), lambda: (_structure(before, after),))
    take(("psnr", "ssim", "mse"), lambda: _torchmetrics(before * kept, after * kept) if kept.any() else (None,) * 3)
    take(("lpips",), lambda: (_lpips(before * kept, after * kept) if kept.any() else None,))
    take(
        ("clip_source", "clip_target", "clip_edited_part"),
        lambda: _clip(before, after, masks, source=source, edit=edit, backbone=backbone),
    )
    take(("motion_fidelity",), lambda: (motion_fidelity(_tracker()(_video(before)), _tracker()(_video(after))),))
    take(("warp_error",), lambda: (warp_error(before, after, _raft()) if len(before) > 1 else None,))
    return figures | {"absent": reasons}


def _torchmetrics(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """PSNR in dB, SSIM and MSE."""
    try:
        from torchmetrics.functional.image import peak_signal_noise_ratio as psnr
        from torchmetrics.functional.image import structural_similarity_index_measure as ssim
    except ImportError as error:
        raise MetricError("It is torchmetrics': pip install -r requirements-batch.txt.") from error
    pairs = [(_unit(x), _unit(y)) for x, y in zip(a, b, strict=True)]
    mse = [float(F.mse_loss(x, y)) for x, y in pairs]
    each = [(float(psnr(x, y, data_range=1.0)), float(ssim(x, y, data_range=1.0))) for x, y in pairs]
    psnrs, ssims = zip(*each, strict=True)
    return float(np.mean(psnrs)), float(np.mean(ssims)), float(np.mean(mse))


def _unit(frame: np.ndarray) -> Tensor:
    """(h, w, 3) uint8 -> (1, 3, h, w) from 0 to 1."""
    return torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None].float() / 255


def _video(frames: np.ndarray) -> Tensor:
    """(f, h, w, 3) uint8 -> (1, f, 3, h, w) from 0 to 255."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)[None].float()


def _lpips(a: np.ndarray, b: np.ndarray) -> float:
    model = _squeeze()
    with torch.inference_mode():
        return float(
            np.mean([float(model(signed_pixels(x[None]), signed_pixels(y[None]))) for x, y in zip(a, b, strict=True)])
        )


@_asked_once
def _squeeze() -> Any:
    with LOADING:
        try:
            from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity as Lpips

            return Lpips(net_type="squeeze").eval()
        except Exception as error:  # a missing library, no network, a broken download
            raise absent("LPIPS with SqueezeNet", "pip install torchmetrics torchvision", error) from error


def _clip(
    before: np.ndarray, after: np.ndarray, masks: np.ndarray, *, source: str, edit: str, backbone: str
) -> tuple[float, float, float | None]:
    clip = load_clip(backbone)
    of_source, of_edit = clip.texts([source, edit])

    def mean(frames: np.ndarray, text: Tensor) -> float:
        return float((100 * clip.images(frames) @ text).clamp(min=0).mean())

    some = masks.any((1, 2))
    part = mean((after * masks[..., None])[some], of_edit) if some.any() else None
    return mean(before, of_source), mean(after, of_edit), part


def _structure(a: np.ndarray, b: np.ndarray) -> float:
    model = _dino()
    pairs = zip(_video(a)[0], _video(b)[0], strict=True)
    return float(np.mean([float(F.mse_loss(self_similarity(model, x), self_similarity(model, y))) for x, y in pairs]))


@torch.inference_mode()
def self_similarity(model: Any, frame: Tensor) -> Tensor:
    """The cosines (t, t) among the keys of a ViT's last layer, of a picture (3, h, w) from 0 to 255.

    The short side becomes 224 pixels, the long one at most 480. ImageNet's mean and spread, which are of values from 0
    to 1, are put to those from 0 to 255: so does the benchmark's code, and its table.
    """
    h, w = frame.shape[-2:]
    scale = min(224 / min(h, w), 480 / max(h, w))
    resized = F.interpolate(frame[None], (round(h * scale), round(w * scale)), mode="bilinear", antialias=True)
    mean, spread = (torch.tensor(value).view(3, 1, 1) for value in (MEAN, SPREAD))
    keys: list[Tensor] = []
    last = [module for name, module in model.named_modules() if name.endswith(("k_proj", "attention.key"))][-1]
    hook = last.register_forward_hook(lambda *seen: keys.append(seen[2]))
    try:
        model((resized - mean) / spread, interpolate_pos_encoding=True)
    finally:
        hook.remove()
    each = F.normalize(keys[0][0], dim=-1)
    return each @ each.T


@_asked_once
def _dino() -> Any:
    from transformers import ViTModel

    with LOADING:
        try:
            return ViTModel.from_pretrained(DINO, add_pooling_layer=False).eval()
        except Exception as error:
            raise absent("DINO", "it needs a network once", error) from error


def motion_fidelity(before: Tensor, after: Tensor) -> float:
    """How well each track of the edit, points (n, f, 2), goes along with some track of the source (m, f, 2): the mean
    over the edit's of the largest cosine of their displacements, -1 to 1; one of the same index counts 1 less, as in
    the benchmark's code. A point that stands still goes along with none."""
    a, b = (F.normalize(tracks[:, 1:] - tracks[:, :-1], dim=-1) for tracks in (after, before))
    alike = torch.einsum("ntc,mtc->nmt", a, b).mean(-1)
    return float((alike - torch.eye(*alike.shape)).amax(1).mean())


@_asked_once
def _tracker() -> Tracker:
    try:
        from cotracker.predictor import CoTrackerPredictor

        model = CoTrackerPredictor(checkpoint=os.environ["FREEMASK_COTRACKER"]).eval()
    except Exception as error:
        how = "install co-tracker and name its checkpoint by FREEMASK_COTRACKER"
        raise absent("A tracker", how, error) from error
    return lambda video: model(video, grid_size=55)[0][0].transpose(0, 1)  # its points are (1, f, n, 2)


def warp_error(before: np.ndarray, after: np.ndarray, flow: Flow) -> float:
    """Mean squared difference, values from 0 to 1, of each frame of the edit and the next one brought back along the
    source's flow, where the source's own flow there and back agrees (Lai et al. 2018, Eq. 11; occlusion as Ruder et
    al. 2016). NaN frames are left out where nothing agrees."""
    source, edit = signed_pixels(before), signed_pixels(after)
    there, back = flow(source[:-1], source[1:]), flow(source[1:], source[:-1])
    returned = _warped(back, there)
    apart = ((there + returned) ** 2).sum(1, keepdim=True)
    seen = apart < 0.01 * ((there**2).sum(1, keepdim=True) + (returned**2).sum(1, keepdim=True)) + 0.5
    error = ((edit[:-1] - _warped(edit[1:], there)) ** 2).mean(1, keepdim=True) / 4
    each = (error * seen).sum((1, 2, 3)) / seen.sum((1, 2, 3))
    return float(each[each.isfinite()].mean())


def _warped(x: Tensor, flow: Tensor) -> Tensor:
    """`x` (n, c, h, w) taken at each position plus the flow (n, 2, h, w) in pixels; edges go on beyond the picture."""
    h, w = x.shape[-2:]
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    at = torch.stack([columns + flow[:, 0], rows + flow[:, 1]], -1)
    scaled = 2 * at / torch.tensor([max(w - 1, 1), max(h - 1, 1)]) - 1
    return F.grid_sample(x, scaled, padding_mode="border", align_corners=True)


@_asked_once
def _raft() -> Flow:
    with LOADING:
        try:
            from torchvision.models.optical_flow import (
                Raft_Large_Weights,
                raft_large,
            )

            model = raft_large(weights=Raft_Large_Weights.DEFAULT).eval()
        except Exception as error:
            raise absent("RAFT", "pip install torchvision, with network once", error) from error

    @torch.inference_mode()
    def flow(a: Tensor, b: Tensor) -> Tensor:
        h, w = a.shape[-2:]
        pad = (0, -w % 8, 0, -h % 8)
        pairs = zip(F.pad(a, pad, "replicate"), F.pad(b, pad, "replicate"), strict=True)
        return torch.cat([model(x[None], y[None])[-1] for x, y in pairs])[..., :h, :w]

    return flow
