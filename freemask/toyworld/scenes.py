"""A small rendered world in which every mask, every motion and every edit is known.

A `Scene` is a frozen record: an object (a sprite), an optional colour, a place, an optional style, and
a smooth motion. `render` turns it into frames, object masks and the caption; changing one field with
`dataclasses.replace` and rendering again gives the *true edited clip* of that scene.

Seeds under 1,000,000 train; from 1,000,000 calibrate; from 2,000,000 develop the method; from 3,000,000
only report figures.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

__all__ = [
    "CALIBRATE",
    "COLOURS",
    "DEVELOP",
    "OBJECTS",
    "PLACES",
    "REPORT",
    "STYLES",
    "Rendered",
    "Scene",
    "caption",
    "draw",
    "empty",
    "motion",
    "named",
    "render",
    "render_seed",
    "sample_scene",
    "vocabulary",
]

CALIBRATE, DEVELOP, REPORT = 1_000_000, 2_000_000, 3_000_000

# object -> its verb
OBJECTS = {
    "car": "driving",
    "jeep": "driving",
    "bus": "driving",
    "truck": "driving",
    "train": "driving",
    "boat": "sailing",
    "dog": "walking",
    "cat": "walking",
    "elephant": "walking",
    "giraffe": "walking",
    "rabbit": "walking",
    "duck": "swimming",
    "swan": "swimming",
}
# colour -> (hue in OpenCV's half degrees, gamma applied to the brightness)
COLOURS = {
    "red": (0, 1.0),
    "yellow": (27, 0.55),
    "green": (60, 0.9),
    "blue": (112, 0.9),
    "purple": (142, 0.9),
}
PLACES = {
    "grass": "on the grass",
    "snow": "on the snow",
    "sand": "on the sand",
    "water": "on the water",
    "road": "on the road",
    "leaves": "on the leaves",
    "flowers": "in the flowers",
    "night": "in the night",
}
STYLES = ("sketch", "watercolor", "pixel")
_SPRITES = Path(__file__).parent / "sprites"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One clip of the toy world; lengths are fractions of the frame's side, motion is per clip.

    `x, y` is the sprite's centre at mid-clip; `dx` the way it goes from the first frame to the last
    (its sign also says which way the sprite faces); `bob` the amplitude and `phase` (turns) the start of
    its bobbing; `pan` the way of the background; `ground` seeds the background's texture; `wording`
    picks the caption's form (0 full, 1 with "is", 2 without the verb).
    """

    object: str
    colour: str | None
    place: str
    style: str | None
    scale: float
    x: float
    y: float
    dx: float
    bob: float
    phase: float
    pan: float
    ground: int
    wording: int = 0


class Rendered(NamedTuple):
    """`frames` (f, h, w, 3) uint8 RGB; `masks` (f, h, w) bool, True = object; `caption` the words."""

    frames: np.ndarray
    masks: np.ndarray
    caption: str


def sample_scene(seed: int) -> Scene:
    """The scene of a seed; the same seed gives the same scene everywhere."""
    rng = random.Random(seed)
    scale = rng.uniform(0.55, 0.8)
    dx = rng.uniform(0.05, 0.3) * rng.choice((-1, 1))
    room = max(0.0, 0.5 - scale / 2 - abs(dx) / 2 + 0.04)
    return Scene(
        object=rng.choice(tuple(OBJECTS)),
        colour=rng.choice(tuple(COLOURS)) if rng.random() < 0.6 else None,
        place=rng.choice(tuple(PLACES)),
        style=rng.choice(STYLES) if rng.random() < 0.3 else None,
        scale=scale,
        x=0.5 + rng.uniform(-room, room),
        y=0.5 + rng.uniform(-1, 1) * max(0.0, 0.47 - scale / 2),
        dx=dx,
        bob=rng.uniform(0, 0.03),
        phase=rng.random(),
        pan=rng.uniform(0, 0.25) * rng.choice((-1, 1)),
        ground=rng.randrange(1 << 30),
        wording=rng.choice((0, 0, 0, 1, 2)),
    )


def named(scene: Scene) -> str:
    """The scene's object with its article, such as "a red car"."""
    noun = f"{scene.colour} {scene.object}" if scene.colour else scene.object
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def caption(scene: Scene) -> str:
    """What the scene shows, such as "sketch style painting of a swan swimming on the water"."""
    verb = ("", "is ")[scene.wording == 1] + OBJECTS[scene.object]
    words = [named(scene), "" if scene.wording == 2 else verb, PLACES[scene.place]]
    if scene.style:
        words.insert(0, f"{scene.style} style painting of")
    return " ".join(w for w in words if w)


def vocabulary() -> tuple[str, ...]:
    """Every word a caption can hold, sorted."""
    words = {"a", "an", "and", "is", "style", "painting", "of", *OBJECTS, *COLOURS, *STYLES}
    words |= set(OBJECTS.values()) | {w for phrase in PLACES.values() for w in phrase.split()}
    return tuple(sorted(words))


