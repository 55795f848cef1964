"""Figures about clips: frames (f, h, w, 3) uint8 in, floats out.

CLIP's are cosines between a picture's and a prompt's embedding, or those of two pictures (Hessel et al. 2021;
FreeMask Sec. 5): OpenAI's ViT-L/14 for real clips, and for the toy world a tiny CLIP of its own that ships with
the code. A metric whose weights cannot be had raises MetricError with the reason; it is never zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from ..errors import MetricError, first_line
from ..families.backbone import signed_pixels
from ..families.devices import LOADING
from ..families.specs import TOY_CLIP, known_words

__all__ = [
    "ClipScore",
    "absent",
    "clip_metrics",
    "clip_pixels",
    "load_clip",
    "lpips",
    "pick_score",
    "psnr",
    "score",
    "ssim",
]

REAL_CLIP = "openai/clip-vit-large-patch14"
PICK = "yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # the model, and whose tokenizer it has


def psnr(a: np.ndarray, b: np.ndarray, *, keep: np.ndarray | None = None) -> float:
    """PSNR in dB of two clips (f, h, w, 3) uint8, over the pixels where `keep` (f, h, w) is True.

    With `keep` the unedited region this is FreeMask's M.PSNR (Eq. 12, whose printed form compares the edit
    with itself). Equal clips give infinity, no pixels at all give NaN.
    """
    squared = (a.astype(np.float64) - b.astype(np.float64)) ** 2
    if keep is not None:
        squared = squared[keep]
    if squared.size == 0:
        return math.nan
    error = float(squared.mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity in [-1, 1] of two clips (f, h, w, 3) uint8: scikit-image's, the mean over frames."""
    from skimage.metrics import structural_similarity

    return float(np.mean([structural_similarity(x, y, channel_axis=-1) for x, y in zip(a, b, strict=True)]))


def lpips(a: np.ndarray, b: np.ndarray) -> float:
    """Perceptual distance, 0 or more, of two clips (f, h, w, 3) uint8: LPIPS with VGG, the mean over frames.

    Raises MetricError where the library or VGG's weights, which it downloads, are not to be had.
    """
    model = _lpips_model()
    with torch.inference_mode():
        return float(model(signed_pixels(a), signed_pixels(b)).mean())


def absent(what: str, cure: str, error: Exception) -> MetricError:
    """The refusal of a figure whose model is not to be had, by the error of who looked for it."""
    return MetricError(f"{what} is not to be had ({first_line(error)}): {cure}.")


@lru_cache(maxsize=1)
def _lpips_model() -> torch.nn.Module:
    try:
        from lpips import LPIPS

        return LPIPS(net="vgg", verbose=False).eval()
    except Exception as error:  # a missing library, no network, a broken download
        raise absent("LPIPS", "pip install lpips, with network once", error) from error


