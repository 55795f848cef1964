"""Pictures: the right shape, the right map in the right cell, and errors where there is nothing to show."""

from __future__ import annotations

import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from freemask.errors import MaskError, SettingError
from freemask.families.sites import short_site
from freemask.pictures.mask_zip import read_mask_zip, save_mask_zip
from freemask.pictures.sheets import (
    SCREEN,
    Arrays,
    curves_figure,
    mask_sheet,
    read_words,
    save_codebook_figure,
    save_pdf,
    save_png,
)

SITES = ["down_blocks.0.attentions.0.transformer_blocks.0.attn2", "up_blocks.1.attentions.1.transformer_blocks.0.attn2"]


def stored(*, site: str = SITES[1], timestep: int = 201, grid: tuple[int, int] = (9, 5)) -> Arrays:
    """Two sites on two grids, three timesteps, two words, two frames; a word's map is bright in its own half."""
    h, w = grid
    fine = np.zeros((3, 1, 2, 2, h, w), np.uint8)
    fine[:, :, 0, :, : h // 2], fine[:, :, 1, :, h // 2 :] = 255, 255
    coarse = np.full((3, 1, 2, 2, (h + 1) // 2, (w + 1) // 2), 255, np.uint8)
    return dict(
        **{f"maps_{h}x{w}": fine, f"maps_{(h + 1) // 2}x{(w + 1) // 2}": coarse},
        **{f"scales_{h}x{w}": np.full((3, 1, 2, 2), 1e-4, np.float32)},
        **{f"scales_{(h + 1) // 2}x{(w + 1) // 2}": np.zeros((3, 1, 2, 2), np.float32)},
        **{f"sites_{h}x{w}": np.array(SITES[:1]), f"sites_{(h + 1) // 2}x{(w + 1) // 2}": np.array(SITES[1:])},
        timesteps=np.array([1, 201, 401]),
        tokens=np.array(["red", "Car"]),
        edit_words=np.array([1]),
        sites=np.array(SITES),
        mask=np.arange(2 * h * w).reshape(2, h, w) % 3 == 0,
        chosen=np.array([[name == site and timestep in (-1, t) for name in SITES] for t in (1, 201, 401)]),
    )


def outlined(sheet: np.ndarray) -> tuple[int, int]:
    """Width and height of the box in the colour of chosen cells (labels in it stand left of and above the cells)."""
    mask = (sheet == SCREEN.rgb("chosen")).all(-1)
    long = np.flatnonzero(mask.sum(1) > 30)
    across = np.flatnonzero(mask[long[0]])
    return int(np.ptp(across)) + 1, int(np.ptp(long)) + 1


def test_index() -> None:
    index = read_words(stored())
    assert (index.tokens, index.sites, index.timesteps, index.frames) == (
        ("red", "Car"),
        tuple(SITES),
        (1, 201, 401),
        2,
    )
    assert index.chosen.tolist() == [[False, False], [False, True], [False, False]]
    assert read_words(stored(timestep=-1)).chosen[:, 1].all()


def test_sheet_is_rgb_and_differs_by_word() -> None:
    red, car, both = (mask_sheet(stored(), word, frame=0) for word in ("red", "car", "red car"))
    assert red.dtype == np.uint8 and red.ndim == 3 and red.shape[2] == 3
    cells = np.s_[100:-40]
    assert (red[cells] != car[cells]).any()
    assert (both[cells] != car[cells]).any()


def test_weak_maps_show_as_strongly_as_strong_ones() -> None:
    sheet = mask_sheet(stored(), "red", frame=1)
    brightest = (253, 231, 36)  # the end of viridis
    assert (np.abs(sheet.astype(int) - brightest).max(-1) < 4).any()


def test_the_outline_is_a_cell_or_the_row() -> None:
    cell = outlined(mask_sheet(stored(), "car", frame=0))
    row = outlined(mask_sheet(stored(timestep=-1), "car", frame=0))
    assert row[0] > 2.9 * cell[0]
    assert row[1] == cell[1]
    none = mask_sheet(stored(site=""), "car", frame=0)
    assert not (none == SCREEN.rgb("chosen")).all(-1).any()


def test_tall_and_wide_grids_keep_their_sides() -> None:
    tall = outlined(mask_sheet(stored(grid=(9, 5)), "car", frame=0))
    wide = outlined(mask_sheet(stored(grid=(5, 9)), "car", frame=0))
    assert tall[0] < tall[1] and wide[0] > wide[1]


def test_a_word_that_stands_twice_has_a_sheet_for_each() -> None:
    once, twice = stored(), {**stored(), "tokens": np.array(["car", "Car"])}

    def cells(maps: Arrays, word: str) -> np.ndarray:
        return mask_sheet(maps, word, frame=0)[62:]  # below the title, which names the word

    assert np.array_equal(cells(twice, "car"), cells(once, "red"))
    assert np.array_equal(cells(twice, "car#2"), cells(once, "car"))
    assert np.array_equal(cells(twice, "car#2"), cells(twice, "CAR #2"))
    assert not np.array_equal(cells(twice, "car"), cells(twice, "car#2"))
    with pytest.raises(MaskError, match="choose one of car, Car#2"):
        mask_sheet(twice, "car#3", frame=0)


@pytest.mark.parametrize(("word", "frame"), [("boat", 0), ("", 0), ("car", 2), ("car", -1)])
def test_what_was_not_recorded_is_refused(word: str, frame: int) -> None:
    with pytest.raises(MaskError):
        mask_sheet(stored(), word, frame=frame)


def test_curves() -> None:
    book = {"sites": SITES, "timesteps": [1, 201, 401], "site": SITES[1], "timestep": 201}
    picture = curves_figure(book | {"lmmc": [9.0, 2.0], "tmmc": [3.0, 2.5, 8.0]})
    assert picture.dtype == np.uint8 and picture.shape[2] == 3 and picture.shape[1] > picture.shape[0]
    assert (np.abs(picture.astype(int) - SCREEN.rgb("chosen")).max(-1) < 8).any()


def test_a_codebook_is_a_picture_and_a_document(tmp_path: Path) -> None:
    book = {"sites": SITES, "timesteps": [1, 201, 401], "site": SITES[1], "timestep": 201}
    maps = {site: np.random.default_rng(0).random((3, 4 + i, 4 + i), np.float32) for i, site in enumerate(SITES)}
    frame = np.full((16, 16, 3), 90, np.uint8)
    paths = [tmp_path / "book.png", tmp_path / "book.pdf"]
    save_codebook_figure(paths, book | {"lmmc": [9.0, 2.0], "tmmc": [3.0, 2.5, 8.0]}, frame, maps)
    picture = cv2.imread(str(paths[0]))
    assert picture is not None and min(picture.shape[:2]) > 500
    assert paths[1].read_bytes().startswith(b"%PDF")


def test_png_keeps_the_colours(tmp_path: Path) -> None:
    picture = np.zeros((2, 3, 3), np.uint8)
    picture[..., 0] = 200
    save_png(tmp_path / "red.png", picture)
    assert (cv2.imread(str(tmp_path / "red.png"))[..., ::-1] == picture).all()


def test_site_names_for_people() -> None:
    assert short_site(SITES[1]) == "up 1.1"
    assert short_site("mid_block.attentions.0.transformer_blocks.0.attn2") == "mid"
    assert short_site("elsewhere") == "elsewhere"


def test_masks_travel_as_numbered_pictures(tmp_path: Path) -> None:
    masks = np.zeros((2, 6, 9), bool)
    masks[0, 1:3, 2:5] = True
    save_mask_zip(tmp_path / "masks.zip", masks)
    with zipfile.ZipFile(tmp_path / "masks.zip") as packed:
        assert packed.namelist() == ["00000.png", "00001.png"]
        read = [
            cv2.imdecode(np.frombuffer(packed.read(name), np.uint8), cv2.IMREAD_UNCHANGED) for name in packed.namelist()
        ]
    assert np.array_equal(np.stack(read), masks * np.uint8(255))


def test_a_sheet_is_a_page(tmp_path: Path) -> None:
    save_pdf(tmp_path / "sheet.pdf", np.zeros((72, 144, 3), np.uint8))
    written = (tmp_path / "sheet.pdf").read_bytes()
    assert written.startswith(b"%PDF") and b"72 36" in written


def packed(path: Path, *pictures: np.ndarray, names: tuple[str, ...] = ()) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for i, picture in enumerate(pictures):
            file.writestr(names[i] if names else f"{i}.png", cv2.imencode(".png", picture)[1].tobytes())
    return path


def test_masks_are_read_as_they_were_written(tmp_path: Path) -> None:
    masks = np.random.default_rng(0).random((3, 9, 5)) > 0.5
    save_mask_zip(tmp_path / "masks.zip", masks)
    assert np.array_equal(read_mask_zip(tmp_path / "masks.zip", frames=3), masks)
    one = packed(tmp_path / "one.zip", masks[0].astype(np.uint8))  # 0 and 1, as some tools write them
    assert np.array_equal(read_mask_zip(one, frames=2), np.stack([masks[0]] * 2))
    turned = packed(tmp_path / "turned.zip", *(m.astype(np.uint8) * 255 for m in masks[:2]), names=("b.png", "a.PNG"))
    assert np.array_equal(read_mask_zip(turned, frames=2), masks[1::-1])
    pictures = [np.full((4, 4), i * 20, np.uint8) for i in range(12)]
    unpadded = packed(tmp_path / "eleven.zip", *pictures, names=tuple(f"mask_{i}.png" for i in range(12)))
    assert read_mask_zip(unpadded, frames=12)[:, 0, 0].tolist() == [i * 20 > 110 for i in range(12)]


def test_masks_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    grey = np.full((4, 4), 255, np.uint8)
    (tmp_path / "no.zip").write_text("no zip")
    with zipfile.ZipFile(tmp_path / "text.zip", "w") as file:
        file.writestr("0.png", "no picture")
    with zipfile.ZipFile(tmp_path / "locked.zip", "w") as file:
        file.writestr("0.png", grey.tobytes())
    locked = bytearray((tmp_path / "locked.zip").read_bytes())
    for at in (locked.index(b"PK\x03\x04") + 6, locked.index(b"PK\x01\x02") + 8):
        locked[at] |= 1  # the flag of an encrypted entry
    (tmp_path / "locked.zip").write_bytes(locked)
    huge = cv2.imencode(".png", np.zeros((1, 4000), np.uint8))[1].tobytes()
    with zipfile.ZipFile(tmp_path / "huge.zip", "w") as file:
        file.writestr("0.png", huge)
    for path, message in (
        (tmp_path / "no.zip", "cannot be read"),
        (tmp_path / "missing.zip", "cannot be read"),
        (tmp_path / "text.zip", "no PNG picture"),
        (tmp_path / "locked.zip", "without a password"),
        (tmp_path / "huge.zip", "larger than 2048 x 2048"),
        (packed(tmp_path / "few.zip", grey, grey), "holds 2 PNG masks, the edit has 3 frames"),
        (packed(tmp_path / "sizes.zip", grey, grey, grey[:3]), "differ in size"),
    ):
        with pytest.raises(SettingError, match=message):
            read_mask_zip(path, frames=3)
