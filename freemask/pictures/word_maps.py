"""The data of the attention explorer: every word's maps as one small file, and the index that says how to read them.

The page draws the layer × timestep matrix in the browser, so that a threshold or a frame answers at once and the
server computes nothing. Frames that share a latent frame share a map, which is kept once; `of_frames` in the index
says which each has. A word's file is gzip: uint8 values (t, f, h, w) of one site after another, then float32
little-endian scales (site, t, f); probability = value / 255 · scale. All 16 sites of zeroscope, 50 timesteps and 8
frames at 512² are 10 MiB. They are written as they are, since deflating takes a tenth off the maps of mini, and ten
times as long. The edited word's file is fetched first, the others after it.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..clips.ffmpeg import whole
from ..errors import MaskError, SettingError
from ..families.sites import short_site
from .sheets import SCREEN, Arrays, Ink, WordMaps, draw_sheet, find_tokens, map_grids, read_words, together

__all__ = [
    "concept_file",
    "pack_bits",
    "read_index",
    "read_maps",
    "read_word_files",
    "save_word",
    "save_word_file",
    "save_word_files",
    "unpack_bits",
    "word_file",
    "word_index",
    "word_sheet",
]


def word_file(folder: Path, index: int) -> Path:
    """Where the maps of the word at `index` are kept."""
    return folder / "words" / f"{index:02d}.gz"


def concept_file(folder: Path, concept: str) -> Path:
    """Where the maps of a concept are kept, which the source prompt lacks."""
    told = " ".join(concept.split()).casefold()
    return folder / "words" / f"concept-{hashlib.sha256(told.encode()).hexdigest()[:16]}.gz"


def save_word_file(path: Path, values: Sequence[NDArray[np.uint8]], scales: Sequence[NDArray[np.float32]]) -> None:
    """Writes a word's file from the values (t, f, h, w) and the scales (t, f) of each site; it appears whole or not."""
    parts = [*(np.ascontiguousarray(one).tobytes() for one in values), np.stack(scales).astype("<f4").tobytes()]
    with whole(path) as part:
        part.write_bytes(gzip.compress(b"".join(parts), compresslevel=0, mtime=0))


def save_word(path: Path, stored: Arrays, k: int) -> None:
    """Writes the file of the word at `k` of the arrays of a `words.npz`."""
    found: dict[str, tuple[NDArray[np.uint8], NDArray[np.float32]]] = {}
    for grid in map_grids(stored):
        maps, scales = stored[f"maps_{grid}"], stored[f"scales_{grid}"]
        found |= {str(site): (maps[:, row, k], scales[:, row, k]) for row, site in enumerate(stored[f"sites_{grid}"])}
    each = [found[str(site)] for site in stored["sites"]]
    save_word_file(path, [maps for maps, _ in each], [scale for _, scale in each])


def save_word_files(folder: Path, stored: Arrays) -> None:
    """Writes a file for each word of the arrays of a `words.npz` into `folder/words`, and `index.json`: sites with
    their grids, timesteps, frames, words, the chosen cells and the mask in use."""
    index = read_words(stored)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda k: save_word(word_file(folder, k), stored, k), range(len(index.tokens))))
    grids = {str(site): grid for grid in map_grids(stored) for site in stored[f"sites_{grid}"]}
    h, w = index.mask.shape[1:]
    about = {
        "frames": index.frames,
        **({} if index.of_frames == tuple(range(index.frames)) else {"of_frames": index.of_frames}),
        "tokens": index.tokens,
        "edit_words": index.edit_words,
        "sites": [
            {"name": site, "short": short_site(site)} | dict(zip("hw", map(int, grids[site].split("x")), strict=True))
            for site in index.sites
        ],
        "timesteps": index.timesteps,
        "chosen": index.chosen.tolist(),
        "mask": {"h": h, "w": w, "data": pack_bits(index.mask)},
    }
    (folder / "words" / "index.json").write_text(json.dumps(about))


def read_index(folder: Path) -> dict[str, Any]:
    """The index that `save_word_files` wrote."""
    about: dict[str, Any] = json.loads((folder / "words" / "index.json").read_text())
    return about


def read_word_files(folder: Path) -> Arrays:
    """The arrays that `save_word_files` was given. Raises MaskError where they cannot be read."""
    about = read_index(folder)
    sites, mask = about["sites"], about["mask"]
    each = [_read_word(word_file(folder, k), about) for k in range(len(about["tokens"]))]
    stored: dict[str, NDArray[Any]] = {
        "timesteps": np.array(about["timesteps"]),
        "sites": np.array([site["name"] for site in sites]),
        "tokens": np.array(about["tokens"]),
        "edit_words": np.array(about["edit_words"], np.int64),
        "chosen": np.array(about["chosen"], bool),
        "mask": unpack_bits(mask["data"], (mask["h"], mask["w"])),
        "of_frames": np.array(_of_frames(about)),
    }
    for h, w in dict.fromkeys((site["h"], site["w"]) for site in sites):
        names = [site["name"] for site in sites if (site["h"], site["w"]) == (h, w)]
        stored[f"sites_{h}x{w}"] = np.array(names)
        for what, at in (("maps", 0), ("scales", 1)):
            stored[f"{what}_{h}x{w}"] = np.stack([np.stack([one[name][at] for one in each], 1) for name in names], 1)
    return stored