def clip_pixels(pixels: Tensor, size: int) -> Tensor:
    """(n, 3, h, w) in [-1, 1] -> (n, 3, size, size) as CLIP reads them: the short side to `size`, the centre, its
    mean and spread."""
    h, w = pixels.shape[-2:]
    if (h, w) != (size, size):
        scale = size / min(h, w)
        grown = (max(size, round(h * scale)), max(size, round(w * scale)))
        pixels = F.interpolate(pixels, grown, mode="bicubic", antialias=True).clamp(-1, 1)
        y, x = (grown[0] - size) // 2, (grown[1] - size) // 2
        pixels = pixels[..., y : y + size, x : x + size]
    mean, spread = (torch.tensor(value).view(3, 1, 1) for value in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return ((pixels + 1) / 2 - mean) / spread


@dataclass(frozen=True)
class ClipScore:
    """A loaded CLIP; embeddings have length 1, so that their products are cosines in [-1, 1]."""

    model: CLIPModel
    tokenizer: CLIPTokenizer

    @torch.inference_mode()
    def images(self, frames: np.ndarray) -> Tensor:
        """(f, h, w, 3) uint8 -> (f, d)."""
        size = int(self.model.config.vision_config.image_size)
        states = self.model.vision_model(pixel_values=clip_pixels(signed_pixels(frames), size)).pooler_output
        return F.normalize(self.model.visual_projection(states), dim=-1)

    @torch.inference_mode()
    def texts(self, prompts: list[str]) -> Tensor:
        """(n, d)."""
        length = int(self.model.config.text_config.max_position_embeddings)
        batch = self.tokenizer(prompts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        states = self.model.text_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).pooler_output
        return F.normalize(self.model.text_projection(states), dim=-1)


def load_clip(backbone: str) -> ClipScore:
    """The CLIP that judges a backbone's clips: the toy world's where the backbone knows that world's words alone,
    else OpenAI's ViT-L/14. Raises MetricError where its weights are not to be had."""
    with LOADING:  # threads that ask at once wait for the one that loads it
        return _clip(REAL_CLIP if known_words(backbone) is None else str(TOY_CLIP))


@lru_cache(maxsize=3)
def _clip(name: str, tokenizer: str = "", called: str = "CLIP") -> ClipScore:
    """The CLIP of a name, with the tokenizer of another where its own is not beside it."""
    try:
        transformers.utils.logging.disable_progress_bar()
        model = CLIPModel.from_pretrained(name, dtype=torch.float32).eval().requires_grad_(False)
        return ClipScore(model, CLIPTokenizer.from_pretrained(tokenizer or name))
    except Exception as error:  # the libraries raise many kinds
        cure = "install FreeMask again" if name == str(TOY_CLIP) else "it needs a network once"
        raise absent(called, cure, error) from error


def clip_metrics(clip: ClipScore, frames: np.ndarray, *, source: str, edit: str) -> dict[str, float]:
    """`clip`: the mean cosine of frames and edit prompt; `clip_temporal`: that of neighbouring frames (1 for a single
    one); `frame_accuracy`: the share of frames nearer to the edit prompt than to the source's."""
    images, texts = clip.images(frames), clip.texts([source, edit])
    to_source, to_edit = (images @ texts.T).T
    neighbours = (images[1:] * images[:-1]).sum(-1)
    return {
        "clip": float(to_edit.mean()),
        "clip_temporal": float(neighbours.mean()) if len(neighbours) else 1.0,
        "frame_accuracy": float((to_edit > to_source).float().mean()),
    }


def pick_score(frames: np.ndarray, prompt: str) -> float:
    """How well people would like frames for a prompt: the mean Pick score (Kirstain et al. 2023), a cosine times the
    model's scale of about 100. Raises MetricError where its weights, 4 GB from the hub, are not to be had."""
    with LOADING:
        judge = _clip(*PICK, "The Pick score")
    cosines = judge.images(frames) @ judge.texts([prompt]).T
    return float(judge.model.logit_scale.exp() * cosines.mean())


def score(
    before: np.ndarray, after: np.ndarray, *, source: str, edit: str, backbone: str, keep: np.ndarray | None = None
) -> dict[str, Any]:
    """What can be said of an edit from its two clips (f, h, w, 3) uint8 and prompts: `clip_metrics`, `pick`, and `ssim`
    and `lpips` to the source; `masked_psnr` in dB and `masked_lpips` are those of the pixels to `keep` (f, h, w) bool.
    A figure whose model is not to be had, or that has no pixels, is None; `absent` holds a model's reason by name."""
    named = "clip", "clip_temporal", "frame_accuracy", "pick", "lpips", "masked_psnr", "masked_lpips"
    figures: dict[str, Any] = dict.fromkeys(named)
    figures["ssim"] = ssim(after, before)
    reasons: dict[str, str] = {}
    if keep is not None and keep.any():
        figures["masked_psnr"] = psnr(after, before, keep=keep)
    try:
        figures |= clip_metrics(load_clip(backbone), after, source=source, edit=edit)
    except MetricError as error:
        reasons |= dict.fromkeys(("clip", "clip_temporal", "frame_accuracy"), str(error))
    try:
        if known_words(backbone) is not None:
            raise MetricError("The Pick score judges real clips, and this edit is one of the toy world.")
        figures["pick"] = pick_score(after, edit)
    except MetricError as error:
        reasons["pick"] = str(error)
    try:
        figures["lpips"] = lpips(after, before)
        if keep is not None and keep.any():
            figures["masked_lpips"] = lpips(after * keep[..., None], before * keep[..., None])
    except MetricError as error:
        reasons |= dict.fromkeys(("lpips", "masked_lpips"), str(error))
    return figures | {"absent": reasons}
