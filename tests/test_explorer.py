"""What the browser reads of the word maps: the files tell the same as the arrays they came from."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from test_gallery import SITES, stored

from freemask.errors import MaskError, SettingError
from freemask.pictures.sheets import mask_sheet
from freemask.pictures.word_maps import pack_bits, read_index, save_word_files, unpack_bits, word_file, word_sheet
from freemask.settings import examples
from freemask.words.positions import numbered


def test_a_words_file_holds_its_maps_site_after_site(tmp_path: Path) -> None:
    arrays = stored()
    save_word_files(tmp_path, arrays)
    index = read_index(tmp_path)
    assert (index["tokens"], index["edit_words"]) == (["red", "Car"], [1])
    assert index["timesteps"] == [1, 201, 401]
    assert [site["name"] for site in index["sites"]] == SITES
    for k in range(2):
        data = gzip.decompress(word_file(tmp_path, k).read_bytes())
        at = 0
        for site in index["sites"]:
            h, w = site["h"], site["w"]
            values = np.frombuffer(data, np.uint8, 3 * 2 * h * w, at).reshape(3, 2, h, w)
            assert np.array_equal(values, arrays[f"maps_{h}x{w}"][:, 0, k])
            at += values.size
        scales = np.frombuffer(data, "<f4", offset=at).reshape(2, 3, 2)
        assert np.allclose(scales[0], 1e-4) and not scales[1].any()
    mask = index["mask"]
    assert np.array_equal(unpack_bits(mask["data"], (mask["h"], mask["w"])), arrays["mask"])
    assert index["chosen"] == arrays["chosen"].tolist()


def test_the_sheet_of_a_words_files_is_that_of_the_arrays(tmp_path: Path) -> None:
    save_word_files(tmp_path, stored())
    for word, frame in (("red", 0), ("car", 1), ("red car", 1)):
        assert np.array_equal(word_sheet(tmp_path, word, frame=frame), mask_sheet(stored(), word, frame=frame))
    with pytest.raises(MaskError, match="no map of 'bus'"):
        word_sheet(tmp_path, "bus", frame=0)


def test_every_example_opens_its_sheet() -> None:
    shipped = examples()
    assert shipped
    for example in shipped:
        index = read_index(example.made)
        for name in numbered(index["tokens"]):
            assert word_sheet(example.made, name, frame=index["frames"] - 1).ndim == 3


def test_bits_come_back_or_are_refused() -> None:
    mask = np.random.default_rng(1).random((3, 5, 7)) > 0.5
    assert np.array_equal(unpack_bits(pack_bits(mask), (5, 7)), mask)
    for data, size in ((pack_bits(mask), (5, 9)), ("not base64!", (5, 7)), ("", (1, 1))):
        with pytest.raises(SettingError, match="paint it again"):
            unpack_bits(data, size)
