"""Pictures as clips, by Pillow: stills, turned as cameras tell, and animated WebP and PNG.

Not every ffmpeg decodes animated WebP, nor reads which way up a photo is. Transparent places come out white.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

from ..errors import ClipError

__all__ = ["Picture", "frame_lengths", "open_picture", "read_picture", "write_png"]

_FORMATS = ("PNG", "JPEG", "WEBP")
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap the sides
_SCAN, _SCANS = b"\xff\xda", 100  # what begins a pass over all of a JPEG, and how many there may be; encoders make ten
_QUICK, _USUAL = 0.01, 0.1  # seconds: browsers show a frame that asks for no more than the one for the other
_EARLY = 0.002  # seconds by which a frame counts as there, since lengths are rounded


@dataclass(frozen=True)
class Picture:
    """What a picture's header says: `width` and `height` in pixels as displayed, `format` in small letters, and
    how many `frames` it is said to have."""

    width: int
    height: int
    format: str
    frames: int

    @property
    def moves(self) -> bool:
        return self.frames > 1


def open_picture(path: Path) -> Picture | None:
    """The header of a PNG, JPEG or WebP file; None for any other file.

    Raises ClipError for a picture larger than any that Pillow opens, and for a JPEG that would be decoded without end.
    """
    try:
        with Image.open(path, formats=_FORMATS) as picture:
            width, height = picture.size
            if picture.format != "PNG" and picture.getexif().get(0x0112) in _TURNED:
                width, height = height, width
            photo = picture.format in ("JPEG", "MPO")  # of a photo, further pictures are no frames
            name = "jpeg" if photo else str(picture.format).lower()
            if photo and path.read_bytes().count(_SCAN) > _SCANS:
                raise ClipError(f'"{path.name}" is a JPEG of over {_SCANS} scans: save it anew.')
            return Picture(width, height, name, 1 if photo else getattr(picture, "n_frames", 1))
    except ClipError:
        raise
    except Image.DecompressionBombError as error:
        raise ClipError(f'"{path.name}" has far too many pixels: export it smaller.') from error
    except Exception:  # Pillow raises many kinds for what is no picture, or a broken one
        return None


def frame_lengths(path: Path, most: float) -> tuple[float, ...]:
    """How long each frame is shown, in seconds, a still for one usual frame; no further than to beyond `most` seconds.
    Raises ClipError for a broken file."""
    return _frame_lengths(path, path.stat().st_mtime, most)


@lru_cache(maxsize=32)
def _frame_lengths(path: Path, changed: float, most: float) -> tuple[float, ...]:
    lengths: list[float] = []
    end = 0.0
    for _, seconds in _frames(path):
        lengths.append(seconds)
        end += seconds
        if end > most:
            break
    return tuple(lengths)


def read_picture(path: Path, *, at: Sequence[float], covered: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Frames (f, h, w, 3) uint8 RGB on display at rising moments, in seconds: as many as are there.

    Resized to `covered` (w, h), then cropped about the centre to `size`. Raises ClipError for a broken file.
    """
    (w, h), wanted = size, list(at)
    found: list[np.ndarray] = []
    left, top = (covered[0] - w) // 2, (covered[1] - h) // 2
    end = 0.0
    for picture, seconds in _frames(path):
        end += seconds
        now = [moment for moment in wanted if moment + _EARLY < end]
        if now:
            upright = picture if picture.format == "PNG" else ImageOps.exif_transpose(picture)  # a PNG is not a photo
            shown = _opaque(upright).resize(covered, Image.Resampling.BICUBIC)
            found += [np.asarray(shown.crop((left, top, left + w, top + h)))] * len(now)
            wanted = wanted[len(now) :]
        if not wanted:
            break
    return np.stack(found) if found else np.empty((0, h, w, 3), np.uint8)


def write_png(path: Path, frame: np.ndarray, *, note: str) -> None:
    """Write a picture (h, w, 3) uint8 as PNG, `note` as its comment. Raises OSError where it cannot be written."""
    told = PngImagePlugin.PngInfo()
    told.add_text("Comment", note)
    Image.fromarray(frame).save(path, pnginfo=told)


def _frames(path: Path) -> Iterator[tuple[Image.Image, float]]:
    """The frames in turn, each with its length in seconds."""
    try:
        with Image.open(path, formats=_FORMATS) as picture:
            count = 1 if picture.format in ("JPEG", "MPO") else getattr(picture, "n_frames", 1)
            for index in range(count):
                picture.seek(index)
                picture.load()
                seconds = float(picture.info.get("duration", 0)) / 1000
                yield picture, seconds if seconds > _QUICK else _USUAL
    except Exception as error:  # Pillow raises many kinds for a broken file
        raise ClipError(f'"{path.name}" is cut off or damaged: download or export it again.') from error


def _opaque(picture: Image.Image) -> Image.Image:
    """The picture in RGB, white where it is transparent."""
    if picture.mode.startswith("I"):  # 16 bits, which Pillow would clip
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
