"""Zips of masks as people save them, and as nobody should."""

import zipfile
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from freemask.errors import SettingError
from freemask.pictures.mask_zip import MASK_COUNT, read_label_zip, read_mask_zip, save_mask_zip

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


LABELS = MASK + 2 * np.roll(MASK, 11, axis=1)


def test_labels_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "labels.zip"
    save_mask_zip(path, np.stack([LABELS, np.roll(LABELS, 2, axis=0)]))
    read = read_label_zip(path, frames=2, count=2)
    assert read.dtype == np.uint8 and (read[0] == LABELS).all() and (read[1] == np.roll(LABELS, 2, axis=0)).all()
    assert (read_mask_zip(path, frames=2)[0] == (LABELS > 0)).all()  # as the mask of one change: of any object
    one = packed(tmp_path / "one.zip", png(LABELS.astype(np.uint16)))
    assert (read_label_zip(one, frames=3, count=2) == LABELS).all() and len(read_label_zip(one, frames=3, count=2)) == 3


@pytest.mark.parametrize("colours", [[0, 0, 0, 128, 0, 0, 0, 128, 0], [255, 255, 255, 0, 0, 0, 0, 0, 0]])
def test_of_a_palette_the_numbers_count(tmp_path: Path, colours: list[int]) -> None:
    picture = Image.fromarray(LABELS, "P")
    picture.putpalette(colours)
    file = BytesIO()
    picture.save(file, "PNG")
    assert (read_label_zip(packed(tmp_path / "a.zip", file.getvalue()), frames=1, count=2)[0] == LABELS).all()


def test_a_mask_of_one_change_is_no_labels(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.zip", png(MASK * 255))
    with pytest.raises(SettingError, match="holds the value 255: in masks of 3 changes .* 1 to 3, or 0"):
        read_label_zip(path, frames=1, count=3)