@lru_cache(maxsize=256)
def _sprite(name: str, colour: str | None, flip: bool) -> np.ndarray:
    """Premultiplied RGBA (h, w, 4) float32 in [0, 1]."""
    data = np.fromfile(_SPRITES / f"{name}.png", np.uint8)
    bgra = np.asarray(cv2.imdecode(data, cv2.IMREAD_UNCHANGED))
    rgb, alpha = bgra[..., 2::-1], bgra[..., 3:].astype(np.float32) / 255
    if colour:
        hue, gamma = COLOURS[colour]
        hsv = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2HSV).astype(np.float32)
        hsv[..., 0] = hue
        hsv[..., 1] = np.clip(hsv[..., 1] * 0.4 + 150, 0, 255)
        hsv[..., 2] = 255 * (hsv[..., 2] / 255) ** gamma * 0.94
        rgb = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)
    out = np.concatenate([rgb.astype(np.float32) / 255 * alpha, alpha], -1)
    return np.ascontiguousarray(out[:, ::-1] if flip else out)


def _noise(rng: np.random.Generator, rows: int, cols: int, size: int) -> np.ndarray:
    """Smooth noise (size, 2·size) in [0, 1] from a lattice of rows × cols."""
    lattice = rng.random((rows, cols), np.float32)
    return np.asarray(cv2.resize(lattice, (2 * size, size), interpolation=cv2.INTER_CUBIC)).clip(0, 1)


def _ground(place: str, seed: int, size: int) -> np.ndarray:
    """The background (size, 2·size, 3) float32 in [0, 1]; twice as wide as a frame, so that it can pan."""
    rng = np.random.default_rng(seed)
    soft = _noise(rng, 5, 9, size)[..., None]
    yy, xx = np.mgrid[0:size, 0 : 2 * size].astype(np.float32) / size
    light = rng.uniform(0.92, 1.08)

    def mix(dark: tuple[float, ...], bright: tuple[float, ...], t: np.ndarray) -> np.ndarray:
        return np.array(dark, np.float32) * (1 - t) + np.array(bright, np.float32) * t

    if place == "grass":
        t = 0.55 * soft + 0.45 * _noise(rng, 8, 40, size)[..., None]
        out = mix((0.20, 0.47, 0.14), (0.50, 0.74, 0.30), t)
    elif place == "snow":
        out = mix((0.80, 0.86, 0.94), (0.98, 0.99, 1.0), soft)
    elif place == "sand":
        wave = 0.5 + 0.5 * np.sin(2 * np.pi * (yy * 7 + 0.5 * soft[..., 0]))
        out = mix((0.80, 0.66, 0.42), (0.93, 0.83, 0.60), 0.6 * soft + 0.4 * wave[..., None])
    elif place == "water":
        wave = 0.5 + 0.5 * np.sin(2 * np.pi * (yy * 5 + 0.9 * soft[..., 0] + 0.3 * xx))
        out = mix((0.08, 0.36, 0.66), (0.36, 0.68, 0.90), 0.4 * soft + 0.6 * wave[..., None])
    elif place == "road":
        out = mix((0.33, 0.33, 0.35), (0.45, 0.45, 0.47), soft)
        dash = (np.abs(yy - 0.86) < 0.035) & ((xx * 3 + rng.random()) % 1 < 0.55)
        out = np.where(dash[..., None], np.array((0.92, 0.88, 0.62), np.float32), out)
        out = np.where((yy < 0.2)[..., None], np.array((0.62, 0.60, 0.57), np.float32), out)
    elif place == "leaves":
        t = _noise(rng, 10, 20, size)[..., None]
        out = mix((0.50, 0.20, 0.05), (0.93, 0.58, 0.14), 0.75 * t + 0.25 * soft)
    elif place == "flowers":
        out = mix((0.24, 0.50, 0.20), (0.40, 0.64, 0.30), soft)
        kinds = np.array(((0.98, 0.75, 0.86), (1.0, 1.0, 0.96), (0.93, 0.45, 0.70)), np.float32)
        for _ in range(40):
            cx, cy = rng.uniform(0, 2), rng.uniform(0, 1)
            petal = np.clip(1.6 - np.hypot(xx - cx, yy - cy) / 0.028, 0, 1)[..., None]
            out = out * (1 - petal) + kinds[rng.integers(3)] * petal
    else:  # night
        out = mix((0.03, 0.04, 0.13), (0.10, 0.12, 0.28), 0.5 * soft + 0.5 * yy[..., None])
        for _ in range(34):
            cx, cy = rng.uniform(0, 2), rng.uniform(0, 1)
            star = np.clip(1.4 - np.hypot(xx - cx, yy - cy) / 0.018, 0, 1)[..., None]
            out = out * (1 - star) + np.array((0.95, 0.93, 0.75), np.float32) * star
    return np.clip(out * light, 0, 1).astype(np.float32)


