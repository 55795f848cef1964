"""A small independent judge of toy-world pictures: which object, colour, place and style does a frame show, and
where is the object?

It is trained on rendered frames and their masks alone and never sees the diffusion model, so it can say how
often a generated clip shows what its caption asks for. Blur, noise and mirrors in its training keep it from
leaning on details that no decoder reproduces. Every head reads the whole frame and what stands under the mask that
it finds itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..families.backbone import signed_pixels
from ..families.devices import LOADING
from .scenes import COLOURS, OBJECTS, PLACES, STYLES, Scene, render, sample_scene

__all__ = [
    "CLASSES",
    "Classifier",
    "descend",
    "disturbed",
    "labels",
    "load_classifier",
    "train_classifier",
    "training_frames",
    "training_scenes",
]

WEIGHTS = Path(__file__).parent / "classifier.safetensors"
# head -> its classes; None is "as it comes"
CLASSES: dict[str, tuple[str | None, ...]] = {
    "object": tuple(OBJECTS),
    "colour": (*COLOURS, None),
    "place": tuple(PLACES),
    "style": (*STYLES, None),
}


def labels(scene: Scene) -> dict[str, int]:
    """The index of the scene's class in each head."""
    return {head: names.index(getattr(scene, head)) for head, names in CLASSES.items()}


def _block(given: int, out: int, stride: int, kernel: int = 3) -> nn.Sequential:
    convolution = nn.Conv2d(given, out, kernel, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out), nn.ReLU())


class Classifier(nn.Module):
    """A plain convolutional network with four heads and a coarse mask of the object; `size` is the side of the
    frames it learnt from."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.fine = nn.Sequential(_block(3, 32, 2, kernel=4), _block(32, 64, 2), _block(64, 96, 1))
        self.middle = nn.Sequential(_block(96, 128, 2), _block(128, 128, 1))
        self.coarse = nn.Sequential(_block(128, 192, 2), _block(192, 192, 1))
        self.up = nn.ModuleList([nn.Conv2d(given, 64, 1) for given in (96, 128, 192)])
        self.mask = nn.Sequential(_block(64, 64, 1), nn.Conv2d(64, 1, 1))
        self.heads = nn.ModuleDict({head: nn.Linear(192 + 192 + 128, len(names)) for head, names in CLASSES.items()})

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """From RGB `pixels` (n, 3, size, size) in [-1, 1]: logits (n, classes) of each head, and under "mask" those
        of the object's mask (n, size/4, size/4)."""
        fine, middle, coarse = self._levels(pixels)
        merged = self.up[2](coarse)
        for level, features in ((1, middle), (0, fine)):
            merged = F.interpolate(merged, features.shape[-2:], mode="nearest") + self.up[level](features)
        mask = self.mask(F.relu(merged))
        weight = mask.detach().sigmoid() + 1e-3
        under = []
        for features in (coarse, middle):
            h, w = features.shape[-2:]
            share = F.adaptive_avg_pool2d(weight, (h, w))
            under.append((features * share).sum((2, 3)) / share.sum((2, 3)))
        pooled = torch.cat([coarse.mean((2, 3)), *under], 1)
        return {name: head(pooled) for name, head in self.heads.items()} | {"mask": mask[:, 0]}

    @torch.no_grad()
    def read(self, frames: np.ndarray) -> dict[str, Tensor]:
        """The logits (classes,) of each head for a clip (f, h, w, 3) uint8: the mean of its frames'."""
        seen = self(self._pixels(frames))
        return {head: seen[head].mean(0) for head in CLASSES}

    def judge(self, frames: np.ndarray) -> dict[str, int]:
        """The class index of each head for a clip (f, h, w, 3) uint8."""
        return {head: int(logits.argmax()) for head, logits in self.read(frames).items()}

    @torch.no_grad()
    def distance(self, a: np.ndarray, b: np.ndarray) -> float:
        """Perceptual distance, 0 or more, of two clips (f, h, w, 3) uint8: LPIPS (Zhang et al. 2018) over this
        network's three levels, every channel of the same weight, the mean over frames."""
        levels = zip(*(self._levels(self._pixels(frames)) for frames in (a, b)), strict=True)
        return sum(float((F.normalize(x) - F.normalize(y)).square().sum(1).mean()) for x, y in levels)

    @torch.no_grad()
    def locate(self, frames: np.ndarray) -> np.ndarray:
        """The object's centre on each frame of a clip (f, h, w, 3): (f, 2) as (x, y) in pixels of the frame."""
        mask = self(self._pixels(frames))["mask"].sigmoid()
        mask = mask * (mask > 0.25) + 1e-6
        share = mask / mask.sum((1, 2), keepdim=True)
        centres = []
        for over, side in ((1, frames.shape[2]), (2, frames.shape[1])):
            line = share.sum(over)
            cell = side / line.shape[1]
            centres.append(line @ ((torch.arange(line.shape[1]) + 0.5) * cell))
        return torch.stack(centres, 1).numpy()

    def _levels(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The features of each level, at a quarter, an eighth and a sixteenth of the frames' side."""
        fine = self.fine(pixels)
        middle = self.middle(fine)
        return fine, middle, self.coarse(middle)

    def _pixels(self, frames: np.ndarray) -> Tensor:
        pixels = signed_pixels(frames)
        if pixels.shape[-2:] == (self.size, self.size):
            return pixels
        return F.interpolate(pixels, (self.size, self.size), mode="bilinear", antialias=True)


def load_classifier(path: Path = WEIGHTS) -> Classifier:
    """The classifier saved at `path`, ready to judge, on the CPU in float32."""
    with LOADING, safe_open(path, "pt") as file:
        model = Classifier(int(file.metadata()["size"]))
        model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})
    return model.eval()


