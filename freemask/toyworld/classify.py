"""A small independent judge of toy-world pictures: which object, colour, place and style does a frame show?

It is trained on rendered frames alone and never sees the diffusion model, so it can say how often a
generated clip shows what its caption asks for. Blur, noise and mirrors in its training keep it from
leaning on details that no decoder reproduces.
"""

from __future__ import annotations

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

from .scenes import COLOURS, OBJECTS, PLACES, STYLES, Scene, render, sample_scene

__all__ = ["CLASSES", "Classifier", "disturbed", "labels", "load_classifier", "train_classifier"]

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
    """A plain convolutional network with four heads; `size` is the side of the frames it learnt from."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.body = nn.Sequential(
            nn.AvgPool2d(2),
            _block(3, 48, 2, kernel=4),
            _block(48, 96, 2),
            _block(96, 96, 1),
            _block(96, 160, 2),
            _block(160, 160, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.heads = nn.ModuleDict({head: nn.Linear(160, len(names)) for head, names in CLASSES.items()})

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Logits (n, classes) of each head for RGB `pixels` (n, 3, size, size) in [-1, 1]."""
        features = self.body(pixels)
        return {name: head(features) for name, head in self.heads.items()}

    @torch.no_grad()
    def judge(self, frames: np.ndarray) -> dict[str, int]:
        """The class index of each head for a clip (f, h, w, 3) uint8, by the mean of its frames' logits."""
        pixels = rearrange(torch.from_numpy(np.ascontiguousarray(frames)), "f h w c -> f c h w").float() / 127.5 - 1
        if pixels.shape[-2:] != (self.size, self.size):
            pixels = F.interpolate(pixels, (self.size, self.size), mode="bilinear", antialias=True)
        return {head: int(logits.mean(0).argmax()) for head, logits in self(pixels).items()}


def load_classifier(path: Path = WEIGHTS) -> Classifier:
    """The classifier saved at `path`, ready to judge, on the CPU in float32."""
    with safe_open(path, "pt") as file:
        model = Classifier(int(file.metadata()["size"]))
        model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})
    return model.eval()


def disturbed(pixels: Tensor) -> Tensor:
    """The batch mirrored, blurred, noised and dimmed at random; (n, 3, h, w) in [-1, 1]."""
    n, _, h, w = pixels.shape
    pixels = torch.where(torch.rand(n, 1, 1, 1) < 0.5, pixels.flip(-1), pixels)
    sides = [int(side * (0.4 + 0.5 * torch.rand(()))) for side in (h, w)]
    soft = F.interpolate(F.interpolate(pixels, sides, mode="bilinear", antialias=True), (h, w), mode="bilinear")
    pixels = torch.lerp(pixels, soft, (torch.rand(n, 1, 1, 1) * 1.5).clamp(max=1))
    gain = 1 + 0.08 * torch.randn(n, 1, 1, 1)
    return (pixels * gain + 0.08 * torch.rand(n, 1, 1, 1) * torch.randn_like(pixels)).clamp(-1, 1)


def train_classifier(
    out: Path = WEIGHTS,
    *,
    size: int = 64,
    steps: int = 2000,
    scenes: int = 9000,
    first: int = 100_000,
    batch: int = 48,
    lr: float = 4e-3,
) -> None:
    """Trains on two frames each of the scenes with seeds `first` … `first + scenes` and saves fp16 weights.

    A third of the scenes are given a style beside those that have one, because styled objects are the
    hardest. Colour is learnt from unstyled scenes only, for a style may hide it. Prints a line every 50 steps.
    """
    if first + scenes > 1_000_000:
        raise ValueError("train on seeds under 1,000,000 only")
    cv2.setNumThreads(1)
    torch.manual_seed(0)
    drawn = [sample_scene(seed) for seed in range(first, first + scenes)]
    drawn[::3] = [replace(scene, style=STYLES[i % len(STYLES)]) for i, scene in enumerate(drawn[::3])]
    pixels = torch.from_numpy(np.stack([render(scene, size, frames=2).frames for scene in drawn]))
    pixels = rearrange(pixels, "n f h w c -> n f c h w").contiguous()
    truth = {head: torch.tensor([labels(scene)[head] for scene in drawn]) for head in CLASSES}
    truth["colour"][truth["style"] != CLASSES["style"].index(None)] = -100  # not counted by the loss
    model = Classifier(size).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    seen: list[float] = []
    for step in range(1, steps + 1):
        rows = torch.randint(scenes, (batch,))
        given = pixels[rows, torch.randint(2, (batch,))].float() / 127.5 - 1
        logits = model(disturbed(given).contiguous(memory_format=torch.channels_last))
        loss = torch.stack([F.cross_entropy(logits[head], truth[head][rows]) for head in CLASSES]).sum()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        seen.append(loss.item())
        if step % 50 == 0:
            print(f"{step} of {steps} loss {np.mean(seen[-50:]):.4f}", flush=True)
    weights = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file(weights, out, {"size": str(size)})