def read_maps(folder: Path, word: str, concepts: Path | None = None) -> dict[tuple[int, str], NDArray[np.float32]]:
    """The soft maps (f, h, w) of a word by (t, site): one of the prompts', of several each divided by its maximum on
    the cell and the larger taken, or a concept that was looked for, in the folder `concepts` where it is not the same.
    Raises MaskError for a word that has none."""
    about = read_index(folder)
    if (file := concept_file(concepts or folder, word)).exists():
        each = [_read_word(file, about)]
    else:
        each = [_read_word(word_file(folder, k), about) for k in find_tokens(about["tokens"], word)]
    of_frames, found = list(_of_frames(about)), {}
    for site in (site["name"] for site in about["sites"]):
        soft = np.stack([one[site][0] / np.float32(255) * one[site][1][..., None, None] for one in each])
        if len(each) > 1:
            soft = soft / np.maximum(soft.max((2, 3, 4), keepdims=True), np.finfo(np.float32).tiny)
        for t, maps in zip(about["timesteps"], soft.max(0)[:, of_frames], strict=True):
            found[t, site] = maps
    return found


def word_sheet(folder: Path, word: str, *, frame: int, ink: Ink = SCREEN) -> NDArray[np.uint8]:
    """`sheets.mask_sheet` from the words' files, which an example ships too. Raises MaskError as it does."""
    about = read_index(folder)
    index = word_index(about)

    def read(tokens: Sequence[int]) -> dict[str, NDArray[np.float32]]:
        at = index.of_frames[frame]
        each = [
            {name: values[:, at] / 255 * scales[:, at, None, None] for name, (values, scales) in one.items()}
            for one in (_read_word(word_file(folder, k), about) for k in tokens)
        ]
        return {site: together(np.stack([maps[site] for maps in each], 1)) for site in index.sites}

    return draw_sheet(index, read, word, frame=frame, ink=ink)


def word_index(about: dict[str, Any]) -> WordMaps:
    """The index that was read, as the sheets take it."""
    mask = about["mask"]
    return WordMaps(
        tokens=tuple(about["tokens"]),
        edit_words=tuple(about["edit_words"]),
        sites=tuple(site["name"] for site in about["sites"]),
        timesteps=tuple(about["timesteps"]),
        of_frames=_of_frames(about),
        chosen=np.array(about["chosen"], bool),
        mask=unpack_bits(mask["data"], (mask["h"], mask["w"])),
    )


def _of_frames(about: dict[str, Any]) -> tuple[int, ...]:
    """Which of a cell's maps each frame has: its own, but where a latent frame stands for several."""
    return tuple(about.get("of_frames", range(about["frames"])))


def _read_word(path: Path, about: dict[str, Any]) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.float32]]]:
    """Values (t, f, h, w) and scales (t, f) of a word's file, by site."""
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise MaskError("The attention maps of this edit cannot be read: run the edit again.") from error
    count = len(about["timesteps"]), _of_frames(about)[-1] + 1
    found, at = {}, 0
    for site in about["sites"]:
        shape = (*count, site["h"], site["w"])
        values = np.frombuffer(data, np.uint8, int(np.prod(shape)), at).reshape(shape)
        found[site["name"]], at = values, at + values.size
    scales = np.frombuffer(data, "<f4", offset=at).reshape(len(found), *count)
    return {name: (values, scale) for (name, values), scale in zip(found.items(), scales, strict=True)}


def pack_bits(mask: NDArray[np.bool_]) -> str:
    """A bool array as base64 of its bits, row-major, the most significant bit first."""
    return base64.b64encode(np.packbits(mask).tobytes()).decode()


def unpack_bits(data: str, size: tuple[int, int]) -> NDArray[np.bool_]:
    """As many masks (f, h, w) bool of a size (h, w) as the data of `pack_bits` holds.

    Raises SettingError where it holds none, or more than whole ones.
    """
    try:
        bits = np.frombuffer(base64.b64decode(data, validate=True), np.uint8)
    except ValueError:
        bits = np.zeros(0, np.uint8)
    area = size[0] * size[1]
    frames = 8 * len(bits) // area
    if not frames or len(bits) != -(-frames * area // 8):
        raise SettingError("The painted mask did not arrive whole: paint it again.")
    return np.unpackbits(bits, count=frames * area).reshape(frames, *size).astype(bool)