def disturbed(pixels: Tensor, mirrored: Tensor | None = None) -> Tensor:
    """The batch (n, 3, h, w) in [-1, 1] blurred, noised and dimmed at random, and mirrored: where `mirrored` (n,)
    says so, or at random."""
    n, _, h, w = pixels.shape
    mirrored = torch.rand(n) < 0.5 if mirrored is None else mirrored
    pixels = torch.where(mirrored[:, None, None, None], pixels.flip(-1), pixels)
    sides = [int(side * (0.4 + 0.5 * torch.rand(()))) for side in (h, w)]
    soft = F.interpolate(F.interpolate(pixels, sides, mode="bilinear", antialias=True), (h, w), mode="bilinear")
    pixels = torch.lerp(pixels, soft, (torch.rand(n, 1, 1, 1) * 1.5).clamp(max=1))
    gain = 1 + 0.08 * torch.randn(n, 1, 1, 1)
    return (pixels * gain + 0.08 * torch.rand(n, 1, 1, 1) * torch.randn_like(pixels)).clamp(-1, 1)


def training_scenes(first: int, count: int) -> list[Scene]:
    """The scenes with seeds `first` … `first + count`, under 1,000,000; a third are given a style beside those that
    have one, because styled objects are the hardest."""
    if first + count > 1_000_000:
        raise ValueError("train on seeds under 1,000,000 only")
    drawn = [sample_scene(seed) for seed in range(first, first + count)]
    drawn[::3] = [replace(scene, style=STYLES[i % len(STYLES)]) for i, scene in enumerate(drawn[::3])]
    return drawn


def training_frames(drawn: list[Scene], size: int) -> tuple[Tensor, Tensor]:
    """Two frames of each scene (n, 2, 3, size, size) uint8 and the object's masks (n, 2, size, size) bool."""
    cv2.setNumThreads(1)
    clips = [render(scene, size, frames=2) for scene in drawn]
    pixels = torch.from_numpy(np.stack([clip.frames for clip in clips]))
    masks = torch.from_numpy(np.stack([clip.masks for clip in clips]))
    return rearrange(pixels, "n f h w c -> n f c h w").contiguous(), masks


def descend(
    model: nn.Module,
    loss: Callable[[], Tensor],
    *,
    steps: int,
    lr: float,
    weight_decay: float,
    longest: float = float("inf"),
) -> None:
    """Trains a judge: `loss()` draws a batch; AdamW under one cycle of the rate, gradients no longer than `longest`.
    Prints a line every 50 steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    seen: list[float] = []
    for step in range(1, steps + 1):
        value = loss()
        torch.autograd.backward(value)
        if longest < float("inf"):
            torch.nn.utils.clip_grad_norm_(model.parameters(), longest)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        seen.append(value.item())
        if step % 50 == 0:
            print(f"{step} of {steps} loss {np.mean(seen[-50:]):.4f}", flush=True)


def train_classifier(
    out: Path = WEIGHTS,
    *,
    size: int = 64,
    steps: int = 4000,
    scenes: int = 16_000,
    first: int = 100_000,
    batch: int = 48,
    lr: float = 4e-3,
) -> None:
    """Trains on two frames each of `training_scenes` and saves fp16 weights.

    Colour is learnt from unstyled scenes only, for a style may hide it. Prints a line every 50 steps.
    """
    drawn = training_scenes(first, scenes)
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    pixels, masks = training_frames(drawn, size)
    truth = {head: torch.tensor([labels(scene)[head] for scene in drawn]) for head in CLASSES}
    truth["colour"][truth["style"] != CLASSES["style"].index(None)] = -100  # not counted by the loss
    model = Classifier(size).train()

    def loss() -> Tensor:
        rows, frames, mirrored = torch.randint(scenes, (batch,)), torch.randint(2, (batch,)), torch.rand(batch) < 0.5
        given = disturbed(pixels[rows, frames].float() / 127.5 - 1, mirrored)
        found = model(given.contiguous(memory_format=torch.channels_last))
        mask = masks[rows, frames].float()
        mask = torch.where(mirrored[:, None, None], mask.flip(-1), mask)
        where = F.binary_cross_entropy_with_logits(found["mask"], F.adaptive_avg_pool2d(mask, found["mask"].shape[1:]))
        return where + torch.stack([F.cross_entropy(found[head], truth[head][rows]) for head in CLASSES]).sum()

    descend(model, loss, steps=steps, lr=lr, weight_decay=0.02)
    weights = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file(weights, out, {"size": str(size)})
