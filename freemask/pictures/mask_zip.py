"""Masks as a zip of PNGs, one a frame: as an edit leaves them, and as people bring their own."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ..clips.strides import MOST_FRAMES
from ..errors import SettingError

__all__ = ["MASK_COUNT", "MASK_SIDE", "read_mask_zip", "save_mask_zip"]

MASK_SIDE = 2048  # pixels of a side of a mask from outside
MASK_COUNT = MOST_FRAMES


def save_mask_zip(path: Path, masks: NDArray[np.bool_]) -> None:
    """Write masks (f, h, w) as numbered PNGs, 00000.png and so on, 255 where True, in one zip."""
    with zipfile.ZipFile(path, "w") as packed:
        for i, mask in enumerate(masks):
            picture = cv2.imencode(".png", mask.astype(np.uint8) * 255)[1]
            packed.writestr(zipfile.ZipInfo(f"{i:05d}.png"), picture.tobytes())


def read_mask_zip(path: Path, *, frames: int | None) -> NDArray[np.bool_]:
    """Masks (f, h, w) bool from a zip of PNGs in the order of their names' numbers: one for each frame, or one for all.

    `frames` None takes as many as there are. True is what is brighter than half of the brightest value, in 8
    bits or 16; what is transparent counts as black. Raises SettingError naming what is wrong.
    """
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
            pictures = [_read_mask(packed.getinfo(name), packed, path.name) for name in names]
    except SettingError:
        raise
    except Exception as error:  # zipfile raises many kinds for a damaged or encrypted file
        raise SettingError(
            f"{path.name} cannot be read as a zip of PNG masks: make it anew, without a password."
        ) from error
    if len({picture.shape for picture in pictures}) > 1:
        raise SettingError(f"The masks in {path.name} differ in size: save them all in one.")
    brightest = max(picture.max() for picture in pictures)
    masks = np.stack([picture > brightest / 2 for picture in pictures])
    return np.broadcast_to(masks, (count, *masks.shape[1:]))


def _read_mask(entry: zipfile.ZipInfo, packed: zipfile.ZipFile, where: str) -> NDArray[np.uint8 | np.uint16]:
    """One PNG (h, w) of a zip, in grey; its header says how large it is before anything is unpacked to that size."""
    large = f"{entry.filename} in {where} is larger than {MASK_SIDE} x {MASK_SIDE}: save the masks smaller."
    if entry.file_size > MASK_SIDE**2:
        raise SettingError(large)
    data = packed.read(entry)
    if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 24:
        raise SettingError(f"{entry.filename} in {where} is no PNG picture: save it anew.")
    if max(int.from_bytes(data[16:20]), int.from_bytes(data[20:24])) > MASK_SIDE:
        raise SettingError(large)
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if picture is None:
        raise SettingError(f"{entry.filename} in {where} is no PNG picture: save it anew.")
    if picture.ndim == 2:
        return picture
    grey = cv2.cvtColor(picture[..., :3], cv2.COLOR_BGR2GRAY)
    if picture.shape[2] == 4:
        grey = (grey * (picture[..., 3] / np.float32(np.iinfo(grey.dtype).max))).astype(grey.dtype)
    return grey
