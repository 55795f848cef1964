"""Masks as a zip of PNGs, one a frame: as an edit leaves them, and as people bring their own.

Those of several changes are labels, as DAVIS has the masks of several objects: a pixel's value is the number of its
change, and 0 is none's.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..clips.strides import MOST_FRAMES
from ..errors import SettingError

__all__ = ["MASK_COUNT", "MASK_SIDE", "read_label_zip", "read_mask_zip", "save_mask_zip"]

Picture = NDArray[Any]
MASK_SIDE = 2048  # pixels of a side of a mask from outside
MASK_COUNT = MOST_FRAMES
FAINT = 8  # up to this brightest value, a picture's values are numbers of objects


def save_mask_zip(path: Path, masks: NDArray[np.bool_ | np.uint8]) -> None:
    """Write masks (f, h, w) as numbered PNGs, 00000.png and so on, in one zip: of bool 255 where True, labels as they
    are."""
    pictures = masks.astype(np.uint8) * 255 if masks.dtype == bool else masks
    with zipfile.ZipFile(path, "w") as packed:
        for i, one in enumerate(pictures):
            picture = cv2.imencode(".png", one)[1]
            packed.writestr(zipfile.ZipInfo(f"{i:05d}.png"), picture.tobytes())


def read_mask_zip(path: Path, *, frames: int | None) -> NDArray[np.bool_]:
    """Masks (f, h, w) bool from a zip of PNGs in the order of their names' numbers: one for each frame, or one for all.

    `frames` None takes as many as there are. True is what is brighter than half of the brightest value, in 8
    bits or 16, or any object where the values are labels; what is transparent counts as black. Raises SettingError
    naming what is wrong.
    """
    pictures = _read_pictures(path, frames, _grey)
    brightest = max(picture.max() for picture in pictures)
    least = brightest / 2 if brightest > FAINT else 0
    return _for_frames([picture > least for picture in pictures], frames)


def read_label_zip(path: Path, *, frames: int | None, count: int) -> NDArray[np.uint8]:
    """Labels (f, h, w) uint8 of `count` changes, 0 to `count`, from such a zip of grey PNGs, or of ones with a palette,
    whose numbers count and not their colours. Raises SettingError, for other values too."""
    pictures = _read_pictures(path, frames, _numbers)
    if (most := max(int(picture.max()) for picture in pictures)) > count:
        raise SettingError(
            f"{path.name} holds the value {most}: in masks of {count} change{'s' * (count > 1)} a pixel's value is its "
            f"change's number, 1 to {count}, or 0. Save it so, or leave changes out to edit under one mask."
        )
    return _for_frames([picture.astype(np.uint8) for picture in pictures], frames)


def _for_frames(masks: list[Picture], frames: int | None) -> Picture:
    return np.broadcast_to(np.stack(masks), (len(masks) if frames is None else frames, *masks[0].shape))


def _read_pictures(path: Path, frames: int | None, unpack: Callable[[bytes], Picture | None]) -> list[Picture]:
    """The PNGs of a zip, all of one size (h, w), one or as many as `frames`, each as `unpack` reads it."""
    try:
        with zipfile.ZipFile(path) as packed:
            names = [name for name in packed.namelist() if name.lower().endswith(".png") and "__MACOSX" not in name]
            names.sort(key=lambda name: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)])
            count = len(names) if frames is None else frames
            if not names or len(names) not in (1, count):
                counts = f"{len(names)} PNG masks, the edit has {count} frame{'s' * (count > 1)}"
                raise SettingError(f"{path.name} holds {counts}: give one for each frame, or a single one for all.")
            if count > MASK_COUNT:
                raise SettingError(f"{path.name} holds {count:,} PNG masks: give {MASK_COUNT} at most.")
            pictures = [_read_mask(packed.getinfo(name), packed, path.name, unpack) for name in names]
    except SettingError:
        raise
    except Exception as error:  # zipfile raises many kinds for a damaged or encrypted file
        raise SettingError(
            f"{path.name} cannot be read as a zip of PNG masks: make it anew, without a password."
        ) from error
    if len({picture.shape for picture in pictures}) > 1:
        raise SettingError(f"The masks in {path.name} differ in size: save them all in one.")
    return pictures


def _read_mask(
    entry: zipfile.ZipInfo, packed: zipfile.ZipFile, where: str, unpack: Callable[[bytes], Picture | None]
) -> Picture:
    """One PNG (h, w) of a zip; its header says how large it is before anything is unpacked to that size."""
    large = f"{entry.filename} in {where} is larger than {MASK_SIDE} x {MASK_SIDE}: save the masks smaller."
    if entry.file_size > MASK_SIDE**2:
        raise SettingError(large)
    data = packed.read(entry)
    if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 24:
        raise SettingError(f"{entry.filename} in {where} is no PNG picture: save it anew.")
    if max(int.from_bytes(data[16:20]), int.from_bytes(data[20:24])) > MASK_SIDE:
        raise SettingError(large)
    picture = unpack(data)
    if picture is None:
        raise SettingError(f"{entry.filename} in {where} is no PNG picture: save it anew.")
    return picture


def _numbers(png: bytes) -> Picture:
    """A PNG (h, w) by its pixels' numbers."""
    picture = Image.open(BytesIO(png))
    return np.array(picture if picture.mode in ("1", "L", "P", "I;16", "I") else picture.convert("L"))


def _grey(png: bytes) -> Picture | None:
    """A PNG (h, w) by its pixels' brightness; None where it is none."""
    picture: Picture | None = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    if picture is None or picture.ndim == 2:
        return picture
    grey = cv2.cvtColor(picture[..., :3], cv2.COLOR_BGR2GRAY)
    if picture.shape[2] == 4:
        grey = (grey * (picture[..., 3] / np.float32(np.iinfo(grey.dtype).max))).astype(grey.dtype)
    return grey
