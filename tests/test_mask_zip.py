"""Zips of masks as people save them, and as nobody should."""

import zipfile
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from freemask.errors import SettingError
from freemask.pictures.mask_zip import MASK_COUNT, read_mask_zip

MASK = np.zeros((24, 24), np.uint8)
MASK[4:18, 3:13] = 1


def packed(path: Path, *pictures: bytes, name: str = "{}.png") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for i, data in enumerate(pictures):
            made.writestr(name.format(i), data)
    return path


def png(picture: np.ndarray) -> bytes:
    return cv2.imencode(".png", picture)[1].tobytes()


@pytest.mark.parametrize("top", [1, 255, 256, 65535])
def test_sixteen_bits_are_read_as_such(tmp_path: Path, top: int) -> None:
    path = packed(tmp_path / "a.zip", png(MASK.astype(np.uint16) * top))
    assert (read_mask_zip(path, frames=1)[0] == (MASK > 0)).all()


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_what_is_transparent_is_no_mask(tmp_path: Path, mode: str) -> None:
    white = np.full_like(MASK, 255)
    file = BytesIO()
    Image.fromarray(np.dstack([*[white] * (len(mode) - 1), MASK * 255]), mode).save(file, "PNG")
    path = packed(tmp_path / "a.zip", file.getvalue())
    assert (read_mask_zip(path, frames=1)[0] == (MASK > 0)).all()


def test_numbers_that_are_no_decimals_stand_in_names(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.zip", png(MASK * 255), name="mask².{}.png")
    assert (read_mask_zip(path, frames=1)[0] == (MASK > 0)).all()


def test_more_masks_than_an_edit_has_frames_are_not_unpacked(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.zip", *[b"never read"] * (MASK_COUNT + 1))
    with pytest.raises(SettingError, match=f"{MASK_COUNT + 1} PNG masks: give {MASK_COUNT} at most"):
        read_mask_zip(path, frames=None)