def _stylise(rgb: np.ndarray, style: str) -> np.ndarray:
    """One uint8 frame in a style; the filter's reach grows with the frame."""
    size = rgb.shape[0]
    if style == "pixel":
        small = cv2.resize(rgb, (size // 4, size // 4), interpolation=cv2.INTER_AREA)
        small = (np.round(small.astype(np.float32) / 51) * 51).astype(np.uint8)
        return cv2.resize(small, (size, size), interpolation=cv2.INTER_NEAREST)
    if style == "sketch":
        gray = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32)
        soft = cv2.GaussianBlur(255 - gray, (0, 0), size / 40)
        dodge = np.clip(gray * 255 / np.maximum(255 - soft, 24), 0, 255)
        tone = 255 * (dodge / 255) ** 3 * 0.75 + (0.25 * gray + 0.25 * 128) * 0.5 + 20
        return np.repeat(np.clip(tone, 0, 255).astype(np.uint8)[..., None], 3, -1)
    soft = cv2.bilateralFilter(rgb, 0, 60, size / 24).astype(np.float32) / 255
    gray = cv2.cvtColor(soft, cv2.COLOR_RGB2GRAY)
    edge = np.hypot(cv2.Sobel(gray, cv2.CV_32F, 1, 0), cv2.Sobel(gray, cv2.CV_32F, 0, 1))
    wash = 0.5 + 0.5 * soft - 0.28 * np.clip(edge, 0, 0.8)[..., None]
    return (np.clip(wash * np.array((1.0, 0.985, 0.93), np.float32), 0, 1) * 255).astype(np.uint8)


def motion(scene: Scene, size: int, *, frames: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """By frame, in pixels: the sprite's centre (f, 2) as (x, y), and how far right the background stands (f,)."""
    s = np.arange(frames) / max(frames - 1, 1)
    x = scene.x + scene.dx * (s - 0.5)
    y = scene.y + scene.bob * np.sin(2 * np.pi * (s + scene.phase))
    return np.stack([x, y], 1) * size, -(0.5 + scene.pan * (s - 0.5)) * size


def draw(scenes: Sequence[Scene], size: int, *, frames: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """The objects of some scenes in the place and the style of the first, each in front of those before it: frames
    (f, h, w, 3) uint8 at `size` × `size` pixels, and what is seen of each object, (n, f, h, w) bool."""
    first = scenes[0]
    layers = [_layers(scene, size, frames) for scene in scenes]
    video = np.empty((frames, size, size, 3), np.uint8)
    masks = np.zeros((len(scenes), frames, size, size), bool)
    for i, frame in enumerate(empty(first, size, frames=frames)):
        for n, layer in enumerate(layers):
            rgba = next(layer)
            frame = rgba[..., :3] + frame * (1 - rgba[..., 3:])
            masks[:n, i] &= rgba[..., 3] <= 0.5
            masks[n, i] = rgba[..., 3] > 0.5
        video[i] = _bytes(frame)
        if first.style:
            video[i] = _stylise(video[i], first.style)
    return video, masks


def empty(scene: Scene, size: int, *, frames: int = 8) -> Iterator[np.ndarray]:
    """A scene's place alone on each frame, (size, size, 3) float32 in [0, 1], without a style."""
    ground = _ground(scene.place, scene.ground, size)
    for pan in motion(scene, size, frames=frames)[1]:
        shift = np.array([[1, 0, pan], [0, 1, 0]], np.float32)
        yield cv2.warpAffine(ground, shift, (size, size), flags=cv2.INTER_LINEAR)


def _bytes(frame: np.ndarray) -> np.ndarray:
    return np.clip(frame * 255 + 0.5, 0, 255).astype(np.uint8)


def _layers(scene: Scene, size: int, frames: int) -> Iterator[np.ndarray]:
    """A scene's sprite on each frame, premultiplied RGBA (size, size, 4) in [0, 1]."""
    sprite = _sprite(scene.object, scene.colour, scene.dx > 0)
    k = scene.scale * size / max(sprite.shape[:2])
    small = cv2.resize(sprite, None, fx=k, fy=k, interpolation=cv2.INTER_AREA)
    h, w = small.shape[:2]
    for x, y in motion(scene, size, frames=frames)[0]:
        place = np.array([[1, 0, x - w / 2], [0, 1, y - h / 2]], np.float32)
        yield cv2.warpAffine(small, place, (size, size), flags=cv2.INTER_LINEAR)


def render(scene: Scene, size: int, *, frames: int = 8) -> Rendered:
    """Frames, object masks and caption of a scene at `size` × `size` pixels."""
    video, masks = draw([scene], size, frames=frames)
    return Rendered(video, masks[0], caption(scene))


def render_seed(seed: int, size: int, frames: int) -> Rendered:
    """The clip of a seed, drawn on one thread: a job for a pool of processes, which need no torch."""
    cv2.setNumThreads(1)
    return render(sample_scene(seed), size, frames=frames)
